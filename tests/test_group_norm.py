"""Group norm, instance norm and weight standardization: compared with torch's, and their plans."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ln_array_api as ln
from ln_array_api._dispatch.views import ChannelGroups, KeptAxis, view_of

SHAPES = [((3, 6), 1), ((3, 6, 5), 1), ((3, 6, 4, 5), 1), ((3, 4, 5, 6), -1), ((3, 4, 6, 5), 2)]


def random(seed: int, *shapes: tuple[int, ...], dtype: Any = np.float64) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def torch_gradients(function: Any, dy: np.ndarray, *given: np.ndarray) -> list[np.ndarray]:
    """Compute y and the gradients of all inputs by torch."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tensors = [torch.tensor(each, requires_grad=True) for each in given]
    y = function(torch.nn.functional, *tensors)
    y.backward(torch.tensor(dy))
    return [y.detach().numpy(), *(each.grad.numpy() for each in tensors)]


@pytest.mark.parametrize("num_groups", [1, 2, 6])
@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
def test_group_norm_as_torch_does(shape: tuple[int, ...], axis: int, num_groups: int) -> None:
    if num_groups == 6 and len(shape) == 2:
        num_groups = 3  # torch refuses groups of one element
    x, dy, gamma, beta = random(1, shape, shape, (6,), (6,))
    expected = torch_gradients(
        lambda f, x, *parameters: f.group_norm(x.moveaxis(axis, 1), num_groups, *parameters),
        np.moveaxis(dy, axis, 1),
        x,
        gamma,
        beta,
    )
    options = {"num_groups": num_groups, "channel_axis": axis}
    y, mean, rstd = ln.group_norm_forward(x, gamma, beta, **options)
    gradients = ln.group_norm_backward(dy, x, mean, rstd, gamma, **options)
    np.testing.assert_allclose(np.moveaxis(y, axis, 1), expected[0], atol=1e-12)
    for own, right in zip(gradients, expected[1:], strict=True):
        np.testing.assert_allclose(own, right, atol=1e-12)
    np.testing.assert_array_equal(ln.group_norm(x, gamma, beta, **options), y)
    assert mean.shape == rstd.shape == (3, num_groups)


@pytest.mark.parametrize(("shape", "axis"), SHAPES[1:], ids=str)
def test_instance_norm_as_torch_does(shape: tuple[int, ...], axis: int) -> None:
    x, dy, gamma, beta = random(2, shape, shape, (6,), (6,))
    expected = torch_gradients(
        lambda f, x, gamma, beta: f.instance_norm(x.moveaxis(axis, 1), weight=gamma, bias=beta),
        np.moveaxis(dy, axis, 1),
        x,
        gamma,
        beta,
    )
    y, mean, rstd = ln.instance_norm_forward(x, gamma, beta, channel_axis=axis)
    gradients = ln.instance_norm_backward(dy, x, mean, rstd, gamma, channel_axis=axis)
    np.testing.assert_allclose(np.moveaxis(y, axis, 1), expected[0], atol=1e-12)
    for own, right in zip(gradients, expected[1:], strict=True):
        np.testing.assert_allclose(own, right, atol=1e-12)
    assert mean.shape == (3, 6)


def test_instance_norm_without_spatial_axes_gives_beta() -> None:
    """Groups have one element."""
    x, gamma, beta = random(3, (4, 6), (6,), (6,))
    y = ln.instance_norm(x, gamma, beta)
    np.testing.assert_array_equal(y, np.broadcast_to(beta, y.shape))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_weight_standardization_is_layer_norm_of_slices(axis: int) -> None:
    w, dy = random(4, (4, 3, 5), (4, 3, 5))
    others = tuple(each for each in range(3) if each != axis % 3)
    expected = ln.layer_norm_forward(w, axis=others)
    y, mean, rstd = ln.weight_standardization_forward(w, axis=axis)
    np.testing.assert_array_equal(y, expected.y)
    np.testing.assert_array_equal(mean, expected.mean.ravel())
    dw = ln.weight_standardization_backward(dy, w, mean, rstd, axis=axis).dw
    right = ln.layer_norm_backward(dy, w, *expected[1:], axis=others).dx
    np.testing.assert_array_equal(dw, right)


def test_one_axis_of_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="weight_standardization: w has one axis"):
        ln.weight_standardization(np.ones(3))


def test_plans_for_groups_and_for_axes_differ() -> None:
    """A plan for groups does not serve axes of the same numbers, nor other groups."""
    (x,) = random(5, (4, 6, 2))
    over = [(2, 1), ChannelGroups(2, 1), ChannelGroups(1, 2), KeptAxis(1), KeptAxis(2), 1, 2]
    assert len(set(over)) == len(over)
    by_groups = ln.group_norm(x, num_groups=2, channel_axis=1)
    by_axes = ln.layer_norm(x, axis=(2, 1))
    assert abs(by_groups - by_axes).max() > 0.01
    np.testing.assert_array_equal(ln.group_norm(x, num_groups=2, channel_axis=1), by_groups)


@pytest.mark.parametrize("integer", [np.int64, np.uint8])
def test_integers_of_numpy_are_integers(integer: type) -> None:
    (x,) = random(6, (2, 6, 3))
    options = {"num_groups": integer(3), "channel_axis": integer(1)}
    np.testing.assert_array_equal(ln.group_norm(x, **options), ln.group_norm(x, num_groups=3))


def test_channels_first_are_rows_without_a_copy() -> None:
    """No axis moves, so nothing is copied; channels-last arrays have to be permuted."""
    assert view_of("f", ChannelGroups(2, 1), (3, 6, 4, 5)).permutation == ()
    assert view_of("f", ChannelGroups(2, -1), (3, 4, 5, 6)).permutation == (0, 3, 1, 2)


def test_explain_names_the_kernel_of_layer_norm() -> None:
    x = np.ones((2, 6, 8), np.float32)
    choice = ln.explain(ln.group_norm, x, num_groups=3)
    assert choice.primitive == "rows_forward"
    statistics = ln.group_norm_forward(x, num_groups=3)[1:]
    choice = ln.explain(ln.group_norm_backward, x, x, *statistics, num_groups=3)
    assert choice.primitive == "rows_backward"
