"""The dtypes that kernels over rows and channels take, and the casts of other arrays to them.

Gamma, beta and dy may have any dtype that is as wide as x's, but kernels compute in that of
accumulation. So a wider array is cast to it before the launch, which gives the same bits as a cast
in the kernel. So are gamma and beta where one of them, or dy, is wider than x: few kernels do then.
A cast of gamma or beta takes a small launch, and one of a dy of float64 a pass over dy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ln_array_api.backend import Primitive, Spec

from .kernel_launch import accumulation_dtype

#: The arrays of each primitive that may be cast, among all that its kernel takes.
ARRAYS: dict[Primitive, tuple[str | None, ...]] = {
    "rows_forward": (None, "gamma", "beta"),
    "rows_backward": ("dy", None, None, None, "gamma"),
    "channels_forward": (None, "gamma", "beta"),
    "channels_inference": (None, None, None, "gamma", "beta"),
    "channels_backward": ("dy", None, None, None, "gamma"),
}


def kernel_spec(spec: Spec) -> Spec:
    """Return the spec of the call whose kernels run such a call, after casts."""
    wide = accumulation_dtype(spec.dtype).name
    dy = spec.dy and (spec.dtype if spec.dy == spec.dtype else wide)
    narrow = {spec.gamma, spec.beta, dy} <= {None, spec.dtype}
    parameter = spec.dtype if narrow else wide
    return spec._replace(gamma=spec.gamma and parameter, beta=spec.beta and parameter, dy=dy)


def prepare_with_casts(
    prepare: dict[str, Callable[..., Any]], primitive: Primitive, spec: Spec, memory: Any
) -> Callable[..., Any]:
    """Return a kernel that casts arrays, where `prepare` has functions that prepare others."""
    kernel: Callable[..., Any] = prepare[primitive](kernel_spec(spec), memory)
    given, taken = spec._asdict(), kernel_spec(spec)._asdict()
    casts = {
        place: memory.dtype(taken[name])
        for place, name in enumerate(ARRAYS[primitive])
        if name and given[name] != taken[name]
    }
    if not casts:
        return kernel

    def run(*given_arrays: Any, **options: Any) -> Any:
        arrays = list(given_arrays)
        for place, dtype in casts.items():
            arrays[place] = memory.cast(arrays[place], dtype)
        return kernel(*arrays, **options)

    return run
