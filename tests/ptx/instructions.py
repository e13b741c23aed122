"""What each instruction computes, on one value of every thread.

`OPERATIONS` has those that depend only on the values of their operands, by their full form. Results
are those of "PTX ISA", to the last bit, except where hardware may differ:

- ``mul`` and ``add`` of floats are rounded one by one. Without ``.rn``, an assembler may fuse them.
- ``rsqrt.approx`` is off by almost as much as is allowed, so that nothing relies on less.
- The sign of a zero that is the largest of two zeros, and the bits of a NaN, are NumPy's.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

_KINDS = {"b": "u", "u": "u", "s": "i", "f": "f"}
#: The NumPy dtype for a PTX type. NumPy lacks bfloat16, of which it holds the bits.
DTYPES: dict[str, np.dtype[Any]] = {
    f"{kind}{bits}": np.dtype(f"{_KINDS[kind]}{bits // 8}")
    for kind in "busf"
    for bits in (16, 32, 64)
}
DTYPES |= {"bf16": np.dtype("u2"), "pred": np.dtype("?")}


class Operation(NamedTuple):
    """A function of arrays, the types of its operands, and that of its result."""

    compute: Callable[..., Array]
    sources: tuple[str, ...]
    result: str


OPERATIONS: dict[str, Operation] = {}


def _define(form: str, compute: Callable[..., Array], sources: str, result: str) -> None:
    OPERATIONS[form] = Operation(compute, tuple(sources.split()), result)


# --- Integers ------------------------------------------------------------------------------------


def _quotient(a: Array, b: Array) -> Array:
    """Divide integers, rounding towards zero."""
    down = a // b
    return down + ((down * b != a) & ((a < 0) != (b < 0)))


def _remainder(a: Array, b: Array) -> Array:
    return a - _quotient(a, b) * b


def _shifted(shift: Callable[[Array, Array], Array], a: Array, by: Array) -> Array:
    """Shift, also by 32 bits or more, as NumPy does."""
    return shift(a, by.astype(a.dtype))


def _insert(a: Array, b: Array, position: Array, length: Array) -> Array:
    """Insert some bits of a in place of some of b."""
    one = b.dtype.type(1)
    position, length = position.astype(b.dtype), length.astype(b.dtype)
    mask = ((one << length) - one) << position
    return ((a << position) & mask) | (b & ~mask)


def _leading_zeros(a: Array) -> Array:
    bits = 8 * a.itemsize
    high = a >> a.dtype.type(bits // 2)
    low = a & a.dtype.type((1 << bits // 2) - 1)
    length = np.where(
        high > 0, np.frexp(high.astype("f8"))[1] + bits // 2, np.frexp(low.astype("f8"))[1]
    )
    return (bits - length).astype("u4")


def _converted(dtype: np.dtype[Any], a: Array) -> Array:
    return a.astype(dtype)


def _same(a: Array) -> Array:
    return a


for _t in ("s32", "u32", "s64", "u64"):
    _wide = _t[0] + "64"
    for _name, _function in (
        ("add", np.add),
        ("sub", np.subtract),
        ("mul.lo", np.multiply),
        ("div", _quotient),
        ("rem", _remainder),
        ("min", np.minimum),
        ("max", np.maximum),
    ):
        _define(f"{_name}.{_t}", _function, f"{_t} {_t}", _t)
    _define(f"mad.lo.{_t}", lambda a, b, c: a * b + c, f"{_t} {_t} {_t}", _t)
    _define(f"shr.{_t}", partial(_shifted, np.right_shift), f"{_t} u32", _t)
    if _t[0] == "s":
        _define(f"neg.{_t}", np.negative, _t, _t)
        _define(f"abs.{_t}", np.abs, _t, _t)
    if _t[1:] == "32":
        _define(
            f"mul.wide.{_t}",
            lambda a, b, to=DTYPES[_wide]: a.astype(to) * b.astype(to),
            f"{_t} {_t}",
            _wide,
        )
        for _from in ("s32", "u32"):
            _define(f"cvt.{_wide}.{_from}", partial(_converted, DTYPES[_wide]), _from, _wide)
        _define(f"cvt.{_t}.{_wide}", partial(_converted, DTYPES[_t]), _wide, _t)

for _t in ("u32", "u64"):
    _define(f"cvt.{_t}.u16", partial(_converted, DTYPES[_t]), "u16", _t)
_define("cvt.u16.u32", partial(_converted, DTYPES["u16"]), "u32", "u16")

for _t in ("b16", "b32", "b64", "pred"):
    for _name, _function in (
        ("and", np.bitwise_and),
        ("or", np.bitwise_or),
        ("xor", np.bitwise_xor),
    ):
        _define(f"{_name}.{_t}", _function, f"{_t} {_t}", _t)
    _define(f"not.{_t}", np.invert, _t, _t)
for _t in ("b32", "b64"):
    _define(f"shl.{_t}", partial(_shifted, np.left_shift), f"{_t} u32", _t)
    _define(f"clz.{_t}", _leading_zeros, _t, "u32")
    _define(f"bfi.{_t}", _insert, f"{_t} {_t} u32 u32", _t)

for _t in DTYPES:
    if _t not in ("f16", "bf16"):
        _define(f"mov.{_t}", _same, _t, _t)
for _t in ("b16", "b32", "b64", "u16", "s32", "s64", "u32", "u64", "f32", "f64"):
    _define(f"selp.{_t}", lambda a, b, which: np.where(which, a, b), f"{_t} {_t} pred", _t)

# --- Comparisons ---------------------------------------------------------------------------------

_COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


def _unordered(a: Array, b: Array) -> Array:
    return np.isnan(a) | np.isnan(b)


for _name, _function in _COMPARISONS.items():
    for _t in ("s16", "s32", "u32", "s64", "u64", "b32", "b64"):
        if _t[0] != "b" or _name in ("eq", "ne"):
            _define(f"setp.{_name}.{_t}", _function, f"{_t} {_t}", "pred")
    for _t in ("f32", "f64"):
        _define(
            f"setp.{_name}.{_t}",
            lambda a, b, f=_function: f(a, b) & ~_unordered(a, b),
            f"{_t} {_t}",
            "pred",
        )
        _define(
            f"setp.{_name}u.{_t}",
            lambda a, b, f=_function: f(a, b) | _unordered(a, b),
            f"{_t} {_t}",
            "pred",
        )

for _t in ("f32", "f64"):
    _define(f"setp.num.{_t}", lambda a, b: ~_unordered(a, b), f"{_t} {_t}", "pred")
    _define(f"setp.nan.{_t}", _unordered, f"{_t} {_t}", "pred")

# --- Floats --------------------------------------------------------------------------------------


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return a sum and its rounding error: Knuth, TAOCP 2, 4.2.2, theorem B."""
    total = a + b
    added = total - a
    return total, (a - (total - added)) + (b - added)


def _sum_to_odd(a: Array, b: Array) -> Array:
    """Round a sum to odd: if it is not exact, the neighbouring double with an odd last bit.

    Rounding this again gives the correctly rounded sum: Boldo and Melquiond, "Emulation of FMA and
    correctly rounded sums: proved algorithms using rounding to odd", 2008.
    """
    total, lost = _two_sum(a, b)
    bits = total.view("i8")
    step = np.where((lost > 0) == (total > 0), 1, -1)
    odd = np.where((bits & 1 == 0) & (lost != 0) & np.isfinite(lost), bits + step, bits)
    return odd.view("f8")


def fma_single(a: Array, b: Array, c: Array) -> Array:
    """Compute a * b + c, rounded once. The product of two float32 is a double."""
    return _sum_to_odd(a.astype("f8") * b, c.astype("f8")).astype("f4")


def _split(a: Array) -> tuple[Array, Array]:
    """Split a double into halves of 26 bits each: Veltkamp."""
    product = a * 134217729.0
    high = product - (product - a)
    return high, a - high


def fma_double(a: Array, b: Array, c: Array) -> Array:
    """Compute a * b + c, rounded once: Boldo and Melquiond, or fractions for large exponents."""
    product = a * b
    (a_high, a_low), (b_high, b_low) = _split(a), _split(b)
    lost = a_low * b_low - (
        ((product - a_high * b_high) - a_low * b_high) - a_high * b_low
    )  # Dekker: exact
    total, rest = _two_sum(c, lost)
    high, low = _two_sum(product, total)
    result = high + _sum_to_odd(rest, low)
    exact = (a == 0) | (b == 0)
    result = np.where(exact, product + c, result)
    sizes = np.abs(np.stack(np.broadcast_arrays(a, b, product, c, result)))
    finite = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    moderate = ((sizes > 2.0**-900) | (sizes == 0)) & (sizes < 2.0**990)
    extreme = finite & ~exact & ~(moderate.all(0) & (product != 0))
    result = np.where(finite, result, product + c)
    for place in np.argwhere(extreme):
        each = [Fraction(float(np.broadcast_to(v, result.shape)[tuple(place)])) for v in (a, b, c)]
        result[tuple(place)] = _rounded(each[0] * each[1] + each[2])
    return result


def _rounded(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def _rounded_down(exact: Array, dtype: str) -> Array:
    """Return a float32 that is off by almost an ulp, instead of half of one."""
    nearest = exact.astype(dtype)
    return np.where(nearest > exact, np.nextafter(nearest, np.zeros((), dtype)), nearest)


def _inverse_root_single(a: Array) -> Array:
    """Compute 1 / sqrt(x); subnormal numbers count as zero."""
    flushed = np.where(np.abs(a) < np.finfo("f4").smallest_normal, np.copysign(0, a), a)
    return _rounded_down(1 / np.sqrt(flushed.astype("f8")), "f4")


def _inverse_root_double(a: Array) -> Array:
    return _rounded_down(1 / np.sqrt(a.astype("g")), "f8")


def _towards_zero(a: Array) -> Array:
    """Convert to the nearest integer of the type, and NaN to 0."""
    info = np.iinfo("i4")
    return np.trunc(np.where(np.isnan(a), 0, a).astype("f8")).clip(info.min, info.max).astype("i4")


def _from_bfloat16(bits: Array) -> Array:
    return (bits.astype("u4") << np.uint32(16)).view("f4")


def _to_bfloat16(a: Array) -> Array:
    """Round to nearest, ties to even."""
    bits = a.view("u4")
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(a), 0x7FFF, rounded).astype("u2")


def _pair_of(to_half: Callable[[Array], Array], high: Array, low: Array) -> Array:
    """Convert two numbers to 16 bits each, which share a register."""
    first, second = (to_half(each).view("u2").astype("u4") for each in (high, low))
    return first << np.uint32(16) | second


for _t in ("f32", "f64"):
    for _name, _function in (("add", np.add), ("sub", np.subtract), ("mul", np.multiply)):
        for _mode in ("", ".rn"):
            _define(f"{_name}{_mode}.{_t}", _function, f"{_t} {_t}", _t)
    _define(f"div.rn.{_t}", np.divide, f"{_t} {_t}", _t)
    _define(f"rcp.rn.{_t}", np.reciprocal, _t, _t)
    _define(f"cvt.rzi.s32.{_t}", _towards_zero, _t, "s32")
    _define(f"max.{_t}", np.fmax, f"{_t} {_t}", _t)
    _define(f"min.{_t}", np.fmin, f"{_t} {_t}", _t)
    _define(f"neg.{_t}", np.negative, _t, _t)
    _define(f"abs.{_t}", np.abs, _t, _t)
_define("fma.rn.f32", fma_single, "f32 f32 f32", "f32")
_define("fma.rn.f64", fma_double, "f64 f64 f64", "f64")
_define("rsqrt.approx.ftz.f32", _inverse_root_single, "f32", "f32")
_define("rsqrt.approx.f64", _inverse_root_double, "f64", "f64")
_define("cvt.f64.f32", partial(_converted, DTYPES["f64"]), "f32", "f64")
_define("cvt.rn.f32.f64", partial(_converted, DTYPES["f32"]), "f64", "f32")
_define("cvt.f32.f16", partial(_converted, DTYPES["f32"]), "f16", "f32")
_define("cvt.rn.f16.f32", partial(_converted, DTYPES["f16"]), "f32", "f16")
_define("cvt.f32.bf16", _from_bfloat16, "bf16", "f32")
_define("cvt.rn.bf16.f32", _to_bfloat16, "f32", "bf16")
_define("cvt.rn.f16x2.f32", partial(_pair_of, partial(_converted, DTYPES["f16"])), "f32 f32", "u32")
_define("cvt.rn.bf16x2.f32", partial(_pair_of, _to_bfloat16), "f32 f32", "u32")
for _t in ("s16", "s32", "u32", "s64", "u64"):
    for _to in ("f32", "f64"):
        _define(f"cvt.rn.{_to}.{_t}", partial(_converted, DTYPES[_to]), _t, _to)
