"""What is supported: what runs each function on which arrays, and which frameworks see through it.

The tables of README.md and docs/support.md are made from this by
``python -m ln_array_api._support``. Tests hold to it what runs a function, and derivatives.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

#: What functions are made of, by their names without ``_forward`` and ``_backward``.
PRIMITIVES = {
    "layer_norm": "rows",
    "rms_norm": "rows",
    "group_norm": "rows",
    "instance_norm": "rows",
    "weight_norm": "rows",
    "weight_standardization": "rows",
    "power_norm": "powers",
    "batch_norm": "channels",
    "batch_instance_norm": "instances",
    "switchable_norm": "instances",
    "local_contrast_norm": "windows",
    "dynamic_tanh": "tanh",
}
#: What they are made of where no backend has kernels for the family; else of operations.
WITHOUT_KERNELS = {"power_norm": "rows"}


def function_names() -> tuple[str, ...]:
    """Return the names of the functions of all operations."""
    return tuple(name + part for name in PRIMITIVES for part in ("", "_forward", "_backward"))


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
        *("CuPy", "cupy", "cupy", "cupy", "generic"),
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


def primitive_of(function: str, place: Place) -> str:
    """What a public function is made of, on arrays in a place."""
    name = re.sub("_(forward|backward)$", "", function)
    if PRIMITIVES[name] in ("rows", "channels") or place.family != "generic":
        return PRIMITIVES[name]
    return WITHOUT_KERNELS.get(name, "operations")


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
    """The backend of each function in each place."""
    header = ("function", *(each.name for each in PLACES))
    rows = ((f"`{name}`", *(backend_of(name, each) for each in PLACES)) for name in PRIMITIVES)
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
    "README.md": {"## Which libraries, and what is accelerated": places_table},
    "docs/support.md": {
        "## What runs a function": functions_table,
        "## Derivatives and tracing": frameworks_table,
    },
}

if __name__ == "__main__":
    write(Path(__file__).parents[1])
