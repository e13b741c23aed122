"""Error messages: the function, the argument, its value and what is allowed."""

from __future__ import annotations

import re
import warnings
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import ln_array_api as ln
from ln_array_api._dispatch import checks

X = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
with ln.use_backend("generic"):
    Y, MEAN, RSTD = ln.layer_norm_forward(X)
ALL = "float16, bfloat16, float32, float64"


def beta_within_out() -> Any:
    out = X.copy()
    return ln.layer_norm(X, None, out[1], out=out)


def overlapping_windows(rows: int, columns: int) -> np.ndarray:
    memory = np.zeros(rows + columns - 1, np.float32)
    return np.lib.stride_tricks.as_strided(memory, (rows, columns), (4, 4))


MESSAGES: dict[str, tuple[type[Exception], str, Any]] = {
    "x of 8 bits": (
        TypeError,
        f"layer_norm: x has dtype float8_e4m3fn, but only {ALL} are supported; cast it, to "
        "float64 for example",
        lambda: ln.layer_norm(X.astype(ml_dtypes.float8_e4m3fn)),
    ),
    "x of objects": (
        TypeError,
        f"rms_norm: x has dtype object, but only {ALL} are supported; cast it, to float32 for "
        "example",
        lambda: ln.rms_norm(X.astype(object)),
    ),
    "x is complex": (
        TypeError,
        f"layer_norm_forward: x has dtype complex128, but only {ALL} are supported; take its real "
        "and imaginary parts apart",
        lambda: ln.layer_norm_forward(X.astype(complex)),
    ),
    "gamma narrower than x": (
        TypeError,
        "layer_norm: gamma has dtype float16, but for x of dtype float32 it must be float32 or "
        "float64; cast it",
        lambda: ln.layer_norm(X, np.ones(5, np.float16)),
    ),
    "beta of the other 16 bits": (
        TypeError,
        "layer_norm: beta has dtype bfloat16, but for x of dtype float16 it must be float16 or "
        "float32 or float64; cast it",
        lambda: ln.layer_norm(X.astype(np.float16), None, np.ones(5, ml_dtypes.bfloat16)),
    ),
    "beta of another length": (
        ValueError,
        "layer_norm: beta has shape (4,), but must have (5,), the shape of the normalised axes "
        "(1,), or x's rank with each length 1 or x's",
        lambda: ln.layer_norm(X, None, np.ones(4, np.float32)),
    ),
    "gamma in the order of axis": (
        ValueError,
        "rms_norm: gamma has shape (4, 3), but must have (3, 4), the shape of the normalised axes "
        "(0, 2), or x's rank with each length 1 or x's",
        lambda: ln.rms_norm(np.ones((3, 5, 4)), np.ones((4, 3)), axis=(2, 0)),
    ),
    "gamma of the rank of x, of another length": (
        ValueError,
        "layer_norm: gamma has shape (2, 5), but must have (5,), the shape of the normalised axes "
        "(1,), or x's rank with each length 1 or x's",
        lambda: ln.layer_norm(X, np.ones((2, 5), np.float32)),
    ),
    "where is a number": (
        TypeError,
        "layer_norm: where: bool is not an array of a library that follows the Python array API "
        "standard; convert it first, for example with numpy.asarray",
        lambda: ln.layer_norm(X, where=True),
    ),
    "where is of numbers": (
        TypeError,
        "rms_norm: where has dtype float32, but must be boolean; compare it with 0, for example",
        lambda: ln.rms_norm(X, where=X),
    ),
    "where of another shape": (
        ValueError,
        "layer_norm_forward: where has shape (2, 5), which does not broadcast to (3, 5), the shape "
        "of x",
        lambda: ln.layer_norm_forward(X, where=np.ones((2, 5), bool)),
    ),
    "where of more axes": (
        ValueError,
        "layer_norm_backward: where has shape (1, 3, 5), which does not broadcast to (3, 5), the "
        "shape of x",
        lambda: ln.layer_norm_backward(X, X, X[:, :1], X[:, :1], where=np.ones((1, 3, 5), bool)),
    ),
    "an offset without gamma": (
        ValueError,
        "layer_norm: gamma_offset=1.0 is added to gamma, which is absent",
        lambda: ln.layer_norm(X, gamma_offset=1.0),
    ),
    "an infinite offset": (
        ValueError,
        "rms_norm: gamma_offset must be finite, not inf",
        lambda: ln.rms_norm(X, X[0], gamma_offset=float("inf")),
    ),
    "an offset that is no number": (
        TypeError,
        "layer_norm: gamma_offset must be a real number, not '1'",
        lambda: ln.layer_norm(X, X[0], gamma_offset="1"),
    ),
    "dy narrower than x": (
        TypeError,
        "layer_norm_backward: dy has dtype float16, but for x of dtype float32 it must be "
        "float32 or float64; cast it",
        lambda: ln.layer_norm_backward(X.astype(np.float16), X, MEAN, RSTD),
    ),
    "mean of another shape": (
        ValueError,
        "layer_norm_backward: mean has shape (1, 3), but must have (3, 1), as layer_norm_forward "
        "gives it",
        lambda: ln.layer_norm_backward(X, X, MEAN.T, RSTD),
    ),
    "mean is absent": (
        TypeError,
        "layer_norm_backward: mean: NoneType is not an array of a library that follows the Python "
        "array API standard; convert it first, for example with numpy.asarray",
        lambda: ln.layer_norm_backward(X, X, None, RSTD),  # type: ignore[arg-type]
    ),
    "rstd in the dtype of 16-bit x": (
        TypeError,
        "rms_norm_backward: rstd has dtype float16, but for x of dtype float16 it must be "
        "float32 or float64; cast it",
        lambda: ln.rms_norm_backward(*[X.astype(np.float16)] * 2, RSTD.astype(np.float16)),
    ),
    "statistics for another axis": (
        ValueError,
        "rms_norm_backward: rstd has shape (3, 1), but must have (1, 5), as rms_norm_forward gives "
        "it",
        lambda: ln.rms_norm_backward(X, X, RSTD, axis=0),
    ),
    "need of what RMS norm has not": (
        ValueError,
        "rms_norm_backward: need must be a tuple of names out of ('dx', 'dgamma'), not "
        "('dx', 'dbeta')",
        lambda: ln.rms_norm_backward(X, X, RSTD, need=("dx", "dbeta")),
    ),
    "axis out of range": (
        ValueError,
        "layer_norm: axis -3 is out of range for x of 2 dimensions (allowed: -2 to 1)",
        lambda: ln.layer_norm(X, axis=(0, -3)),
    ),
    "x without dimensions": (
        ValueError,
        "layer_norm: axis -1 is out of range for x of 0 dimensions; it needs one at least",
        lambda: ln.layer_norm(np.asarray(1.0)),
    ),
    "no axis": (
        ValueError,
        "layer_norm: axis=() leaves nothing to normalise over; name an axis",
        lambda: ln.layer_norm(X, axis=[]),  # type: ignore[arg-type]
    ),
    "axis twice": (
        ValueError,
        "layer_norm: axis=(1, 0, -1) names an axis twice",
        lambda: ln.layer_norm(X, axis=(1, 0, -1)),
    ),
    "axis of letters": (
        TypeError,
        "layer_norm: axis must be an int or a tuple of ints, not 'ab'",
        lambda: ln.layer_norm(X, axis="ab"),  # type: ignore[arg-type]
    ),
    "axis of nested tuples": (
        TypeError,
        "layer_norm_backward: axis must be an int or a tuple of ints, not ((0,),)",
        lambda: ln.layer_norm_backward(X, X, MEAN, RSTD, axis=((0,),)),  # type: ignore[arg-type]
    ),
    "epsilon beyond float32": (
        ValueError,
        "layer_norm: epsilon must be finite and at least 0, not 1e+39",
        lambda: ln.layer_norm(X, epsilon=1e39),
    ),
    "epsilon is complex": (
        TypeError,
        "layer_norm: epsilon must be a real number, not 1j",
        lambda: ln.layer_norm(X, epsilon=1j),  # type: ignore[arg-type]
    ),
    "out is of a kind that is not supported": (
        TypeError,
        "layer_norm: out: MaskedArray is not supported, because its operators do not mean what "
        "those of an array mean; pass numpy.asarray(x), or x.filled(...) for a masked array",
        lambda: ln.layer_norm(X, out=np.ma.asarray(X.copy())),
    ),
    "out is broadcast": (
        ValueError,
        "layer_norm: elements of out share memory with each other; pass a copy",
        lambda: ln.layer_norm(X, out=np.lib.stride_tricks.as_strided(X.copy(), X.shape, (0, 4))),
    ),
    "out is read-only": (
        ValueError,
        "rms_norm_forward: out is read-only; pass a copy, or None",
        lambda: ln.rms_norm_forward(X, out=np.broadcast_to(X, X.shape)),
    ),
    "out is beta": (
        ValueError,
        "layer_norm: out overlaps beta in memory; it may be x itself, but must not share memory "
        "with an input otherwise",
        beta_within_out,
    ),
    "out is x the other way round": (
        ValueError,
        "layer_norm: out overlaps x in memory; it may be x itself, but must not share memory with "
        "an input otherwise",
        lambda: ln.layer_norm(X, out=X[::-1]),
    ),
}


@pytest.mark.parametrize(("error", "message", "call"), MESSAGES.values(), ids=MESSAGES)
def test_messages(error: type[Exception], message: str, call: Any) -> None:
    for _ in range(2):
        with pytest.raises(error) as raised:
            call()
        assert type(raised.value) is error
        assert str(raised.value) == message


@pytest.mark.parametrize("value", [0, 1, Fraction(1, 3), np.float32(1e-3), np.int8(2), 3e38])
def test_epsilon_of_any_real_kind(value: Any) -> None:
    result = checks.epsilon("f", value, np.dtype(np.float32))
    assert type(result) is float
    assert result == float(value)
    ln.layer_norm(X, epsilon=value)


def test_a_large_epsilon_is_right_for_float64() -> None:
    y = ln.layer_norm(X.astype(np.float64), epsilon=1e39)
    assert 0 < np.abs(y).max() < 1e-18


def test_devices_are_compared_where_both_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    place = {1: frozenset({"gpu:1", "gpu:0"}), 2: "cpu", 3: None}
    monkeypatch.setattr(checks, "device_of", place.get)
    for given in (1, 3):
        checks.same_device("f", "gamma", given, 1)
    checks.same_device("f", "gamma", 2, 3)
    with pytest.raises(ln.DeviceMismatchError) as error:
        checks.same_device("f", "gamma", 1, 2)
    assert str(error.value) == (
        "f: gamma is on gpu:0, gpu:1, but x is on cpu; move one of them; arrays are never moved "
        "implicitly"
    )
    assert isinstance(error.value, ValueError)


def test_shapes_are_compared_where_lengths_are_known() -> None:
    nan = float("nan")

    class Shaped:
        def __init__(self, *shape: Any) -> None:
            self.shape = shape

    for shape in ((nan, 3), (None, 3), (2, nan)):
        checks.same_shape("f", "dy", Shaped(*shape), (2, 3), "the shape of x")
        checks.same_shape("f", "dy", Shaped(2, 3), shape, "the shape of x")
    for shape in ((nan, 4), (nan,), (2, 3, None)):
        with pytest.raises(ValueError, match=r"^f: dy has shape"):
            checks.same_shape("f", "dy", Shaped(*shape), (2, 3), "the shape of x")


def test_arrays_of_two_libraries() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = torch.from_numpy(X.copy())
    rest = "convert one of them; arrays are never converted implicitly"
    with pytest.raises(TypeError) as error:
        ln.layer_norm(X, torch.ones(5))
    assert str(error.value) == (
        f"layer_norm: gamma is an array of torch, but x is one of numpy; {rest}"
    )
    with pytest.raises(TypeError) as error:
        ln.layer_norm_backward(x, x, MEAN, torch.ones(3, 1))
    assert str(error.value) == (
        f"layer_norm_backward: mean is an array of numpy, but x is one of torch; {rest}"
    )
    with pytest.raises(TypeError) as error:
        ln.layer_norm(x, out=X.copy())
    assert str(error.value) == "layer_norm: out is an array of numpy, but x is one of torch"


def test_out_where_nothing_can_be_written() -> None:
    x = pytest.importorskip("dask.array", reason="dask is not installed").ones((3, 5))
    with pytest.raises(TypeError) as error:
        ln.rms_norm(x, out=x)
    assert str(error.value) == "rms_norm: arrays of dask cannot be written, so out must be None"


@pytest.mark.parametrize("out", [np.zeros((3, 5), np.float32), X.copy(), X.copy().T.copy().T])
def test_out_that_is_right(out: np.ndarray) -> None:
    assert ln.layer_norm(X, out=out) is out


def test_out_that_is_the_same_view_made_twice() -> None:
    memory = X.copy()
    expected = ln.layer_norm(X[:, ::-1])
    out = memory[:, ::-1]
    assert ln.layer_norm(memory[:, ::-1], out=out) is out
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("need", [None, 3, ([],)], ids=repr)
def test_need_that_is_no_tuple_of_names(need: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^layer_norm_backward: need must be"):
        ln.layer_norm_backward(X, X, MEAN, RSTD, need=need)


def test_epsilon_beyond_all_floats() -> None:
    with pytest.raises(ValueError, match=r"^layer_norm: epsilon must be finite"):
        ln.layer_norm(X, epsilon=10**400)


def test_out_whose_rows_overlap() -> None:
    with pytest.raises(ValueError, match=r"^layer_norm: elements of out share memory"):
        ln.layer_norm(X, out=overlapping_windows(*X.shape))


def _torch_of(make: str) -> Any:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = torch.ones(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that some of these are not finished
        return {
            "sparse": lambda: x.to_sparse(),
            "rows sparse": lambda: x.to_sparse_csr(),
            "nested": lambda: torch.nested.nested_tensor([x, x[:2]]),
            "jagged": lambda: torch.nested.nested_tensor([x, x[:2]], layout=torch.jagged),
            "for oneDNN": lambda: x.to_mkldnn(),
            "masked": lambda: torch.masked.masked_tensor(x, x > 0),
            "quantised": lambda: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
        }[make]()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ("sparse", "x has the layout sparse_coo; pass x.to_dense()"),
        ("rows sparse", "x has the layout sparse_csr; pass x.to_dense()"),
        ("nested", "x is nested; pass its parts one by one"),
        ("jagged", "x is nested; pass its parts one by one"),
        ("for oneDNN", "x has the layout _mkldnn; pass x.to_dense()"),
        ("masked", "x is masked"),
        ("quantised", "x has dtype qint8"),
    ],
)
def test_tensors_of_torch_that_are_not_strided(make: str, message: str) -> None:
    x = _torch_of(make)
    ln.layer_norm(pytest.importorskip("torch").ones(3, 4))  # whose plan is for others of its shape
    for function in (ln.layer_norm, ln.power_norm):
        with pytest.raises(TypeError, match=re.escape(f"{function.__name__}: {message}")):
            function(x)


@pytest.mark.parametrize("attribute", ["unit", "units"])
def test_quantities_do_not_lose_their_units_in_silence(attribute: str) -> None:
    kind = type("Quantity", (np.ndarray,), {attribute: "m"})
    x = np.ones((3, 4)).view(kind)
    with pytest.raises(TypeError, match="layer_norm: x: Quantity has units"):
        ln.layer_norm(x)
    with pytest.raises(TypeError, match="layer_norm: gamma: Quantity has units"):
        ln.layer_norm(np.ones((3, 4)), x[0])
