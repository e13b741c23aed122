"""The stages of Caffe2's LayerNorm operator, each in one launch, or two where it takes sums.

They mean what the functions of the same names in `ln_array_api.caffe2` do. Sums are taken in two
steps, as in strided.py; the first gives dY * X as well, so that both are read once.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import cupy

from .strided import Sums, add_up, present
from .strided_kernels import SUMS, Elementwise, build

STAGES = {
    "sigma_and_fused_params": Elementwise(
        ("T mean", "V var", "float64 epsilon"),
        "A sigma, A scale, A bias",
        """
        const A shifted = static_cast<A>(var) + static_cast<A>(epsilon);
        scale = 1 / sqrt(shifted);
        sigma = scale * shifted;
        bias = -scale * static_cast<A>(mean);
        """,
    ),
    "forward": Elementwise(
        ("T x", "S scale", "U bias", "G gamma", "B beta"),
        "T y",
        """
        using A = typename Accumulation<T>::type;
        const A shifted = static_cast<A>(x) * static_cast<A>(scale) + static_cast<A>(bias);
        y = static_cast<T>(shifted * static_cast<A>(gamma) + static_cast<A>(beta));
        """,
    ),
    "internal_gradients": Elementwise(
        ("raw D dy", "raw T x", "raw G gamma", "bool with_gamma", *SUMS),
        "raw A dyxx, raw A parts",
        """
        const Place at(i, lines, slots, lines_together);
        Sum<A> of_ds, of_db;
        for (Index c = at.slot; c < length; c += slots) {
            const Index place = at.line * length + c;
            const A weight = with_gamma ? static_cast<A>(gamma[c]) : A(1);
            const A d = static_cast<A>(dy[place]), product = d * static_cast<A>(x[place]);
            dyxx[place] = product;
            of_ds.add(product * weight);
            of_db.add(d * weight);
        }
        const Index target = at.slot * padded + at.line;
        parts[target] = of_ds.total();
        parts[target + slots * padded] = of_db.total();
        """,
    ),
    "fused_params": Elementwise(
        ("T mean", "S sigma", "U ds", "V db", "float64 length"),
        "A rstd, A x_scale, A bias, A g_scale",
        """
        const A count = static_cast<A>(length), middle = static_cast<A>(mean);
        const A root = 1 / static_cast<A>(sigma), total = static_cast<A>(db);
        rstd = root;
        x_scale = (total * middle - static_cast<A>(ds)) * root * root * root / count;
        bias = -x_scale * middle - total * root / count;
        g_scale = -root * middle;
        """,
    ),
    "backward": Elementwise(
        ("D dy", "T x", "G gamma", "S rstd", "U x_scale", "V bias"),
        "T dx",
        """
        using A = typename Accumulation<T>::type;
        const A g = static_cast<A>(dy) * static_cast<A>(gamma);
        dx = static_cast<T>(g * static_cast<A>(rstd) + static_cast<A>(x) * static_cast<A>(x_scale)
                            + static_cast<A>(bias));
        """,
    ),
    "gamma_beta": Elementwise(
        ("raw P dyxx", "raw T dy", "raw S rstd", "raw U g_scale", *SUMS),
        "raw A parts",
        """
        const Place at(i, lines, slots, lines_together);
        Sum<A> by_gamma, by_beta;
        for (Index r = at.slot; r < length; r += slots) {
            const Index place = r * lines + at.line;
            const A d = static_cast<A>(dy[place]);
            by_gamma.add(static_cast<A>(dyxx[place]) * static_cast<A>(rstd[r])
                         + d * static_cast<A>(g_scale[r]));
            by_beta.add(d);
        }
        const Index target = at.slot * padded + at.line;
        parts[target] = by_gamma.total();
        parts[target + slots * padded] = by_beta.total();
        """,
    ),
}


@cache
def stage(name: str, *scalars: str) -> Any:
    """The kernel of a stage."""
    return build(f"caffe2_{name}", STAGES[name], scalars)


def _accumulation(x: Any) -> Any:
    return cupy.dtype("float64" if x.dtype == "float64" else "float32")


def _several(count: int, like: Any) -> list[Any]:
    """Results of the shape of `like`, in its accumulation dtype."""
    return [cupy.empty(like.shape, _accumulation(like)) for _ in range(count)]


def compute_sigma_and_fused_params(mean: Any, var: Any, epsilon: float) -> tuple[Any, ...]:
    """One launch, for three results."""
    results = _several(3, mean)
    stage("sigma_and_fused_params")(mean, var, epsilon, *results)
    return tuple(results)


def layer_norm_forward(X: Any, scale: Any, bias: Any, gamma: Any, beta: Any) -> Any:
    """One launch."""
    parameters, scalars = present(gamma=(gamma, 1.0), beta=(beta, 0.0))
    return stage("forward", *scalars)(X, scale[:, None], bias[:, None], *parameters)


def compute_internal_gradients(dY: Any, X: Any, gamma: Any) -> tuple[Any, Any, Any]:
    """Two launches: products with the sums of slots, and these added up."""
    sums = Sums.over(*X.shape, lines_together=False)
    (dYxX,), parts = _several(1, X), cupy.empty(sums.parts(2), _accumulation(X))
    # What a kernel does not read is some array that is there.
    weights = X if gamma is None else gamma
    stage("internal_gradients")(
        *(dY, X, weights, gamma is not None, *sums, dYxX, parts), size=sums.threads
    )
    ds, db = add_up(parts, sums, _room_for(parts, sums))
    return dYxX, ds, db


def compute_fused_params(mean: Any, sigma: Any, ds: Any, db: Any, length: int) -> tuple[Any, ...]:
    """One launch, for four results."""
    results = _several(4, mean)
    stage("fused_params")(mean, sigma, ds, db, float(length), *results)
    return tuple(results)


def layer_norm_backward(dY: Any, X: Any, gamma: Any, rstd: Any, X_scale: Any, bias: Any) -> Any:
    """One launch."""
    parameters, scalars = present(gamma=(gamma, 1.0))
    vectors = (each[:, None] for each in (rstd, X_scale, bias))
    return stage("backward", *scalars)(dY, X, *parameters, *vectors)


def gamma_beta_backward(dYxX: Any, dY: Any, rstd: Any, g_scale: Any) -> tuple[Any, Any]:
    """Two launches: the sums of slots of both, and these added up."""
    rows, columns = dY.shape
    sums = Sums.over(columns, rows, lines_together=True)
    parts = cupy.empty(sums.parts(2), _accumulation(dY))
    stage("gamma_beta")(dYxX, dY, rstd, g_scale, *sums, parts, size=sums.threads)
    dgamma, dbeta = add_up(parts, sums, _room_for(parts, sums))
    return dgamma, dbeta


def _room_for(parts: Any, sums: Sums) -> Any:
    return cupy.empty((len(parts), sums.padded), parts.dtype)
