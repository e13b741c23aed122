"""Weight norm: magnitudes, slices of zeros, and the kernels that run it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ln_array_api as ln

RNG = np.random.default_rng(0)
V, DW = RNG.standard_normal((2, 4, 3, 5))
G = RNG.standard_normal(4)


def importable(module: str) -> Any:
    return pytest.importorskip(module, reason=f"{module} is not installed")


@pytest.mark.parametrize("axis", [0, 2, -2])
def test_as_torch_has_it(axis: int) -> None:
    torch = importable("torch")
    v, g = torch.tensor(V, requires_grad=True), torch.tensor(RNG.standard_normal(V.shape[axis]))
    axes = tuple(each for each in range(3) if each != axis % 3)
    shape = [-1 if each == axis % 3 else 1 for each in range(3)]
    g.requires_grad_()
    theirs = g.reshape(shape) * v / torch.linalg.vector_norm(v, dim=axes, keepdim=True)
    dv, dg = torch.autograd.grad(theirs, (v, g), torch.from_numpy(DW))
    w, norm = ln.weight_norm_forward(V, g.detach().numpy(), axis=axis)
    own = ln.weight_norm_backward(DW, V, norm, g.detach().numpy(), axis=axis)
    np.testing.assert_allclose(w, theirs.detach().numpy(), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(own.dv, dv.numpy(), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(own.dg, dg.numpy(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("backend", ["generic", "numpy"])
@pytest.mark.parametrize("magnitude", [1e-37, 1e-30, 1e-20, 1e20, 1e30, 1e37])
def test_squares_neither_overflow_nor_underflow(magnitude: float, backend: str) -> None:
    v, g = (V * magnitude).astype(np.float32), G.astype(np.float32)
    wide = v.astype(np.float64)
    exact = np.sqrt((wide * wide).sum(axis=(1, 2)))
    with ln.use_backend(backend):
        w, norm = ln.weight_norm_forward(v, g)
        dv, dg = ln.weight_norm_backward(DW.astype(np.float32), v, norm, g)
    np.testing.assert_allclose(norm, exact, rtol=5e-7)
    unit = wide / exact[:, None, None]
    np.testing.assert_allclose(w, g[:, None, None] * unit, rtol=5e-7)
    dot = (DW * unit).sum(axis=(1, 2), keepdims=True)
    expected = (g / exact)[:, None, None] * (DW - unit * dot)
    np.testing.assert_allclose(dv, expected, atol=3e-6 / magnitude, rtol=1e-5)
    np.testing.assert_allclose(dg, dot.ravel(), atol=1e-6)


def test_a_slice_of_zeros_has_no_direction() -> None:
    v = V.copy()
    v[1] = 0
    w, norm = ln.weight_norm_forward(v, G)
    assert np.isnan(w[1]).all()
    assert norm[1] == 0
    gradients = ln.weight_norm_backward(DW, v, norm, G)
    assert np.isnan(gradients.dv[1]).all()
    assert np.isnan(gradients.dg[1])
    for each in (w, gradients.dv, gradients.dg):
        assert np.isfinite(np.delete(each, 1, axis=0)).all()


def test_single_elements_are_signs() -> None:
    v, g = np.asarray([[3.0], [-0.7]]), np.asarray([2.0, 5.0])
    w, norm = ln.weight_norm_forward(v, g)
    np.testing.assert_allclose(w, [[2.0], [-5.0]], rtol=1e-15)
    np.testing.assert_allclose(norm, [3.0, 0.7], rtol=1e-15)
    dv, dg = ln.weight_norm_backward(np.ones((2, 1)), v, norm, g)
    np.testing.assert_allclose(dv, np.zeros((2, 1)), atol=1e-14)
    np.testing.assert_allclose(dg, [1.0, -1.0], rtol=1e-15)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty_inputs(shape: tuple[int, int]) -> None:
    v, g = np.ones(shape), np.ones(shape[0])
    w, norm = ln.weight_norm_forward(v, g)
    dv, dg = ln.weight_norm_backward(v, v, norm, g)
    assert w.shape == dv.shape == shape
    assert np.isnan(norm).all()
    np.testing.assert_array_equal(dg, np.zeros(shape[0]))


def test_one_axis_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^weight_norm: v has one axis, so a slice of it is a"):
        ln.weight_norm(G, G)
    with pytest.raises(ValueError, match=r"^weight_norm: g has shape .*, the length of axis 1$"):
        ln.weight_norm(V, G, axis=1)


def test_lengths_that_are_not_known_yet() -> None:
    da = importable("dask.array")
    v = da.from_array(V, chunks=2)
    v = v[v[:, 0, 0] > 0]
    with pytest.raises(ValueError, match=r"^weight_norm: the length of axis 0 is not known yet"):
        ln.weight_norm(v, da.from_array(np.ones(3)), axis=1)


def test_backends_run_it_as_rows() -> None:
    for function, arrays in (
        (ln.weight_norm, (V, G)),
        (ln.weight_norm_forward, (V, G)),
        (ln.weight_norm_backward, (DW, V, G, G)),
    ):
        assert ln.explain(function, *arrays).shape == (4, 15)
        with ln.use_backend("numpy"):
            assert ln.explain(function, *arrays).backend == "numpy"
