"""Calls over rows with `out`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rows_recorder import AXES, LAYOUTS, SHAPE, Recorder, over, values
from sample_backends import Register, entry

import ln_array_api as ln


@pytest.fixture
def recorder(register: Register) -> Recorder:
    instance = Recorder()
    register(entry("recorder", instance))
    return instance


@pytest.mark.parametrize("shape", [(6, 8), (2, 3, 8)], ids=str)
@pytest.mark.parametrize("function", [ln.layer_norm, ln.layer_norm_forward, ln.rms_norm])
def test_the_kernel_writes_to_a_contiguous_out(
    recorder: Recorder, function: Callable[..., Any], shape: tuple[int, ...]
) -> None:
    x, out = values(*shape), np.zeros(shape, np.float32)
    expected = ln.layer_norm(x) if "layer" in function.__name__ else ln.rms_norm(x)
    result = function(x, out=out)
    y = result if isinstance(result, np.ndarray) else result.y
    assert y is out
    np.testing.assert_array_equal(out, expected)
    target = recorder.calls[-1].out
    assert target is not None
    assert target.ctypes.data == out.ctypes.data


def test_out_may_be_x_without_a_copy(recorder: Recorder) -> None:
    x = values(6, 8)
    expected = ln.layer_norm(x)
    assert ln.layer_norm(x, out=x) is x
    np.testing.assert_array_equal(x, expected)
    call = recorder.calls[-1]
    assert call.out is not None
    assert call.out.ctypes.data == call.arrays[0].ctypes.data == x.ctypes.data


@pytest.mark.parametrize(
    "layout", [name for name in LAYOUTS if name not in ("contiguous", "read-only")]
)
@pytest.mark.parametrize("axis", AXES, ids=str)
def test_out_of_any_layout_is_filled_through_a_copy(
    recorder: Recorder, layout: str, axis: int | tuple[int, ...]
) -> None:
    x = values(*SHAPE)
    expected = ln.layer_norm(x, axis=axis)
    out = LAYOUTS[layout](np.full_like(x, 7))
    assert ln.layer_norm(x, axis=axis, out=out) is out
    np.testing.assert_array_equal(out, expected)
    in_order = layout == "part of columns" and over(axis, SHAPE) != (0,) and axis not in (1, (2, 0))
    assert (recorder.calls[-1].out is not None) == in_order
    x = LAYOUTS[layout](x)
    assert ln.layer_norm(x, axis=axis, out=x) is x
    np.testing.assert_array_equal(x, expected)


def test_out_is_filled_through_a_copy_where_axes_are_permuted(recorder: Recorder) -> None:
    x, out = values(6, 8), np.zeros((6, 8), np.float32)
    expected = ln.layer_norm(x, axis=0)
    assert ln.layer_norm(x, axis=0, out=out) is out
    np.testing.assert_array_equal(out, expected)
    assert recorder.calls[-1].out is None


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_out_must_not_overlap_inputs_in_a_repeated_call(library: str) -> None:
    xp = pytest.importorskip(library, reason=f"{library} is not installed")
    memory = xp.zeros(200, dtype=xp.float32)
    x, gamma = memory[20:32].reshape(3, 4), memory[50:54]
    x[0, 1] = 3
    expected = ln.layer_norm(x, gamma)
    for _ in range(3):
        out = memory[100:112].reshape(3, 4)
        assert ln.layer_norm(x, gamma, out=out) is out
        assert xp.all(out == expected)
        for start, name in ((10, "x"), (28, "x"), (44, "gamma")):
            with pytest.raises(ValueError, match=f"out overlaps {name} in memory"):
                ln.layer_norm(x, gamma, out=memory[start : start + 12].reshape(3, 4))
    assert xp.all(ln.layer_norm(x, gamma, gamma, out=x) == expected)


def test_parameters_that_are_views_of_out_are_refused() -> None:
    """An array that owns its memory shares it only with views, which are checked."""
    x, out, apart = values(3, 4), np.empty((3, 4), np.float32), np.ones((3, 4), np.float32)
    expected = ln.layer_norm(x, apart[0], apart[0])
    for _ in range(2):
        assert ln.layer_norm(x, apart[0], apart[0], out=out) is out
        np.testing.assert_array_equal(out, expected)
        for name, parameters in (("gamma", (out[0], apart[0])), ("beta", (apart[0], out[0]))):
            with pytest.raises(ValueError, match=f"out overlaps {name} in memory"):
                ln.layer_norm(x, *parameters, out=out)
    ones = apart[0].copy()
    np.testing.assert_array_equal(ln.layer_norm(x, ones, ones, out=x), expected)


def test_out_must_be_writable_in_a_repeated_call() -> None:
    x = np.ones((3, 4), np.float32)
    out = np.empty_like(x)
    for _ in range(2):
        out.flags.writeable = True
        ln.layer_norm(x, out=out)
        out.flags.writeable = False
        with pytest.raises(ValueError, match="out is read-only"):
            ln.layer_norm(x, out=out)
