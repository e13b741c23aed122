"""Correct backends that accept few calls, which the suite has to pass."""

from __future__ import annotations

from typing import Any

from ln_array_api.kernels import channels, rows


class LayerNormForwardInFloat32:
    """Accepts one operation in one dtype, in the forward pass only."""

    def can_run(self, primitive: str, spec: Any) -> bool:
        return spec.center and spec.dtype == "float32" and spec.groups == spec.repeat == 1

    def rows_forward(self, x: Any, gamma: Any, beta: Any, **options: Any) -> Any:
        return rows.rows_forward(x, gamma, beta, **options)


class BatchNormBackwardWithoutGamma:
    """Accepts one primitive of three, in two dtypes, without gamma."""

    def can_run(self, primitive: str, spec: Any) -> bool:
        return spec.gamma is None and spec.dtype in ("float64", "float16")

    def channels_backward(self, *arrays: Any, **options: Any) -> Any:
        return channels.channels_backward(*arrays, **options)


class LongRowsOfRMSNorm:
    """Accepts rows of more than 65536 elements."""

    def can_run(self, primitive: str, spec: Any) -> bool:
        return not spec.center and spec.shape[1] > 1 << 16

    def rows_forward(self, x: Any, gamma: Any, beta: Any, **options: Any) -> Any:
        return rows.rows_forward(x, gamma, beta, **options)

    def rows_backward(self, *arrays: Any, **options: Any) -> Any:
        return rows.rows_backward(*arrays, **options)


class RefusesAll:
    """Accepts no call."""

    def can_run(self, primitive: str, spec: Any) -> bool:
        return False

    def rows_forward(self, *arrays: Any, **options: Any) -> Any:
        raise AssertionError("a call that was refused")


#: Each of them, and the suite's report of what it accepts.
TAKES = {
    LayerNormForwardInFloat32: "takes 1 of 36 kinds of call:\n  float32: layer_norm_forward\n",
    BatchNormBackwardWithoutGamma: (
        "takes 2 of 36 kinds of call:\n  float64, float16: batch_norm_backward\n"
    ),
    LongRowsOfRMSNorm: (
        "takes 8 of 36 kinds of call:\n"
        "  float32, float64, float16, bfloat16: rms_norm_forward, rms_norm_backward\n"
    ),
}
