"""LayerNorm, its gradient and Sum on every library, against definitions in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ln_array_api_conformance.libraries import DTYPES, LIBRARIES, Library

from ln_array_api import DeviceMismatchError, caffe2

OUTPUTS = ["Y", "mean", "stddev"]
EPSILON = 1e-3
RTOL = {"float64": 2e-14, "float32": 4e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
WIDE = {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64"}

# Shapes with an axis; the last ones have no row or empty rows.
CASES = [
    ((4, 6), 1),
    ((2, 3, 4), 1),
    ((2, 3, 4), 2),
    ((2, 3, 4), -1),
    ((2, 3, 4), -2),
    ((2, 3, 4), 0),
    ((2, 1, 5), 2),
    ((5, 1), 1),
    ((0, 3), 1),
    ((2, 0, 3), 2),
]
EVERY_DTYPE = (2, 1, 5)


def layer_norm(affine: bool = True, **arguments: Any) -> caffe2.OperatorDef:
    inputs = ["X", "gamma", "beta"] if affine else ["X"]
    return caffe2.create_operator(
        "LayerNorm", inputs, OUTPUTS, elementwise_affine=affine, **arguments
    )


def gradient(affine: bool = True, **arguments: Any) -> caffe2.OperatorDef:
    inputs = ["dY", "Y", "mean", "stddev", "X", *["gamma"] * affine]
    outputs = ["dX", "dgamma", "dbeta"] if affine else ["dX"]
    return caffe2.create_operator(
        "LayerNormGradient", inputs, outputs, elementwise_affine=affine, **arguments
    )


def forward(*arrays: Any, **options: Any) -> tuple[Any, ...]:
    op_def = layer_norm(affine=len(arrays) > 1, **options)
    return caffe2.LayerNormOp(op_def).run_on_device(*arrays)


def backward(*arrays: Any, **options: Any) -> tuple[Any, ...]:
    op_def = gradient(affine=len(arrays) > 5, **options)
    return caffe2.LayerNormGradientOp(op_def).run_on_device(*arrays)


def inputs_of(
    shape: tuple[int, ...], axis: int, dtype: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return x, gamma, beta and dY."""
    rng = np.random.default_rng(11)
    parameter = shape[axis % len(shape) :]
    arrays = (
        2 + rng.standard_normal(shape),
        1 + 0.3 * rng.standard_normal(parameter),
        rng.standard_normal(parameter),
        rng.standard_normal(shape),
    )
    x, gamma, beta, dy = (each.astype(DTYPES[dtype]) for each in arrays)
    return x, gamma, beta, dy


def definition(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, axis: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute LayerNorm row by row; x may be complex."""
    k = axis % x.ndim
    y, mean, sigma = (np.empty(s, x.dtype) for s in (x.shape, x.shape[:k], x.shape[:k]))
    for row in np.ndindex(*x.shape[:k]):
        values = x[row].ravel()
        mean[row] = sum(values) / len(values)
        variance = sum((each - mean[row]) ** 2 for each in values) / len(values)
        sigma[row] = (variance + EPSILON) ** 0.5
        y[row] = (x[row] - mean[row]) / sigma[row] * gamma + beta
    return y, mean[..., None], sigma[..., None]


def derivatives(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, dy: np.ndarray, axis: int
) -> list[np.ndarray]:
    """Differentiate sum(dy * y) by complex steps, using only the definition."""
    results = []
    for which in range(3):
        result = np.empty((x, gamma, beta)[which].shape)
        for place in np.ndindex(*result.shape):
            arrays = [each.astype(complex) for each in (x, gamma, beta)]
            arrays[which][place] += 1e-100j
            result[place] = np.sum(dy * definition(*arrays, axis)[0]).imag / 1e-100
        results.append(result)
    return results


def assert_close(
    library: Library, what: str, actual: Any, expected: np.ndarray, dtype: str
) -> None:
    assert library.is_array(actual), what
    values = library.numpy(actual)
    assert (what, values.dtype) == (what, DTYPES[dtype])
    assert (what, values.shape) == (what, expected.shape)
    tolerance = RTOL[dtype] * max(1.0, float(np.max(abs(expected), initial=0.0)))
    np.testing.assert_allclose(
        values.astype(np.float64), expected, rtol=0, atol=tolerance, err_msg=what
    )


@pytest.mark.parametrize(("shape", "axis"), CASES)
def test_forward_and_backward(library: Library, shape: tuple[int, ...], axis: int) -> None:
    for dtype in library.dtypes if shape == EVERY_DTYPE else ("float64",):
        arrays = inputs_of(shape, axis, dtype)
        x, gamma, beta, dy = (each.astype(np.float64) for each in arrays)
        x_, gamma_, beta_, dy_ = map(library.array, arrays)
        with library.forbid_compute():
            outputs = forward(x_, gamma_, beta_, axis=axis, epsilon=EPSILON)
            gradients = backward(dy_, *outputs, x_, gamma_, axis=axis)
        expected = definition(x, gamma, beta, axis)
        for what, actual, right, its in zip(
            OUTPUTS, outputs, expected, (dtype, WIDE[dtype], WIDE[dtype]), strict=True
        ):
            assert_close(library, what, actual, right, its)
        right = derivatives(x, gamma, beta, dy, axis)
        for what, actual, each in zip(("dX", "dgamma", "dbeta"), gradients, right, strict=True):
            assert_close(library, what, actual, each, dtype)


@pytest.mark.parametrize(("shape", "axis"), [((4, 6), 1), ((2, 3, 4), -2), ((0, 3), 1)])
def test_without_gamma_and_beta(library: Library, shape: tuple[int, ...], axis: int) -> None:
    arrays = inputs_of(shape, axis, "float64")
    x, gamma, beta, dy = arrays
    gamma, beta = np.ones_like(gamma), np.zeros_like(beta)
    outputs = forward(library.array(x), axis=axis, epsilon=EPSILON)
    gradients = backward(library.array(dy), *outputs, library.array(x), axis=axis)
    for what, actual, right in zip(OUTPUTS, outputs, definition(x, gamma, beta, axis), strict=True):
        assert_close(library, what, actual, right, "float64")
    assert len(gradients) == 1
    right = derivatives(x, gamma, beta, dy, axis)[0]
    assert_close(library, "dX", gradients[0], right, "float64")


def test_stddev_holds_epsilon_and_is_not_its_inverse(library: Library) -> None:
    x = library.array(np.array([[1.0, 3.0], [5.0, 5.0]]))
    _, mean, stddev = forward(x, epsilon=8.0)
    np.testing.assert_allclose(library.numpy(stddev), [[3.0], [8**0.5]], rtol=1e-15)
    np.testing.assert_array_equal(library.numpy(mean), [[2.0], [5.0]])
    _, _, stddev = forward(x, epsilon=0.0)
    np.testing.assert_array_equal(library.numpy(stddev), [[1.0], [0.0]])


def test_defaults_are_those_of_the_code_of_caffe2() -> None:
    x = np.arange(24.0).reshape(2, 3, 4)
    op_def = caffe2.create_operator("LayerNorm", ["X"], OUTPUTS)
    _, mean, stddev = caffe2.LayerNormOp(op_def).run_on_device(x)
    assert mean.shape == (2, 1)
    np.testing.assert_allclose(stddev, np.sqrt(x.reshape(2, 12).var(axis=1) + 1e-5)[:, None])


def test_the_gradient_is_right_through_the_mean_of_the_statistics_dtype() -> None:
    """16-bit x with float32 statistics and gamma: dX in 16 bits, dgamma and dbeta in float32."""
    x, gamma, beta, dy = inputs_of((4, 6), 1, "float16")
    gamma, beta = gamma.astype(np.float32), beta.astype(np.float32)
    outputs = forward(x, gamma, beta)
    gradients = backward(dy, *outputs, x, gamma)
    assert [each.dtype for each in (*outputs, *gradients)] == [
        *("float16", "float32", "float32"),
        *("float16", "float32", "float32"),
    ]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_sum(library: Library, dtype: str) -> None:
    if dtype not in library.dtypes:
        return
    rng = np.random.default_rng(12)
    arrays = [rng.standard_normal((3, 4)).astype(DTYPES[dtype]) for _ in range(3)]
    op = caffe2.SumOp(caffe2.create_operator("Sum", ["a", "b", "c"], ["d"]))
    (total,) = op.run_on_device(*map(library.array, arrays))
    # Rounded once for 16 bits: to the nearest of what the float32 sum is.
    wide = [each.astype(WIDE[dtype]) for each in arrays]
    expected = (wide[0] + wide[1] + wide[2]).astype(DTYPES[dtype])
    assert library.is_array(total)
    np.testing.assert_array_equal(library.numpy(total), expected)


def test_the_sum_of_one_array_is_that_array() -> None:
    a = np.ones(3)
    assert caffe2.SumOp(caffe2.create_operator("Sum", ["a"], ["b"])).run_on_device(a)[0] is a


def test_an_overflowing_sum_is_infinite_without_a_warning() -> None:
    a = np.full(2, 3e38, np.float32)
    op = caffe2.SumOp(caffe2.create_operator("Sum", ["a", "b"], ["c"]))
    np.testing.assert_array_equal(op.run_on_device(a, a)[0], [np.inf, np.inf])


X, COLUMNS, STATISTIC = np.ones((2, 3, 4)), np.ones((3, 4)), np.ones((2, 1))
GRADIENT = [X, X, STATISTIC, STATISTIC, X, COLUMNS]


def with_one(place: int, array: Any) -> list[Any]:
    """Return inputs of the gradient, one of them replaced."""
    return [array if each == place else given for each, given in enumerate(GRADIENT)]


def summed(*arrays: Any, **options: Any) -> Any:
    blobs = ["a", "b", "c"][: max(len(arrays), 1)]
    return caffe2.SumOp(caffe2.create_operator("Sum", blobs, ["s"], **options)).run_on_device(
        *arrays
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: forward(np.ones(3)),
            ValueError,
            r"LayerNorm: input has shape \(3,\), but must have at least 2 dimensions",
        ),
        (lambda: forward(X, axis=3), ValueError, "LayerNorm: axis 3 is out of range .* -3 to 2"),
        (lambda: forward(X, axis=-4), ValueError, "LayerNorm: axis -4 is out of range"),
        (
            lambda: forward(X, COLUMNS[0], COLUMNS),
            ValueError,
            r"LayerNorm: gamma has shape \(4,\), but must have \(3, 4\), the shape of input from",
        ),
        (
            lambda: forward(X, COLUMNS, COLUMNS.ravel()),
            ValueError,
            r"LayerNorm: beta has shape \(12,\), but must have \(3, 4\)",
        ),
        (
            lambda: caffe2.LayerNormOp(layer_norm()).run_on_device(X, COLUMNS),
            ValueError,
            r"LayerNorm: 2 arrays given, but it has 3 inputs \(X, gamma, beta\)",
        ),
        (
            lambda: caffe2.LayerNormOp(layer_norm(name="first")).run_on_device(),
            ValueError,
            "LayerNorm 'first': 0 arrays given",
        ),
        (lambda: forward(X.astype(int)), TypeError, "LayerNorm: input has dtype int64"),
        (lambda: forward([1.0]), TypeError, "LayerNorm: X: list is not an array"),
        (
            lambda: forward(X, COLUMNS.astype(np.float32), COLUMNS),
            TypeError,
            "LayerNorm: gamma has dtype float32, .* must be float64",
        ),
        (
            lambda: forward(X.astype(np.float32), epsilon=1e39),
            ValueError,
            "LayerNorm: epsilon must be finite",
        ),
        *(
            (
                lambda place=place: backward(*with_one(place, np.ones(5))),
                ValueError,
                rf"LayerNormGradient: {name} has shape \(5,\), but must have \({shape}\)",
            )
            for place, name, shape in (
                (0, "dY", "2, 3, 4"),
                (1, "Y", "2, 3, 4"),
                (2, "mean", "2, 1"),
                (3, "stddev", "2, 1"),
                (5, "gamma", "3, 4"),
            )
        ),
        (
            lambda: backward(*with_one(4, np.ones(5))),
            ValueError,
            r"LayerNormGradient: X has shape \(5,\), but must have at least 2",
        ),
        (
            lambda: backward(*with_one(2, STATISTIC.astype(np.float32))),
            TypeError,
            "LayerNormGradient: mean has dtype float32, .* must be float64",
        ),
        (
            lambda: backward(*(each.astype(np.float16) for each in GRADIENT)),
            TypeError,
            "LayerNormGradient: mean has dtype float16, .* must be float32 or float64",
        ),
        (lambda: backward(*GRADIENT, axis=7), ValueError, "LayerNormGradient: axis 7 is out of"),
        (
            lambda: caffe2.LayerNormGradientOp(gradient()).run_on_device(*GRADIENT[:5]),
            ValueError,
            "LayerNormGradient: 5 arrays given, but it has 6 inputs",
        ),
        (lambda: summed(), ValueError, r"Sum: 0 arrays given, but it has 1 input \(a\)"),
        (
            lambda: summed(X, COLUMNS),
            ValueError,
            r"Sum: b has shape \(3, 4\), but must have \(2, 3, 4\), the shape of a",
        ),
        (
            lambda: summed(X, X, X.astype(np.float32)),
            TypeError,
            "Sum: c has dtype float32, but must have that of a, float64",
        ),
        (lambda: summed(X.astype(int)), TypeError, "Sum: a has dtype int64"),
    ],
)
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_arrays_of_two_libraries_are_refused() -> None:
    strict = LIBRARIES["strict"]()
    with pytest.raises(TypeError, match="LayerNorm: gamma is an array of array_api_strict"):
        forward(X, strict.array(COLUMNS), strict.array(COLUMNS))
    with pytest.raises(TypeError, match="Sum: b is an array of array_api_strict"):
        summed(X, strict.array(X))


def test_arrays_on_two_devices_are_refused(library: Library) -> None:
    elsewhere = library.on_second_device(COLUMNS)
    if elsewhere is None:
        return
    with pytest.raises(DeviceMismatchError, match=r"LayerNorm: .*gamma"):
        forward(library.bound(X), elsewhere, elsewhere)


def test_a_device_option_that_contradicts_the_inputs_is_refused(library: Library) -> None:
    x = library.array(X)
    here = "cuda" if library.name == "cupy" else "cpu"
    there = {"cpu": "cuda", "cuda": "cpu"}[here]
    forward(x, device_option=here)
    for call in (
        lambda: forward(x, device_option=there),
        lambda: summed(x, device_option=there),
    ):
        with pytest.raises(ValueError, match=f"device_option is '{there}', but . is on {here}"):
            call()


def test_a_traced_array_may_be_on_any_device() -> None:
    jax = pytest.importorskip("jax")
    x = np.random.default_rng(1).standard_normal((2, 3))
    traced = jax.jit(lambda x: forward(x, device_option="cuda"))(x)
    for actual, expected in zip(traced, forward(x), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_inputs_are_not_written() -> None:
    arrays = inputs_of((4, 6), 1, "float64")
    copies = [each.copy() for each in arrays]
    x, gamma, beta, dy = arrays
    backward(dy, *forward(x, gamma, beta), x, gamma)
    summed(x, dy)
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
