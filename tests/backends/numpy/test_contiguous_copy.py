"""Copies in C order: the same elements, whatever the layout, in blocks where it pays."""

import ml_dtypes
import numpy as np
import pytest
from ln_array_api_backends.numpy import contiguous_copy

import ln_array_api as ln


def numbered(shape, dtype=np.float32):
    values = np.arange(np.prod(shape)) % 2039  # bfloat16 holds few integers, so compare as bits
    return values.astype(dtype).reshape(shape)


LARGE = {
    "transposed": numbered((600, 700)).T,
    "float64": numbered((300, 500), np.float64).T,
    "float16": numbered((700, 601), np.float16).T,
    "bfloat16": numbered((700, 601), ml_dtypes.bfloat16).T,
    "last two axes": numbered((3, 513, 400)).transpose(0, 2, 1),
    "all axes": numbered((400, 500, 4)).transpose(2, 1, 0),
    "two of three axes first": numbered((40, 70, 90)).transpose(1, 2, 0),
    "backwards": numbered((600, 700))[::-1, ::-1].T,
    "every third": numbered((600, 1400))[:, ::3].T,
}


@pytest.mark.parametrize("name", LARGE)
def test_large_arrays_are_copied_in_blocks(name, monkeypatch):
    x = LARGE[name]
    expected = np.ascontiguousarray(x)

    def refuse(*_):
        raise AssertionError("NumPy copied this")

    monkeypatch.setattr(np, "require", refuse)
    result = contiguous_copy.ascontiguous(x)
    assert result.flags.c_contiguous
    assert result.dtype == x.dtype
    assert result.tobytes() == expected.tobytes()
    assert not np.shares_memory(result, x)


def test_what_is_small_or_odd_is_copied_by_numpy():
    swapped = numbered((600, 700)).astype(">f4").T
    repeated = np.broadcast_to(numbered((700,)), (600, 700)).T
    for x in (numbered((6, 7)).T, swapped, repeated, numbered((700, 600))[:, :599]):
        result = contiguous_copy.ascontiguous(x)
        assert result.flags.c_contiguous
        assert result.dtype.isnative
        np.testing.assert_array_equal(result, x)


def test_rows_that_are_copied_have_the_bits_of_rows_that_lie_in_order():
    x = np.random.default_rng(0).standard_normal((600, 700)).astype(np.float32)
    copied, as_it_is = ln.layer_norm(x.T), ln.layer_norm(np.ascontiguousarray(x.T))
    assert copied.tobytes() == as_it_is.tobytes()
