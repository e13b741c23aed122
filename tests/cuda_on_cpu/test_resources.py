"""That every kernel which a call can choose is among those whose registers are looked at."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import resources
from ln_array_api_backends.cupy import backend, calls

from ln_array_api.backend import RowsSpec

NEEDS = [(True, True, True), (True, False, False), (False, False, True)]


def chosen(monkeypatch: pytest.MonkeyPatch, dtype: str) -> set[str]:
    """The kernels of calls of every kind, with gamma and beta of one dtype, as dy may have too."""
    names: set[str] = set()

    def note(*parameters: Any) -> None:
        names.add(calls.expression(*parameters))

    monkeypatch.setattr(calls, "kernel", note)
    lengths = [48 << bit for bit in range(14)]
    others = resources.PARAMETERS[dtype]
    for n, m, repeat, center, given in product(
        lengths, (1, 6, 5000), (1, 3, 16), (True, False), others
    ):
        spec = RowsSpec("cupy", "0", (m, n), dtype, given, given, center, repeat=repeat)
        backend.prepare("rows_forward", spec)
        for dy, need in product(others, NEEDS):
            backend.prepare("rows_backward", spec._replace(dy=dy, need=need))
    return names


@pytest.mark.parametrize("dtype", resources.PARAMETERS)
def test_every_kernel_that_a_call_chooses(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    listed, used = set(resources.expressions(dtype, wider=True)), chosen(monkeypatch, dtype)
    assert used - listed == set()
    assert listed - used == set()
