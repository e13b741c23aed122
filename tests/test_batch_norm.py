"""Batch norm compared with torch's, and under the transformations of array libraries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ln_array_api as ln

MODULES = ("numpy", "torch", "jax.numpy", "array_api_strict", "dask.array")
SHAPE, CHANNELS = (6, 3, 4, 5), 3
SHAPES = [((6, 3), 1), ((6, 3, 4), 1), ((6, 3, 4, 5), 1), ((6, 4, 5, 3), -1), ((6, 4, 3, 5), 2)]


def random(seed: int, *shapes: tuple[int, ...], dtype: Any = np.float64) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def importable(module: str) -> Any:
    return pytest.importorskip(module, reason=f"{module} is not installed")


def plain(x: Any) -> np.ndarray:
    if hasattr(x, "detach"):
        x = x.detach()
    return np.asarray(x.compute(scheduler="synchronous") if hasattr(x, "compute") else x)


def exact(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Compute y in wide arithmetic."""
    wide = np.moveaxis(x, 1, -1).astype(np.longdouble)
    axes = tuple(range(x.ndim - 1))
    x_hat = (wide - wide.mean(axis=axes)) / np.sqrt(wide.var(axis=axes) + 1e-5)
    return np.moveaxis(x_hat * gamma + beta, -1, 1)


class Torch:
    """Run torch's own batch norm, with the channels moved to axis 1 and back."""

    def __init__(
        self, axis: int, dy: Any, x: Any, gamma: Any, beta: Any, *, running: Any, **options: Any
    ) -> None:
        torch = importable("torch")
        given = [torch.tensor(np.moveaxis(x, axis, 1), requires_grad=True)]
        given += [torch.tensor(each, requires_grad=True) for each in (gamma, beta)]
        self.running = [torch.tensor(each) for each in running]
        y = torch.nn.functional.batch_norm(given[0], *self.running, *given[1:], **options)
        y.backward(torch.tensor(np.moveaxis(dy, axis, 1)))
        self.y = np.moveaxis(y.detach().numpy(), 1, axis)
        self.dx = np.moveaxis(plain(given[0].grad), 1, axis)
        self.dgamma, self.dbeta = (plain(each.grad) for each in given[1:])


@pytest.mark.parametrize("module", ["numpy", "torch"])
@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0])
def test_training_as_torch_does(
    momentum: float, shape: tuple[int, ...], axis: int, module: str
) -> None:
    c = (CHANNELS,)
    x, dy, gamma, beta, mean, var = random(1, shape, shape, c, c, c, c)
    x, var = 3 * x + 2, np.abs(var)
    options = {"eps": 1e-3, "momentum": momentum, "training": True, "running": (mean, var)}
    right = Torch(axis, dy, x, gamma, beta, **options)
    given = [importable(module).asarray(each.copy()) for each in (x, gamma, beta, mean, var)]
    result = ln.batch_norm_forward(*given, channel_axis=axis, epsilon=1e-3, momentum=momentum)
    gradients = ln.batch_norm_backward(
        importable(module).asarray(dy), given[0], *result[1:3], given[1], channel_axis=axis
    )
    expected = (right.y, *right.running, right.dx, right.dgamma, right.dbeta)
    for own, each in zip((result.y, *result[3:], *gradients), expected, strict=True):
        np.testing.assert_allclose(plain(own), plain(each), rtol=1e-11, atol=1e-12)
    for own, each in zip(given, (x, gamma, beta, mean, var), strict=True):
        np.testing.assert_array_equal(plain(own), each)  # never written


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
def test_inference_as_torch_does(shape: tuple[int, ...], axis: int, module: str) -> None:
    c = (CHANNELS,)
    x, dy, gamma, beta, mean, var = random(2, shape, shape, c, c, c, c)
    var = np.abs(var)
    options = {"eps": 1e-3, "training": False, "running": (mean, var)}
    right = Torch(axis, dy, x, gamma, beta, **options)
    given = [importable(module).asarray(each) for each in (x, mean, var, gamma, beta)]
    y = ln.batch_norm(*given, channel_axis=axis, epsilon=1e-3)
    assert type(y) is type(given[0])
    tolerance = 1e-11 if module != "jax.numpy" else 1e-5  # whose arrays are of 32 bits
    np.testing.assert_allclose(plain(y), right.y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("module", MODULES)
def test_every_library_gives_what_numpy_gives(module: str) -> None:
    c = (CHANNELS,)
    values = random(3, SHAPE, SHAPE, c, c, c, c, dtype=np.float32)
    values[5] = np.abs(values[5])
    with ln.use_backend("generic"):
        right = ln.batch_norm_forward(values[0], *values[2:])
        rights = ln.batch_norm_backward(values[1], values[0], *right[1:3], values[2])
    x, dy, *others = (importable(module).asarray(each.copy()) for each in values)
    result = ln.batch_norm_forward(x, *others)
    gradients = ln.batch_norm_backward(dy, x, *result[1:3], others[0])
    assert type(result) is ln.BatchForward
    assert type(gradients) is ln.Gradients
    for own, each in zip((*result, *gradients), (*right, *rights), strict=True):
        assert type(own) is type(x)
        assert plain(own).dtype == np.float32
        np.testing.assert_allclose(plain(own), each, rtol=2e-5, atol=1e-5)


def test_running_statistics_may_be_absent() -> None:
    x, mean, var = random(4, SHAPE, (CHANNELS,), (CHANNELS,))
    result = ln.batch_norm_forward(x)
    assert result.running_mean is result.running_var is None
    both = ln.batch_norm_forward(x, None, None, mean, var)
    one = ln.batch_norm_forward(x, None, None, mean)
    other = ln.batch_norm_forward(x, None, None, None, var)
    assert one.running_var is other.running_mean is None
    np.testing.assert_array_equal(one.running_mean, both.running_mean)
    np.testing.assert_array_equal(other.running_var, both.running_var)
    n = x.size // CHANNELS
    batch = x.var(axis=(0, 2, 3)) * n / (n - 1)
    np.testing.assert_allclose(both.running_var, 0.9 * var + 0.1 * batch, rtol=1e-14)
    batch = x.mean(axis=(0, 2, 3))
    np.testing.assert_allclose(both.running_mean, 0.9 * mean + 0.1 * batch, rtol=1e-13)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("running", ["same", "float32", "float64"])
def test_running_statistics_keep_their_dtype(dtype: str, running: str) -> None:
    ml_dtypes = importable("ml_dtypes")
    own = np.dtype(getattr(ml_dtypes, dtype, dtype))
    kept = own if running == "same" else np.dtype(running)
    x = random(5, SHAPE)[0].astype(own)
    mean, var = np.ones(CHANNELS, kept), np.full(CHANNELS, 2, kept)
    result = ln.batch_norm_forward(x, None, None, mean, var, momentum=0.25)
    assert result.running_mean.dtype == result.running_var.dtype == kept
    assert result.y.dtype == own
    assert result.mean.dtype == result.rstd.dtype == np.float32
    wide = x.astype(np.float64)
    n = x.size // CHANNELS
    expected = (
        0.75 + 0.25 * wide.mean(axis=(0, 2, 3)),
        1.5 + 0.25 * wide.var(axis=(0, 2, 3)) * n / (n - 1),
    )
    ulp = {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(kept.name, 1e-6)
    for values, right in zip(result[3:], expected, strict=True):
        np.testing.assert_allclose(values.astype(np.float64), right, rtol=ulp / 1.9)
    y = ln.batch_norm(x, result.running_mean, result.running_var)
    assert y.dtype == own


def test_running_statistics_out_of_range_are_infinite_without_a_warning() -> None:
    x = random(6, SHAPE)[0] * 1000
    zero = np.zeros(CHANNELS, np.float16)
    result = ln.batch_norm_forward(x.astype(np.float16), None, None, zero, zero, momentum=1)
    assert np.isinf(result.running_var).all()
    assert np.isfinite(result.running_mean).all()


@pytest.mark.parametrize("module", ["numpy", "torch"])
@pytest.mark.parametrize("ratio", [1e4, 1e5, 1e6])
@pytest.mark.parametrize(("shape", "axis"), SHAPES[1:4], ids=str)
def test_the_error_does_not_grow_with_the_mean(
    shape: tuple[int, ...], axis: int, ratio: float, module: str
) -> None:
    shape = tuple(8 * n if n != CHANNELS else n for n in shape)
    x, dy = random(7, shape, shape, dtype=np.float32)
    x += np.float32(ratio)
    wide = np.moveaxis(x.astype(np.float64), axis, 1)
    centred = wide - wide.mean(axis=(0, *range(2, x.ndim)), keepdims=True)  # exact enough
    ones = np.ones(CHANNELS)
    options = {"eps": 1e-5, "training": True, "running": (0 * ones, ones), "momentum": 1.0}
    right = Torch(1, np.moveaxis(dy, axis, 1).astype(np.float64), centred, ones, ones, **options)
    own, own_dy, zero = map(importable(module).asarray, (x, dy, np.zeros(CHANNELS, np.float32)))
    result = ln.batch_norm_forward(own, None, None, zero, zero, channel_axis=axis, momentum=1)
    gradients = ln.batch_norm_backward(own_dy, own, *result[1:3], channel_axis=axis)
    y = np.moveaxis(right.y - 1, 1, axis)
    np.testing.assert_allclose(plain(result.y), y, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(plain(result.running_var), plain(right.running[1]), rtol=1e-6)
    dx = np.moveaxis(right.dx, 1, axis)
    np.testing.assert_allclose(plain(gradients.dx), dx, rtol=1e-6, atol=2e-6)


def test_inference_with_statistics_of_the_batch_is_training() -> None:
    x, gamma, beta = random(8, SHAPE, (CHANNELS,), (CHANNELS,))
    result = ln.batch_norm_forward(x, gamma, beta)
    var = 1 / result.rstd**2 - 1e-5
    y = ln.batch_norm(x, result.mean, var, gamma, beta)
    np.testing.assert_allclose(y, result.y, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(y, exact(x, gamma, beta), atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1), (0, 3), (4, 3, 0)], ids=str)
def test_training_needs_more_than_one_value_for_each_channel(shape: tuple[int, ...]) -> None:
    x = np.ones(shape)
    for function in (ln.batch_norm_forward, lambda x: ln.explain(ln.batch_norm_forward, x)):
        with pytest.raises(ValueError, match=r"^batch_norm_forward: x has shape .* more, to have"):
            function(x)
    y = ln.batch_norm(x, np.zeros(3), np.ones(3), epsilon=0)
    np.testing.assert_array_equal(y, x)
    dx, dgamma, dbeta = ln.batch_norm_backward(x, x, np.ones(3), np.ones(3), np.ones(3))
    np.testing.assert_array_equal(dx, 0 * x)
    np.testing.assert_array_equal(dgamma, np.zeros(3))
    np.testing.assert_array_equal(dbeta, np.full(3, x.size // 3))


def test_no_channels() -> None:
    x, none = np.ones((4, 0, 5)), np.ones(0)
    result = ln.batch_norm_forward(x, none, none, none, none)
    assert result.y.shape == x.shape
    assert {each.shape for each in result[1:]} == {(0,)}
    assert ln.batch_norm(x, none, none).shape == x.shape
    assert ln.batch_norm_backward(x, x, none, none).dx.shape == x.shape


C = np.ones(CHANNELS)
X = np.ones(SHAPE)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ln.batch_norm(X, C[1:], C), ValueError, r"mean has shape \(2,\)"),
        (lambda: ln.batch_norm(X, C, X), ValueError, r"var has shape"),
        (lambda: ln.batch_norm(X, None, C), TypeError, "mean: NoneType is not an array"),
        (lambda: ln.batch_norm(X, C, C, C[1:]), ValueError, r"gamma has shape \(2,\)"),
        (lambda: ln.batch_norm(X, C, C, C, C[1:]), ValueError, r"beta has shape \(2,\)"),
        (lambda: ln.batch_norm(X, C.astype("f4"), C), TypeError, "mean has dtype float32"),
        (lambda: ln.batch_norm(X, C, C, epsilon=-1), ValueError, "epsilon must be finite"),
        (lambda: ln.batch_norm(X, C, C, channel_axis=0), ValueError, "channel_axis=0 is the batch"),
        (lambda: ln.batch_norm(X, C, C, channel_axis=4), ValueError, "channel_axis=4 is out"),
        (lambda: ln.batch_norm(X, C, C, channel_axis=1.5), TypeError, "channel_axis must be"),
        (lambda: ln.batch_norm(C, C, C), ValueError, "x has 1 dimensions"),
        (lambda: ln.batch_norm(X.astype(int), C, C), TypeError, "x has dtype int64"),
        (lambda: ln.batch_norm_forward(X, None, None, X), ValueError, "running_mean has shape"),
        (
            lambda: ln.batch_norm_forward(X, None, None, None, C.astype("f4")),
            TypeError,
            "running_var has dtype float32",
        ),
        (lambda: ln.batch_norm_forward(X, momentum=-0.1), ValueError, "momentum must be from 0"),
        (lambda: ln.batch_norm_forward(X, momentum=np.nan), ValueError, "momentum must be from 0"),
        (lambda: ln.batch_norm_forward(X, momentum=None), TypeError, "momentum must be a real"),
        (lambda: ln.batch_norm_forward(X, epsilon=np.inf), ValueError, "epsilon must be finite"),
        (lambda: ln.batch_norm_backward(X[1:], X, C, C), ValueError, "dy has shape"),
        (lambda: ln.batch_norm_backward(X, X, X, C), ValueError, "mean has shape"),
        (lambda: ln.batch_norm_backward(X, X, C, None), TypeError, "rstd: NoneType"),
        (lambda: ln.batch_norm_backward(X, X, C, C, X[1:]), ValueError, "gamma has shape"),
        (lambda: ln.batch_norm_backward(X, X, C, C, need=("dy",)), ValueError, "need must be"),
    ],
)
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"^batch_norm(_forward|_backward)?: {message}"):
        call()


def test_arrays_of_other_libraries_and_devices() -> None:
    torch = importable("torch")
    x, c = torch.ones(4, 3), torch.ones(3)
    with pytest.raises(TypeError, match=r"running_mean is an array of numpy"):
        ln.batch_norm_forward(x, None, None, np.ones(3))
    with pytest.raises(ln.DeviceMismatchError, match=r"^batch_norm: var is on meta"):
        ln.batch_norm(x, c, c.to("meta"))
    with pytest.raises(ln.DeviceMismatchError, match=r"running_var is on meta"):
        ln.batch_norm_forward(x, None, None, None, c.to("meta"))


def test_torch_differentiates_training_and_inference() -> None:
    torch = importable("torch")
    values = random(9, (4, 3, 5), (3,), (3,), (4, 3, 5))
    x, gamma, beta, dy = map(torch.from_numpy, values)
    inputs = [each.requires_grad_() for each in (x, gamma, beta)]
    mean, var = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    result = ln.batch_norm_forward(*inputs, mean, var)
    gradients = torch.autograd.grad(result.y, inputs, dy)
    with torch.no_grad():
        right = ln.batch_norm_backward(dy, x, *result[1:3], gamma)
    for own, each in zip(gradients, right, strict=True):
        np.testing.assert_allclose(own, each, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(lambda *each: ln.batch_norm_forward(*each).y, inputs)
    assert torch.autograd.gradcheck(
        lambda *each: ln.batch_norm(each[0], mean, var, *each[1:]), inputs
    )
    assert result.mean.requires_grad
    # Else each batch's graph would be kept by the next one's statistics.
    assert not result.running_mean.requires_grad
    assert not result.running_var.requires_grad


def test_torch_in_channels_last_memory() -> None:
    torch = importable("torch")
    x = torch.tensor(random(10, SHAPE)[0])
    y = ln.batch_norm_forward(x.to(memory_format=torch.channels_last)).y
    np.testing.assert_allclose(y, ln.batch_norm_forward(x).y, rtol=1e-12, atol=1e-12)


def test_jax_transforms() -> None:
    jax = importable("jax")
    x, dy, gamma, beta = random(11, (4, 3, 5), (4, 3, 5), (3,), (3,), dtype=np.float32)
    zero = jax.numpy.zeros(3)

    def loss(x: Any, gamma: Any, beta: Any) -> Any:
        result = ln.batch_norm_forward(x, gamma, beta, zero, zero)
        return jax.numpy.sum(result.y * dy), result.running_var

    with ln.use_backend("generic"):
        forward = ln.batch_norm_forward(x, gamma, beta)
        right = ln.batch_norm_backward(dy, x, *forward[1:3], gamma)
    gradient = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
    arrays = tuple(map(jax.numpy.asarray, (x, gamma, beta)))
    for differentiate in (gradient, jax.jit(gradient)):
        gradients, running = differentiate(*arrays)
        for own, each in zip(gradients, right, strict=True):
            np.testing.assert_allclose(own, each, rtol=2e-5, atol=1e-5)
        np.testing.assert_allclose(running, 0.1 * x.var(axis=(0, 2), ddof=1), rtol=1e-5)
    many = jax.numpy.stack([arrays[0], 2 * arrays[0]])
    y = jax.vmap(lambda x: ln.batch_norm(x, zero, zero + 1, *arrays[1:]))(many)
    np.testing.assert_allclose(y[1], ln.batch_norm(many[1], zero, zero + 1, *arrays[1:]), rtol=1e-5)


def test_dask_keeps_axes_and_computes_nothing() -> None:
    dask, da = importable("dask"), importable("dask.array")
    x, dy, gamma, running = random(12, SHAPE, SHAPE, (CHANNELS,), (CHANNELS,))

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something was computed")

    for chunks in ((2, 3, 4, 5), (6, 3, 4, 5), (4, 2, 3, 5)):
        own, own_dy = (da.from_array(each, chunks=chunks) for each in (x, dy))
        given = [da.from_array(each, chunks=chunks[1]) for each in (gamma, running)]
        with dask.config.set(scheduler=refuse):
            result = ln.batch_norm_forward(own, given[0], None, given[1], given[1] ** 2)
            gradients = ln.batch_norm_backward(own_dy, own, *result[1:3], given[0])
            y = ln.batch_norm(own, result.running_mean, result.running_var)
        assert result.y.chunks == gradients.dx.chunks == y.chunks == own.chunks
        right = ln.batch_norm_forward(x, gamma, None, running, running**2)
        rights = ln.batch_norm_backward(dy, x, *right[1:3], gamma)
        last = ln.batch_norm(x, *right[3:])
        for one, each in zip((*result, *gradients, y), (*right, *rights, last), strict=True):
            assert one.shape == each.shape
            np.testing.assert_allclose(plain(one), each, rtol=1e-9, atol=1e-12)


def test_inference_need_not_know_how_long_a_chunked_batch_is() -> None:
    da = importable("dask.array")
    x, mean = random(13, (9, 3, 4), (3,))
    keep = x[:, 0, 0] > 0
    assert 0 < keep.sum() < 9
    own = da.from_array(x, chunks=4)[da.from_array(keep, chunks=4)]
    given = da.from_array(mean), da.from_array(mean**2)
    y = ln.batch_norm(own, *given)
    np.testing.assert_allclose(plain(y), ln.batch_norm(x[keep], mean, mean**2), rtol=1e-12)
    unknown = r"the length of axis 0 is not known yet"
    with pytest.raises(ValueError, match=rf"^batch_norm_forward: {unknown}"):
        ln.batch_norm_forward(own)
    with pytest.raises(ValueError, match=rf"^batch_norm_backward: {unknown}"):
        ln.batch_norm_backward(own, own, *given)


def test_results_are_named() -> None:
    assert ln.BatchForward._fields == ("y", "mean", "rstd", "running_mean", "running_var")
