"""Each kernel under ThreadSanitizer, which treats every thread of a block as a thread.

There are few blocks, because barriers are slow under it. The use of shared memory does not depend
on dtypes.
"""

from __future__ import annotations

from typing import Any

import cupy
import pytest
import test_channels as channels
from planted_faults import THREAD, runs_under
from test_kernels import Case, check, lengths

pytestmark = runs_under(THREAD)


@pytest.mark.parametrize("center", [True, False], ids=["layer norm", "RMS norm"])
@pytest.mark.parametrize("n", lengths("float32"))
def test_rows(n: int, center: bool) -> None:
    check(Case("float32", 5, n, center=center))


@pytest.mark.parametrize("n", [12, 600, 6000])
def test_groups(n: int) -> None:
    check(Case("float32", 6, n, groups=3, repeat=4))


@pytest.mark.parametrize("need", [(False, False, True), (False, True, False)])
def test_sums_by_columns(need: tuple[bool, bool, bool]) -> None:
    Case("float32", 70, 40).run(need=need)


@pytest.mark.parametrize("shape", channels.SOME)
def test_channels(shape: tuple[int, int, int]) -> None:
    channels.check(channels.Case("float32", shape))


def test_reductions_of_cupy() -> None:
    x: Any = cupy.ones((3, 300), "float32")
    assert (x.sum(axis=1) == 300).all()
