"""What is supported: what runs each function on which arrays, and which frameworks see through it.

The tables of README.md, docs/choosing.md and docs/support.md are made from this and from
`_operations` by ``python -m ln_array_api._support``. Tests hold to it what runs a function, and
derivatives.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ._operations import OPERATIONS

_ALL = "float16, bfloat16, float32, float64"
_OF_ML_DTYPES = "float16, bfloat16 (ml_dtypes), float32, float64"


class Place(NamedTuple):
    """Where arrays are."""

    name: str
    library: str
    """As `explain` calls it."""
    rows: str
    """The backend that runs functions made of rows."""
    channels: str
    """The same of channels."""
    family: str
    """The same of the others, or "generic" where these are operations of the arrays' library."""
    kernels: str
    """What the README says of them."""
    dtypes: str
    invariant: str
    """Whether the bits of a row depend on the number of rows."""


PLACES = (
    Place(
        *("NumPy", "numpy", "numpy", "numpy", "numpy"),
        "kernels compiled by Numba, where it is installed, else generic ones",
        *(_OF_ML_DTYPES, "yes"),
    ),
    Place(
        *("torch, on a CPU", "torch", "torch", "torch", "generic"),
        "NumPy's compiled kernels, on the tensors' memory and torch's threads "
        "([how](docs/torch.md))",
        *(_ALL, "yes"),
    ),
    Place(
        *("torch, on CUDA", "torch", "torch", "torch", "generic"),
        "CuPy's CUDA kernels, on the tensors' memory and torch's stream, where CuPy is installed "
        "([how](docs/cupy.md#cuda-tensors-of-torch))",
        *(_ALL, "yes"),
    ),
    Place(
        *("torch, elsewhere", "torch", "generic", "generic", "generic"),
        "generic kernels",
        *(_ALL, "as far as torch's own sums are"),
    ),
    Place(
        *("JAX, on one CPU", "jax", "jax", "jax", "generic"),
        "NumPy's compiled kernels, called by XLA on its memory and threads, where Numba is "
        "installed ([how](docs/jax.md)); batch norm as below",
        *(_ALL, "yes"),
    ),
    Place(
        *("JAX, elsewhere", "jax", "jax", "jax", "generic"),
        "generic kernels, compiled as one program",
        *(_ALL, "no: XLA orders sums by the whole shape"),
    ),
    Place(
        *("Dask", "dask", "generic", "generic", "generic"),
        "the kernels of the chunks' own library, a task for each chunk, where chunks hold whole "
        "rows; else generic kernels, chunk by chunk",
        *(_ALL, "yes"),
    ),
    Place(
        *("array-api-strict", "array_api_strict", "generic", "generic", "generic"),
        "generic kernels",
        *("float32, float64", "yes"),
    ),
    Place(
        *("CuPy", "cupy", "cupy", "cupy", "cupy"),
        "CUDA kernels",
        *(_OF_ML_DTYPES, "yes"),
    ),
)


class Framework(NamedTuple):
    """What a library that differentiates and traces does with the functions."""

    name: str
    derivatives: str
    traced_by: tuple[str, ...]
    constant_lengths: frozenset[str]
    """Functions that compute with lengths, and are compiled anew for each."""


FRAMEWORKS = (
    Framework(
        "torch",
        "of any order, in reverse and in forward mode",
        ("torch.compile(fullgraph=True)", "torch.export", "make_fx", "torch.func", "vmap"),
        frozenset({"weight_norm", "local_contrast_norm"}),
    ),
    Framework(
        "jax",
        "of any order, in reverse and in forward mode",
        ("jax.jit", "jax.vmap", "jax.checkpoint", "jax.export", "shard_map"),
        frozenset({"weight_norm", "local_contrast_norm"}),
    ),
)


_BY_NAME = {each.name: each for each in OPERATIONS}


def primitive_of(function: str, place: Place) -> str:
    """What a public function is made of, on arrays in a place."""
    operation = _BY_NAME[re.sub("_(forward|backward)$", "", function)]
    if operation.primitive in ("rows", "channels") or place.family != "generic":
        return operation.primitive
    return operation.without_kernels


def backend_of(function: str, place: Place) -> str:
    """The backend that runs a public function on arrays in a place."""
    primitive = primitive_of(function, place)
    return {"rows": place.rows, "channels": place.channels}.get(primitive, place.family)


def places_table() -> str:
    """README's table of libraries."""
    header = ("library", "runs on", "dtypes", "bits of a row independent of the number of rows")
    rows = ((each.name, each.kernels, each.dtypes, each.invariant) for each in PLACES)
    return _table(header, rows)


def functions_table() -> str:
    """README's table of functions, with their signatures."""
    header = ("function", "with statistics", "gradients")
    rows = (
        (
            f"`{each.name}{signature(each.name)}`",
            f"`{each.name}_forward`{each.forward}",
            f"`{each.name}_backward`",
        )
        for each in OPERATIONS
    )
    return _table(header, rows)


def signature(name: str) -> str:
    """Return the parameters of a public function, with their defaults and without their types."""
    import ln_array_api

    parameters = inspect.signature(getattr(ln_array_api, name)).parameters.values()
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in parameters]
    return re.sub(r"e-0(\d)", r"e-\1", str(inspect.Signature(bare)))


def operations_table() -> str:
    """The table of operations in docs/choosing.md."""
    header = ("function", "statistics over", "their shape", "parameters", "source")
    rows = (
        (f"`{each.name}`", each.over, each.statistics, each.parameters, each.source)
        for each in OPERATIONS
    )
    return _table(header, rows)


def backends_table() -> str:
    """The backend of each function in each place."""
    header = ("function", *(each.name for each in PLACES))
    rows = (
        (f"`{each.name}`", *(backend_of(each.name, place) for place in PLACES))
        for each in OPERATIONS
    )
    return _table(header, rows)


def frameworks_table() -> str:
    """What frameworks do with the functions."""
    header = ("library", "derivatives", "traced by", "compiled for each length")
    rows = (
        (
            each.name,
            each.derivatives,
            ", ".join(f"`{name}`" for name in each.traced_by),
            ", ".join(f"`{name}`" for name in sorted(each.constant_lengths)),
        )
        for each in FRAMEWORKS
    )
    return _table(header, rows)


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write(root: Path) -> None:
    """Write the tables into the pages of a checkout."""
    for page, tables in PAGES.items():
        path = root / page
        text = path.read_text(encoding="utf-8")
        for begin, table in tables.items():
            head, _, tail = text.partition(begin + "\n\n")
            _, _, rest = tail.partition("\n\n")
            text = f"{head}{begin}\n\n{table()}\n{rest}"
        path.write_text(text, encoding="utf-8")


#: By page and by the line before it: each table.
PAGES = {
    "README.md": {
        "## Which libraries, and what is accelerated": places_table,
        "computed until you ask.": functions_table,
    },
    "docs/choosing.md": {"## What each one does": operations_table},
    "docs/support.md": {
        "## What runs a function": backends_table,
        "## Derivatives and tracing": frameworks_table,
    },
}

if __name__ == "__main__":
    write(Path(__file__).parents[1])
