"""The PTX of each kernel, launched by the backend: right, and as on the simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import Case, cases
from fake_cupy import CuPyBackend, Device, launch_config, patched_device
from ln_array_api_conformance import tolerances
from numpy.lib.npyio import NpzFile

CASES = cases(launch_config)
SIMULATOR = Path(__file__).resolve().parents[2] / ".cuda_on_cpu" / "simulator.npz"


def run(case: Case, offset: int = 0) -> dict[str, Any]:
    with patched_device(Device()) as device:
        return case.run(
            CuPyBackend(), lambda values, name: device.memory.array(values, name, offset)
        )


def contract_dtype(case: Case, result: Any) -> str:
    """Return the dtype of which a result has all digits: gradients in float64 may have fewer."""
    return case.dtype if result.itemsize == 2 else tolerances.ACCUMULATION[case.dtype]


def check(case: Case, results: dict[str, Any]) -> None:
    """Check results against the library's contract."""
    for name, (expected, steps, scale) in case.expected().items():
        if results[name] is not None:
            dtype = contract_dtype(case, results[name])
            assert results[name].shape == expected.shape
            tolerances.assert_close(name, results[name], expected, steps, scale, dtype)


@pytest.fixture(scope="module")
def simulator_results() -> NpzFile:
    """Load the results of the same CUDA C on the simulator, which the Makefile makes."""
    return np.load(SIMULATOR)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_results(case: Case, simulator_results: NpzFile) -> None:
    results = run(case)
    check(case, results)
    for name, (_, steps, scale) in case.expected().items():
        if results[name] is not None:
            values, other = results[name].astype(np.float64), simulator_results[f"{case}: {name}"]
            # One of them fuses some products and sums, so rounding to 16 bits may differ.
            dtype = contract_dtype(case, results[name])
            allowed = tolerances.absolute_tolerance(steps, scale, other, dtype)
            assert np.all(abs(values - other) <= 2 * allowed), name
            if results[name].itemsize == 2:
                assert np.mean(values != other) < 0.01, name


@pytest.mark.parametrize(("dtype", "n"), [("float16", 300), ("float32", 1600), ("float64", 9000)])
def test_bits_do_not_depend_on_alignment(dtype: str, n: int) -> None:
    case = Case(dtype, 3, n)
    aligned = run(case)
    for name, values in run(case, offset=1).items():
        assert values.tobytes() == aligned[name].tobytes(), name


def test_bits_of_a_row_do_not_depend_on_others() -> None:
    many, one = Case("float32", 9, 1600), Case("float32", 1, 1600)
    rows = {name: None if v is None else v for name, v in many.arrays().items()}
    results = run(many)

    class First(Case):
        def arrays(self) -> dict[str, Any]:
            return {k: v[:1] if k in ("x", "dy") else v for k, v in rows.items()}

    alone = run(First(*one))
    for name in ("y", "mean", "rstd", "dx"):
        assert alone[name].tobytes() == results[name][:1].tobytes(), name
