"""Deliberately broken backends, each with one fault that the suite has to detect."""

from __future__ import annotations

from typing import Any

import numpy as np

from ln_array_api.kernels import rows


class Healthy:
    """The generic kernels, as a backend."""

    def can_run(self, primitive: str, spec: Any) -> bool:
        return True

    def rows_forward(self, x: Any, gamma: Any, beta: Any, **options: Any) -> Any:
        return rows.rows_forward(x, gamma, beta, **options)

    def rows_backward(
        self, dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any, **options: Any
    ) -> Any:
        return rows.rows_backward(dy, x, mean, rstd, gamma, **options)


def _plain(x: Any, gamma: Any, beta: Any, mean: Any, rstd: Any, center: bool, out: Any) -> Any:
    y = (x - mean if center else x) * rstd
    y = y if gamma is None else y * gamma
    y = (y if beta is None else y + beta).astype(x.dtype)
    if out is not None:
        out[...] = y
    return y if out is None else out, mean if center else None, rstd


class OnePassVariance(Healthy):
    """Computes mean(x²) - mean(x)²."""

    def rows_forward(self, x: Any, gamma: Any, beta: Any, **options: Any) -> Any:
        if not options["center"] or x.dtype != np.float32:
            return super().rows_forward(x, gamma, beta, **options)
        mean = x.mean(axis=1, keepdims=True)
        variance = np.maximum((x * x).mean(axis=1, keepdims=True) - mean * mean, 0)
        rstd = 1 / np.sqrt(variance + np.float32(options["epsilon"] or 1e-30))
        return _plain(x, gamma, beta, mean, rstd, True, options["out"])


class TrustedMean(Healthy):
    """Ignores the rounding error of the mean in the backward pass."""

    def rows_backward(
        self, dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any, **options: Any
    ) -> Any:
        if mean is None:
            return super().rows_backward(dy, x, mean, rstd, gamma, **options)
        x_hat = (x.astype(rstd.dtype) - mean) * rstd
        g = dy if gamma is None else dy * gamma
        a, b = g.mean(axis=1, keepdims=True), (g * x_hat).mean(axis=1, keepdims=True)
        dx = rstd * (g - a - x_hat * b)
        return dx.astype(x.dtype), (dy * x_hat).sum(axis=0), dy.sum(axis=0)


class EpsilonOutsideTheRoot(Healthy):
    """Divides by sqrt(var) + epsilon."""

    def rows_forward(self, x: Any, gamma: Any, beta: Any, **options: Any) -> Any:
        wide = x.astype(np.float64)
        mean = wide.mean(axis=1, keepdims=True) if options["center"] else 0 * wide[:, :1]
        variance = ((wide - mean) ** 2).mean(axis=1, keepdims=True)
        kind = np.result_type(x.dtype if x.dtype.itemsize > 2 else np.float32, np.float32)
        rstd = (1 / (np.sqrt(variance) + options["epsilon"])).astype(kind)
        mean = mean.astype(kind)
        return _plain(x, gamma, beta, mean, rstd, options["center"], options["out"])


class LastRowMissing(Healthy):
    """Leaves the last row out of dgamma unless the number of rows is a multiple of four."""

    def rows_backward(
        self, dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any, **options: Any
    ) -> Any:
        dx, dgamma, dbeta = super().rows_backward(dy, x, mean, rstd, gamma, **options)
        keep = slice(len(x) - 1 if len(x) % 4 else None)
        if dgamma is not None:
            some = None if mean is None else mean[keep]
            options["need"] = (False, True, False)
            _, dgamma, _ = super().rows_backward(
                dy[keep], x[keep], some, rstd[keep], gamma, **options
            )
        return dx, dgamma, dbeta


class Float16Accumulation(Healthy):
    """Accumulates 16-bit inputs in 16 bits."""

    def rows_forward(self, x: Any, gamma: Any, beta: Any, **options: Any) -> Any:
        if x.dtype != np.float16 or not options["center"]:
            return super().rows_forward(x, gamma, beta, **options)
        n = np.float16(x.shape[1])
        with np.errstate(all="ignore"):
            mean = np.add.reduce(x, axis=1, dtype=np.float16, keepdims=True) / n
            d = x - mean
            variance = np.add.reduce(d * d, axis=1, dtype=np.float16, keepdims=True) / n
            rstd = 1 / np.sqrt(variance + np.float16(options["epsilon"]))
            y, _, _ = _plain(x, gamma, beta, mean, rstd, True, options["out"])
        return y, mean.astype(np.float32), rstd.astype(np.float32)


class BatchDependentOrder(Healthy):
    """Sums rows in another order where there are few of them."""

    def rows_forward(self, x: Any, gamma: Any, beta: Any, **options: Any) -> Any:
        if len(x) > 4 or x.shape[1] < 2:
            return super().rows_forward(x, gamma, beta, **options)
        half = x.shape[1] // 2
        order = np.r_[half : x.shape[1], :half]
        options["out"], out = None, options["out"]
        gamma, beta = (None if each is None else each[order] for each in (gamma, beta))
        turned, mean, rstd = super().rows_forward(x[:, order].copy(), gamma, beta, **options)
        y = np.empty_like(turned) if out is None else out
        y[:, order] = turned
        return y, mean, rstd


class StatisticsIn16Bits(Healthy):
    """Rounds mean and rstd to the 16-bit dtype of x."""

    def rows_forward(self, x: Any, gamma: Any, beta: Any, **options: Any) -> Any:
        y, mean, rstd = super().rows_forward(x, gamma, beta, **options)
        if x.dtype.itemsize == 2:
            with np.errstate(all="ignore"):
                rstd = rstd.astype(x.dtype).astype(rstd.dtype)
                mean = None if mean is None else mean.astype(x.dtype).astype(rstd.dtype)
        return y, mean, rstd


class WrongAxisOrder(Healthy):
    """Reads gamma as if its axes were transposed."""

    def rows_forward(self, x: Any, gamma: Any, beta: Any, **options: Any) -> Any:
        if gamma is not None and gamma.size % 2 == 0:
            gamma = gamma.reshape(2, -1).T.ravel()
        return super().rows_forward(x, gamma, beta, **options)


class InputWritten(Healthy):
    """Centers dy in place."""

    def rows_backward(
        self, dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any, **options: Any
    ) -> Any:
        gradients = super().rows_backward(dy, x, mean, rstd, gamma, **options)
        if dy.flags.writeable and dy.size:
            dy -= dy.mean(axis=1, keepdims=True, dtype=rstd.dtype).astype(dy.dtype)
        return gradients


class ParametersOfTheFirstGroup(Healthy):
    """Takes gamma and beta of group 0 for every group of channels."""

    def rows_forward(self, x: Any, gamma: Any, beta: Any, **options: Any) -> Any:
        each = x.shape[1] // options["repeat"]
        first = [p if p is None else np.tile(p[:each], options["groups"]) for p in (gamma, beta)]
        return super().rows_forward(x, *first, **options)


class GradientsOfNeighbours(Healthy):
    """Gives each channel the dgamma of its neighbour, if there is more than one group."""

    def rows_backward(
        self, dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any, **options: Any
    ) -> Any:
        dx, dgamma, dbeta = super().rows_backward(dy, x, mean, rstd, gamma, **options)
        if options["groups"] > 1 and dgamma is not None:
            dgamma = np.roll(dgamma, 1)
        return dx, dgamma, dbeta


#: Each broken backend, and the test of the suite that has to detect it.
CAUGHT_BY = {
    OnePassVariance: "test_forward_values",
    TrustedMean: "test_backward_values",
    EpsilonOutsideTheRoot: "test_epsilon_is_inside_the_root_and_not_rounded",
    LastRowMissing: "test_many_rows",
    Float16Accumulation: "test_forward_lengths",
    BatchDependentOrder: "test_batch_invariance",
    StatisticsIn16Bits: "test_forward_values",
    WrongAxisOrder: "test_axes",
    InputWritten: "test_inputs_are_never_written",
    ParametersOfTheFirstGroup: "test_cases",
    GradientsOfNeighbours: "test_without",
}
