"""Everything about a call except the values of its arrays: primitives, specs, layouts."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias, get_args

#: A primitive's name, which is the name of the backend's method and of the generic kernel.
Primitive = Literal[
    "rows_forward",
    "rows_backward",
    "channels_forward",
    "channels_inference",
    "channels_backward",
]

#: The same of operations that are neither rows nor channels. What no backend has a kernel for
#: consists of operations of the arrays' library.
FamilyPrimitive = Literal[
    "tanh_forward",
    "tanh_backward",
    "powers_forward",
    "powers_backward",
    "windows_forward",
    "windows_backward",
    "instances_statistics",
    "instances_affine",
    "instances_sums",
    "instances_gradient",
]
FAMILY: tuple[FamilyPrimitive, ...] = get_args(FamilyPrimitive)

_BACKWARD = ("x", "x", "statistic", "statistic", "parameter"), ("x", "parameter", "parameter")
#: What each primitive takes and gives: arrays of x's shape, statistics, parameters (or their
#: gradients), and others that a kernel gets unchanged.
SIGNATURES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "rows_forward": (("x", "parameter", "parameter"), ("x", "statistic", "statistic")),
    "rows_backward": _BACKWARD,
    "channels_forward": (("x", "parameter", "parameter"), ("x", *["statistic"] * 3)),
    "channels_inference": (("x", *["statistic"] * 2, *["parameter"] * 2), ("x",)),
    "channels_backward": _BACKWARD,
    "tanh_forward": (("x", "other", "parameter", "parameter"), ("x",)),
    "tanh_backward": (("x", "x", "other", "parameter"), ("x", "other", "parameter", "parameter")),
    "powers_forward": (("x",), ("x", "statistic")),
    "powers_backward": (("x", "x", "statistic"), ("x",)),
    "windows_forward": (("x",), ("x", "x", "x")),
    "windows_backward": (("x", "x", "x"), ("x",)),
    "instances_statistics": (("x",), ("statistic",) * 4),
    "instances_affine": (("x", *["statistic"] * 5), ("x",)),
    "instances_sums": (("x", "x", *["statistic"] * 2), ("statistic",) * 3),
    "instances_gradient": (("x", "x", *["statistic"] * 6), ("x",)),
}


class RowsSpec(NamedTuple):
    """A call of a rows primitive without its arrays: what `Backend.can_run` decides by."""

    library: str
    """Whose arrays: ``numpy``, ``torch``, ``jax``, ``cupy``."""
    device: str
    shape: tuple[int, int]
    """(M, N). Results of a row may not depend on M."""
    dtype: str
    gamma: str | None
    """Dtype of gamma, None where it is absent; likewise beta."""
    beta: str | None
    center: bool
    """True for layer norm, False for RMS norm."""
    epsilon: float = 0.0
    """Of a forward call."""
    groups: int = 1
    repeat: int = 1
    dy: str | None = None
    """Dtype of dy in a backward call; mean and rstd have the accumulation dtype."""
    need: tuple[bool, bool, bool] = (True, True, True)
    """Of a backward call: whether dx, dgamma, dbeta are wanted."""
    span: int = 1
    """How many rows that follow each other have the same parameters: see `rows_forward`."""
    where: bool = False
    """Whether the kernel gets a mask, by the keyword `where`: see `rows_forward`."""

    @property
    def parameters(self) -> int:
        """The number of elements of gamma and beta."""
        return self.groups * self.shape[1] // self.repeat

    def options(self, primitive: Primitive) -> dict[str, Any]:
        """Return the keyword arguments of the primitive, except `out`."""
        particular = (
            {"epsilon": self.epsilon} if primitive == "rows_forward" else {"need": self.need}
        )
        shared = {"groups": self.groups, "repeat": self.repeat, "span": self.span}
        return {"center": self.center, **shared, **particular}


class ChannelsSpec(NamedTuple):
    """A call of a channels primitive without its arrays: what `Backend.can_run` decides by."""

    library: str
    """Whose arrays: ``numpy``, ``torch``, ``jax``, ``cupy``."""
    device: str
    shape: tuple[int, int, int]
    """(B, C, S). Channels last is S = 1."""
    dtype: str
    gamma: str | None
    """Dtype of gamma, None where it is absent; likewise beta."""
    beta: str | None
    epsilon: float = 0.0
    """Of a forward or inference call."""
    dy: str | None = None
    """Dtype of dy in a backward call; statistics have the accumulation dtype in every call."""
    need: tuple[bool, bool, bool] = (True, True, True)
    """Of a backward call: whether dx, dgamma, dbeta are wanted."""

    def options(self, primitive: Primitive) -> dict[str, Any]:
        """Return the keyword arguments of the primitive."""
        if primitive == "channels_backward":
            return {"need": self.need}
        return {"epsilon": self.epsilon}


Spec: TypeAlias = RowsSpec | ChannelsSpec


class FamilySpec(NamedTuple):
    """A call of a primitive of `FAMILY` without its arrays.

    As in the other primitives, arrays come checked and in C order, parameters in x's dtype or a
    wider one, statistics and dy as given; y and dx have x's dtype, all other results that of
    accumulation. Primitives, in which (M, N) and parameters are as in `RowsSpec`:

    ``tanh_forward(x, alpha, gamma, beta)`` of x (M, N) gives y;
    ``tanh_backward(dy, x, alpha, gamma)`` gives dx, dalpha, dgamma and dbeta, of which `need` tells
    which are wanted. Alpha has shape ().

    ``powers_forward(x)`` of x (M, N) gives y and the norms (M, 1) of `power_norm`, whose alpha is
    `exponent`; ``powers_backward(dy, x, norm)`` gives dx.

    ``windows_forward(x)`` of x (P, H, W) gives y, mean and rstd of its shape, of windows of `size`
    along H and W, of which `need` tells which are wanted: all, or y only, and then the others are
    None; ``windows_backward(dy, x, rstd)`` gives dx.

    ``instances_statistics(x)`` of x (M, N) gives, of each row, mean, mean_residual (the rounding
    error of mean), var and rstd, all (M, 1). With x̂ = (x - mean - mean_residual) * rstd of given
    mean, mean_residual and rstd,
    ``instances_affine(x, mean, mean_residual, rstd, scale, shift)`` gives x̂ * scale + shift;
    ``instances_sums(dy, x, mean, rstd)`` gives mean_residual, sum(dy) and sum(dy * x̂);
    ``instances_gradient(dy, x, mean, mean_residual, rstd, weight, scale, shift)`` gives
    rstd * (dy * weight + x̂ * scale + shift). All but dy and x are (M, 1), in the accumulation
    dtype.
    """

    library: str
    """Whose arrays: ``numpy``, ``torch``, ``jax``, ``cupy``."""
    device: str
    shape: tuple[int, ...]
    dtype: str
    gamma: str | None = None
    """Dtype of gamma, None where it is absent; likewise alpha, beta, and dy in a backward call."""
    beta: str | None = None
    alpha: str | None = None
    dy: str | None = None
    groups: int = 1
    repeat: int = 1
    need: tuple[bool, ...] = ()
    """Which of the results are wanted, where that may be some."""
    epsilon: float = 0.0
    exponent: float = 1.0
    size: int = 1

    @property
    def parameters(self) -> int:
        """The number of elements of gamma and beta."""
        return self.groups * self.shape[1] // self.repeat


class Layout(NamedTuple):
    """The layout of x in memory, and its rows there."""

    shape: tuple[int, ...]
    """Groups of channels have an axis of their own before that of a group's channels."""
    axes: tuple[int, ...]
    """The normalised axes, ascending."""
    parameter_axes: tuple[int, ...]
    """Those which gamma and beta have, ascending."""
    strides: tuple[int, ...]
    """Of x, in bytes; none where these are not told."""
    dy: tuple[int, ...] | None = None
    """The strides of dy in a backward call."""
