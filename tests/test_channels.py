"""The arrays that kernels over channels get, and the conversion of their results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from sample_backends import Looking, Register, entry

import ln_array_api as ln
from ln_array_api import backend
from ln_array_api.backend import ChannelsBackend, ChannelsSpec, Primitive
from ln_array_api.kernels import channels

LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "contiguous": lambda a: a.copy(),
    "Fortran order": np.asfortranarray,
    "every second": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "part of the first axis": lambda a: np.concatenate([a, a], axis=0)[: a.shape[0]],
    "backwards": lambda a: a[..., ::-1].copy()[..., ::-1],
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder("S")),
}
SHAPES = [((4, 3), 1), ((4, 3, 5), 1), ((4, 3, 2, 5), 1), ((4, 2, 5, 3), -1), ((4, 2, 3, 5), 2)]


class Recorder(ChannelsBackend):
    """A backend for NumPy that checks what the protocol guarantees, and records calls."""

    def __init__(self) -> None:
        self.asked: list[tuple[Primitive, ChannelsSpec]] = []
        self.calls: list[tuple[np.ndarray | None, ...]] = []

    def can_run(self, primitive: Primitive, spec: ChannelsSpec) -> bool:
        return True

    def prepare(self, primitive: Primitive, spec: ChannelsSpec) -> Callable[..., Any]:
        self.asked.append((primitive, spec))
        kernel = getattr(channels, primitive)

        def run(*arrays: np.ndarray | None) -> Any:
            names = {
                "channels_forward": ("x", "gamma", "beta"),
                "channels_inference": ("x", "mean", "var", "gamma", "beta"),
                "channels_backward": ("dy", "x", "mean", "rstd", "gamma"),
            }[primitive]
            for name, each in zip(names, arrays, strict=True):
                self.check(name, each, spec)
            self.calls.append(arrays)
            return kernel(*arrays, **spec.options(primitive))

        return run

    def check(self, name: str, values: np.ndarray | None, spec: ChannelsSpec) -> None:
        if values is None:
            return
        assert type(values) is np.ndarray
        assert values.flags.c_contiguous
        assert values.flags.aligned
        assert values.dtype.isnative
        assert values.shape == (spec.shape if name in ("x", "dy") else spec.shape[1:2])
        if name in ("mean", "var", "rstd"):
            assert values.dtype == ("float64" if spec.dtype == "float64" else "float32")
        else:
            assert values.dtype.name == getattr(spec, "dtype" if name == "x" else name)


@pytest.fixture
def recorder(register: Register) -> Recorder:
    instance = Recorder()
    register(entry("recorder", instance))
    return instance


def values(*shape: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def assert_same(results: Any, expected: Any) -> None:
    for result, right in zip(results, expected, strict=True):
        assert (result is None) == (right is None)
        if right is not None:
            assert result.shape == right.shape
            assert result.dtype.name == right.dtype.name
            np.testing.assert_array_equal(result, right)


@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_kernels_get_contiguous_channels_for_every_layout(
    recorder: Recorder, layout: str, dtype: Any, shape: tuple[int, ...], axis: int
) -> None:
    lay, c = LAYOUTS[layout], shape[axis]
    x, dy = values(*shape, dtype=dtype), values(*shape, dtype=np.float64, seed=1)
    gamma, beta = values(c, dtype=dtype, seed=2), values(c, dtype=np.float64, seed=3)
    running = values(c, dtype=dtype, seed=4), np.abs(values(c, dtype=np.float64, seed=5))

    def run(lay: Callable[[np.ndarray], np.ndarray]) -> list[Any]:
        own = [lay(each) for each in (x, gamma, beta, *running)]
        forward = ln.batch_norm_forward(*own, channel_axis=axis)
        statistics = lay(forward.mean), lay(forward.rstd)
        gradients = ln.batch_norm_backward(lay(dy), own[0], *statistics, own[1], channel_axis=axis)
        y = ln.batch_norm(own[0], *own[3:], *own[1:3], channel_axis=axis)
        return [*forward, *gradients, y]

    expected = run(lambda a: a.copy())
    assert_same(run(lay), expected)
    assert len(recorder.calls) == 6
    moved = np.moveaxis(x, axis, 1).reshape(shape[0], c, -1)
    y, mean, _, rstd = channels.channels_forward(moved, gamma, beta, epsilon=1e-5)
    own = np.moveaxis(expected[0], axis, 1).reshape(moved.shape)
    step = {"float16": 1e-3, "bfloat16": 8e-3}.get(x.dtype.name, 1e-5)
    np.testing.assert_allclose(own.astype(float), y.astype(float), rtol=step, atol=step)
    np.testing.assert_allclose(expected[1], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(expected[2], rstd, rtol=1e-5)


@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
def test_contiguous_arrays_are_not_copied(
    recorder: Recorder, shape: tuple[int, ...], axis: int
) -> None:
    x, gamma = values(*shape), values(shape[axis])
    result = ln.batch_norm_forward(x, gamma, gamma, channel_axis=axis)
    ln.batch_norm_backward(x, x, result.mean, result.rstd, gamma, channel_axis=axis)
    ln.batch_norm(x, result.mean, gamma, gamma, gamma, channel_axis=axis)
    given = (
        (x, gamma, gamma),
        (x, x, result.mean, result.rstd, gamma),
        (x, result.mean, gamma, gamma, gamma),
    )
    for call, arrays in zip(recorder.calls, given, strict=True):
        for seen, own in zip(call, arrays, strict=True):
            assert seen is not None
            assert np.shares_memory(seen, own)
    b, c, s = recorder.asked[0][1].shape
    assert (b * s, c) == (x.size // shape[axis], shape[axis])
    assert (s == 1) == (axis % len(shape) == len(shape) - 1)


@pytest.mark.parametrize("odd", range(5), ids=["dy", "x", "mean", "rstd", "gamma"])
def test_one_array_of_another_layout_or_dtype_is_converted(recorder: Recorder, odd: int) -> None:
    x, dy, gamma = values(4, 3, 5), values(4, 3, 5, seed=1), values(3, seed=2)
    result = ln.batch_norm_forward(x, gamma)
    arrays = [dy, x, result.mean, result.rstd, gamma]
    expected = ln.batch_norm_backward(*arrays)
    for layout in ("every second", "byte-swapped"):
        given = [LAYOUTS[layout](each) if k == odd else each for k, each in enumerate(arrays)]
        assert_same(ln.batch_norm_backward(*given), expected)
    wide = [each.astype(np.float64) if k == odd else each for k, each in enumerate(arrays)]
    if odd != 1:  # companions may be wider, x not
        for own, right in zip(ln.batch_norm_backward(*wide), expected, strict=True):
            np.testing.assert_array_equal(own.astype(np.float32), right)


def test_specs(recorder: Recorder) -> None:
    x, gamma = values(4, 2, 5, 3, dtype=np.float16), values(3)
    beta = gamma.astype(np.float16)
    _, mean, rstd, *_ = ln.batch_norm_forward(x, gamma, beta, channel_axis=3, epsilon=0.5)
    ln.batch_norm(x[:0], mean, rstd, channel_axis=-1)
    ln.batch_norm_backward(x, x, mean, rstd, gamma, channel_axis=3, need=("dgamma",))
    ln.batch_norm_backward(x, x, mean, rstd, channel_axis=3)
    common = ("numpy", "cpu", (40, 3, 1), "float16")
    backward = {"dy": "float16", "need": (False, True, False)}
    assert recorder.asked == [
        ("channels_forward", ChannelsSpec(*common, "float32", "float16", 0.5)),
        ("channels_inference", ChannelsSpec(*common, None, None, 1e-5)._replace(shape=(0, 3, 1))),
        ("channels_backward", ChannelsSpec(*common, "float32", None, **backward)),
        (
            "channels_backward",
            ChannelsSpec(*common, None, None, dy="float16", need=(True, False, True)),
        ),
    ]


def test_a_repeated_call_finds_its_plan_and_another_kind_does_not(recorder: Recorder) -> None:
    x, gamma = values(4, 3, 5), values(3)
    var = np.abs(gamma)
    for _ in range(3):
        ln.batch_norm_forward(x, gamma)
        ln.batch_norm_forward(x, gamma, momentum=0.2)
        ln.batch_norm_forward(x, None, gamma)
        ln.batch_norm(x, gamma, var)
        ln.batch_norm(x, gamma, var, epsilon=1e-3)
        ln.batch_norm(x, gamma, var, channel_axis=-2)
        ln.batch_norm_backward(x, x, gamma, var)
        ln.batch_norm_backward(x, x, gamma, var, need=["dx"])  # type: ignore[arg-type]
    assert len(recorder.asked) == len(backend.plans) == 8
    ln.batch_norm(x, gamma, var, channel_axis=np.int64(1))  # type: ignore[arg-type]
    assert len(backend.plans) == 8
    with pytest.raises(TypeError, match=r"^batch_norm: channel_axis must be an int, not 1\.0"):
        ln.batch_norm(x, gamma, var, channel_axis=1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^batch_norm_forward: momentum must be from 0 to 1"):
        ln.batch_norm_forward(x, gamma, momentum=2)


def test_a_plan_is_for_the_backend_that_is_asked_for(recorder: Recorder) -> None:
    x = values(4, 3, 5)
    ln.batch_norm_forward(x)
    with ln.use_backend("generic"):
        ln.batch_norm_forward(x)
    assert len(recorder.calls) == 1
    with ln.use_backend("recorder"):
        ln.batch_norm_forward(x)
    assert len(recorder.calls) == 2


def test_the_methods_of_a_backend_that_prepares_calls() -> None:
    """The primitives of a backend can be called directly."""
    instance = Recorder()
    x, dy, gamma, beta = values(4, 3, 5), values(4, 3, 5, seed=1), values(3), values(3, seed=1)
    y, mean, var, rstd = instance.channels_forward(x, gamma, beta, epsilon=0.25)
    assert_same((y, mean, var, rstd), channels.channels_forward(x, gamma, beta, epsilon=0.25))
    inference = instance.channels_inference(x, mean, var, gamma, None, epsilon=0.25)
    right = channels.channels_inference(x, mean, var, gamma, None, epsilon=0.25)
    assert_same((inference,), (right,))
    need = (True, False, True)
    gradients = instance.channels_backward(dy, x, mean, rstd, gamma, need=need)
    assert_same(gradients, channels.channels_backward(dy, x, mean, rstd, gamma, need=need))
    assert [spec.epsilon for _, spec in instance.asked] == [0.25, 0.25, 0.0]


def test_explain_reports_the_plan() -> None:
    x, c = values(4, 3, 5, 2), values(3)
    for function, primitive, arrays in (
        (ln.batch_norm, "channels_inference", (x, c, c)),
        (ln.batch_norm_forward, "channels_forward", (x, c)),
        (ln.batch_norm_backward, "channels_backward", (x, x, c, c)),
    ):
        with ln.use_backend("generic"):
            told = ln.explain(function, *arrays)
        assert (told.function, told.primitive) == (function.__name__, primitive)
        assert (told.shape, told.backend) == ((4, 3, 10), "generic")
        assert told.reason == "asked for by use_backend('generic')"


@pytest.mark.parametrize("module", ["torch", "array_api_strict"])
def test_other_libraries_share_memory_where_they_can(register: Register, module: str) -> None:
    xp = pytest.importorskip(module, reason=f"{module} is not installed")
    looking = Looking()
    register(entry("looking", looking, module))
    x, gamma = xp.asarray(values(4, 3, 2, 5)), xp.asarray(values(3))
    y = ln.batch_norm_forward(x, gamma).y
    assert tuple(y.shape) == (4, 3, 2, 5)
    turned = xp.permute(x, (0, 2, 3, 1)) if module == "torch" else xp.permute_dims(x, (0, 2, 3, 1))
    last = ln.batch_norm_forward(turned, gamma, channel_axis=-1).y
    np.testing.assert_allclose(np.moveaxis(np.asarray(last), -1, 1), np.asarray(y), atol=1e-6)
    seen = looking.seen
    assert [tuple(each.shape) for each, _ in seen] == [(4, 3, 10), (40, 3, 1)]
    if module == "torch":
        assert seen[0][0].data_ptr() == x.data_ptr()
        assert all(each.is_contiguous() for pair in seen for each in pair)


def test_options_of_other_types_do_not_find_a_plan() -> None:
    """1, 1.0 and True are equal, but only the first is an axis."""
    x, channel = values(2, 3, 4), values(3)
    ln.batch_norm(x, channel, channel**2, channel_axis=1)
    with pytest.raises(TypeError, match=r"channel_axis must be an int, not 1\.0"):
        ln.batch_norm(x, channel, channel**2, channel_axis=1.0)  # type: ignore[arg-type]
    y = ln.local_contrast_norm(x, size=1, epsilon=1)
    np.testing.assert_array_equal(y, ln.local_contrast_norm(x, size=1, epsilon=1.0))
    with pytest.raises(TypeError, match=r"size must be an int, not 1\.0"):
        ln.local_contrast_norm(x, size=1.0, epsilon=1)  # type: ignore[arg-type]
