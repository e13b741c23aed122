"""The stages of Caffe2's LayerNorm operator, each in one launch, or in two where it has sums.

They do what the functions of the same names in `ln_array_api.caffe2` do. Sums take two steps, as in
strided_dispatch.py; the first also computes dY * X, so that both are read once.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import cupy

from .kernel_launch import accumulation_dtype
from .strided_dispatch import ReductionLayout, fill_absent, reduce_partials
from .strided_kernels import REDUCTION, Elementwise, build

STAGES = {
    "sigma_and_fused_params": Elementwise(
        ("T mean", "V var", "float64 epsilon"),
        "A sigma, A scale, A bias",
        """
        const A var_eps = static_cast<A>(var) + static_cast<A>(epsilon);
        scale = 1 / sqrt(var_eps);
        sigma = scale * var_eps;
        bias = -scale * static_cast<A>(mean);
        """,
    ),
    "forward": Elementwise(
        ("T x", "S scale", "U bias", "G gamma", "B beta"),
        "T y",
        """
        using A = Accumulator<T>;
        const A x_hat = static_cast<A>(x) * static_cast<A>(scale) + static_cast<A>(bias);
        y = static_cast<T>(x_hat * static_cast<A>(gamma) + static_cast<A>(beta));
        """,
    ),
    "internal_gradients": Elementwise(
        ("raw D dy", "raw T x", "raw G gamma", "bool with_gamma", *REDUCTION),
        "raw A dyxx, raw A partials",
        """
        const ThreadPosition at(i, outputs, num_partials, coalesce_outputs);
        CompensatedSum<A> ds_acc, db_acc;
        for (Index c = at.partial; c < length; c += num_partials) {
            const Index offset = at.output * length + c;
            const A weight = with_gamma ? static_cast<A>(gamma[c]) : A(1);
            const A d = static_cast<A>(dy[offset]), product = d * static_cast<A>(x[offset]);
            dyxx[offset] = product;
            ds_acc.add(product * weight);
            db_acc.add(d * weight);
        }
        const Index target = at.partial * padded_outputs + at.output;
        partials[target] = ds_acc.total();
        partials[target + num_partials * padded_outputs] = db_acc.total();
        """,
    ),
    "fused_params": Elementwise(
        ("T mean", "S sigma", "U ds", "V db", "float64 length"),
        "A rstd, A x_scale, A bias, A g_scale",
        """
        const A count = static_cast<A>(length), row_mean = static_cast<A>(mean);
        const A row_rstd = 1 / static_cast<A>(sigma), row_db = static_cast<A>(db);
        rstd = row_rstd;
        x_scale = (row_db * row_mean - static_cast<A>(ds)) * row_rstd * row_rstd * row_rstd / count;
        bias = -x_scale * row_mean - row_db * row_rstd / count;
        g_scale = -row_rstd * row_mean;
        """,
    ),
    "backward": Elementwise(
        ("D dy", "T x", "G gamma", "S rstd", "U x_scale", "V bias"),
        "T dx",
        """
        using A = Accumulator<T>;
        const A g = static_cast<A>(dy) * static_cast<A>(gamma);
        dx = static_cast<T>(g * static_cast<A>(rstd) + static_cast<A>(x) * static_cast<A>(x_scale)
                            + static_cast<A>(bias));
        """,
    ),
    "gamma_beta": Elementwise(
        ("raw P dyxx", "raw T dy", "raw S rstd", "raw U g_scale", *REDUCTION),
        "raw A partials",
        """
        const ThreadPosition at(i, outputs, num_partials, coalesce_outputs);
        CompensatedSum<A> dgamma_acc, dbeta_acc;
        for (Index r = at.partial; r < length; r += num_partials) {
            const Index offset = r * outputs + at.output;
            const A d = static_cast<A>(dy[offset]);
            dgamma_acc.add(static_cast<A>(dyxx[offset]) * static_cast<A>(rstd[r])
                           + d * static_cast<A>(g_scale[r]));
            dbeta_acc.add(d);
        }
        const Index target = at.partial * padded_outputs + at.output;
        partials[target] = dgamma_acc.total();
        partials[target + num_partials * padded_outputs] = dbeta_acc.total();
        """,
    ),
}


@cache
def stage(name: str, *scalars: str) -> Any:
    """Return the kernel of a stage; its inputs in `scalars` are numbers."""
    return build(f"caffe2_{name}", STAGES[name], scalars)


def _empty_acc(count: int, like: Any) -> list[Any]:
    """Return arrays for results of the shape of `like`, in its accumulation dtype."""
    return [cupy.empty(like.shape, accumulation_dtype(like.dtype.name)) for _ in range(count)]


def _empty_partials(reduction: ReductionLayout, like: Any) -> Any:
    """Return an array for the partial results of two reductions."""
    return cupy.empty(reduction.partials_shape(2), accumulation_dtype(like.dtype.name))


def _reduce_two(partials: Any, reduction: ReductionLayout) -> Any:
    """Add up the partial results of two reductions."""
    results = cupy.empty((2, reduction.padded_outputs), partials.dtype)
    return reduce_partials(partials, reduction, results)


def compute_sigma_and_fused_params(mean: Any, var: Any, epsilon: float) -> tuple[Any, ...]:
    """Compute three results in one launch."""
    results = _empty_acc(3, mean)
    stage("sigma_and_fused_params")(mean, var, epsilon, *results)
    return tuple(results)


def layer_norm_forward(X: Any, scale: Any, bias: Any, gamma: Any, beta: Any) -> Any:
    """Compute Y in one launch."""
    parameters, scalars = fill_absent(gamma=(gamma, 1.0), beta=(beta, 0.0))
    return stage("forward", *scalars)(X, scale[:, None], bias[:, None], *parameters)


def compute_internal_gradients(dY: Any, X: Any, gamma: Any) -> tuple[Any, Any, Any]:
    """Compute products and their partial sums in one launch, and add these up in another."""
    reduction = ReductionLayout.over(*X.shape, coalesce_outputs=False)
    (dYxX,), partials = _empty_acc(1, X), _empty_partials(reduction, X)
    # Pass any valid array for an input that the kernel does not read.
    weights = X if gamma is None else gamma
    stage("internal_gradients")(
        *(dY, X, weights, gamma is not None, *reduction, dYxX, partials), size=reduction.threads
    )
    ds, db = _reduce_two(partials, reduction)
    return dYxX, ds, db


def compute_fused_params(mean: Any, sigma: Any, ds: Any, db: Any, length: int) -> tuple[Any, ...]:
    """Compute four results in one launch."""
    results = _empty_acc(4, mean)
    stage("fused_params")(mean, sigma, ds, db, float(length), *results)
    return tuple(results)


def layer_norm_backward(dY: Any, X: Any, gamma: Any, rstd: Any, X_scale: Any, bias: Any) -> Any:
    """Compute dX in one launch."""
    parameters, scalars = fill_absent(gamma=(gamma, 1.0))
    vectors = (each[:, None] for each in (rstd, X_scale, bias))
    return stage("backward", *scalars)(dY, X, *parameters, *vectors)


def gamma_beta_backward(dYxX: Any, dY: Any, rstd: Any, g_scale: Any) -> tuple[Any, Any]:
    """Compute partial sums of both gradients in one launch, and add these up in another."""
    rows, columns = dY.shape
    reduction = ReductionLayout.over(columns, rows, coalesce_outputs=True)
    partials = _empty_partials(reduction, dY)
    stage("gamma_beta")(dYxX, dY, rstd, g_scale, *reduction, partials, size=reduction.threads)
    dgamma, dbeta = _reduce_two(partials, reduction)
    return dgamma, dbeta
