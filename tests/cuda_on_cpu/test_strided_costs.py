"""Arrays whose rows are not contiguous: launches, allocations, and where results are written."""

from __future__ import annotations

from itertools import product
from typing import Any

import cupy
import cupy_on_cpu
import numpy as np
import pytest
from test_kernels import bits
from test_strided import KINDS, Case, Kind, every_second, in_fortran_order, reason

import ln_array_api as ln


class Sizes:
    """Record the sizes in bytes of all allocations, and count launches."""

    def __enter__(self) -> Sizes:
        self.bytes: list[int] = []
        self.context = cupy.cuda.using_allocator(self._allocate)
        self.context.__enter__()
        self.before = cupy_on_cpu.counts()
        return self

    def _allocate(self, size: int) -> Any:
        self.bytes.append(size)
        return cupy.cuda.memory._malloc(size)

    def __exit__(self, *error: Any) -> None:
        after = cupy_on_cpu.counts()
        self.counts = {name: after[name] - self.before[name] for name in after}
        self.context.__exit__(*error)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_launches_and_allocations(kind: Kind) -> None:
    """There are three launches forward and five backward, and nothing waits.

    Only results and a workspace are allocated, which may be in one piece.
    """
    case = Case(kind)
    x, dy = case.on_device
    _, mean, rstd, *_ = case.run()
    with Sizes() as forward:
        ln.layer_norm_forward(x, *case.given, axis=kind.axes)
    with Sizes() as backward:
        ln.layer_norm_backward(dy, x, mean, rstd, case.given[0], axis=kind.axes)
    idle = {"synchronisations": 0, "copies_to_host": 0, "copies_between_devices": 0}
    assert forward.counts == {**idle, "launches": 3, "allocations": forward.counts["allocations"]}
    assert backward.counts == {**idle, "launches": 5, "allocations": 3}
    assert forward.counts["allocations"] <= 4


@pytest.mark.parametrize("need", list(product((False, True), repeat=3)))
@pytest.mark.parametrize("center", [True, False], ids=["layer norm", "RMS norm"])
def test_only_what_is_needed(need: tuple[bool, bool, bool], center: bool) -> None:
    case = Case(KINDS["channels"])
    everything = case.run(center)
    x, dy = case.on_device
    names = [name for name, wanted in zip(("dx", "dgamma", "dbeta"), need, strict=True) if wanted]
    if not center:
        names = [name for name in names if name != "dbeta"]
    statistics = everything[1 : 2 + center]
    backward = ln.layer_norm_backward if center else ln.rms_norm_backward
    with Sizes() as cost:
        some = backward(dy, x, *statistics, case.given[0], axis=1, need=tuple(names))
    row_sums = "dx" in names or ("dgamma" in names and center)
    assert cost.counts["launches"] == 2 * row_sums + ("dx" in names) + 2 * (
        "dgamma" in names or "dbeta" in names
    )
    for name, whole in zip(("dx", "dgamma", "dbeta"), everything[2 + center :], strict=False):
        part = getattr(some, name)
        assert (part is not None) == (name in names)
        assert part is None or part.get().tobytes() == whole.get().tobytes()


def test_broadcast_inputs_are_not_written_out() -> None:
    """Only results have the size of x."""
    n, m = 200, 300
    rng = np.random.default_rng(0)
    column = cupy.asarray(rng.standard_normal((n, 1)).astype(np.float32))
    x = cupy.asarray(rng.standard_normal((n, m)).astype(np.float32))
    one = cupy.broadcast_to(cupy.ones((), np.float32), (n, m))
    repeated = cupy.broadcast_to(column, (n, m))
    for given, dy in ((x, one), (repeated, one), (repeated, x)):
        y, mean, rstd = ln.layer_norm_forward(given, axis=0)
        gradients = ln.layer_norm_backward(dy, given, mean, rstd, axis=0)
        with Sizes() as forward:
            ln.layer_norm_forward(given, axis=0)
        with Sizes() as backward:
            ln.layer_norm_backward(dy, given, mean, rstd, axis=0)
        for sizes in (forward.bytes, backward.bytes):
            assert sum(size >= n * m * 4 for size in sizes) == 1
        plain = [each.get().astype(np.float64) for each in (given, dy)]
        right = ln.layer_norm_forward(plain[0], axis=0)
        expected = ln.layer_norm_backward(plain[1], plain[0], right.mean, right.rstd, axis=0)
        for a, b in ((y, right.y), (gradients.dx, expected.dx), (gradients.dbeta, expected.dbeta)):
            np.testing.assert_allclose(a.get(), b, rtol=1e-5, atol=2e-6 * max(1, abs(b).max()))


def test_a_broadcast_row() -> None:
    row = cupy.asarray(np.random.default_rng(0).standard_normal(70).astype(np.float32))
    x = cupy.broadcast_to(row, (40, 70))
    with Sizes() as cost:
        y = ln.layer_norm(x)
    assert sum(size >= x.size * 4 for size in cost.bytes) == 1
    np.testing.assert_allclose(y.get(), ln.layer_norm(x.get()), rtol=1e-5, atol=1e-6)


def test_contiguous_rows_use_the_kernels_for_rows() -> None:
    rows = cupy.zeros((4, 6, 50), np.float32)
    views = {
        "as they are": (rows, -1),
        "axes moved": (rows.transpose(0, 2, 1), 1),
        "axes moved to the front": (rows.transpose(2, 0, 1), 0),
        "part of rows": (rows[..., :30], -1),
        "one row": (rows[0, :1], -1),
        "a batch of one": (rows[0][None], -1),
        "some of them": (rows.transpose(0, 2, 1)[:, :, 2:3], 1),
    }
    for name, (x, axis) in views.items():
        assert reason(x, axis).startswith("CUDA C"), name
        with Sizes() as cost:
            ln.layer_norm(x, axis=axis)
        assert cost.counts["launches"] <= 2, name


@pytest.mark.parametrize("name", ["x itself", "in order", "Fortran order", "every second"])
def test_out(name: str) -> None:
    case = Case(KINDS["channels"])
    x = case.on_device[0]
    y = ln.layer_norm(x, *case.given, axis=1)
    plain = np.zeros(x.shape, x.dtype)
    out = {
        "x itself": x,
        "in order": cupy.asarray(plain),
        "Fortran order": in_fortran_order(plain),
        "every second": every_second(plain),
    }[name]
    with Sizes() as cost:
        assert ln.layer_norm(x, *case.given, axis=1, out=out) is out
    assert cost.counts["launches"] == 3
    assert out.get().tobytes() == y.get().tobytes()


def test_results_have_the_memory_order_of_x() -> None:
    case = Case(Kind((4, 6, 5), (2,), in_fortran_order))
    y, _, _, dx, *_ = case.run()
    assert y.strides == dx.strides == case.on_device[0].strides


@pytest.mark.parametrize("name", ["columns of many partials", "two axes apart"])
def test_both_passes_can_be_captured(name: str) -> None:
    case = Case(KINDS[name])
    stream = cupy.cuda.Stream(non_blocking=True)
    with cupy.cuda.using_allocator(cupy.cuda.MemoryPool().malloc), stream:
        expected = bits(case.run())  # and returns memory to the pool
        before = cupy_on_cpu.counts()
        stream.begin_capture()
        results = case.run()
        graph = stream.end_capture()
        assert cupy_on_cpu.counts() == before
        graph.launch()
    assert bits(results) == expected
