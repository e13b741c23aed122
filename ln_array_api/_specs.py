"""What a call is, but for the values of its arrays: primitives, their specs, layouts."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

#: A primitive's name, which is the name of the backend's method and of the generic kernel.
Primitive = Literal[
    "rows_forward",
    "rows_backward",
    "channels_forward",
    "channels_inference",
    "channels_backward",
]


class RowsSpec(NamedTuple):
    """A call of a rows primitive, but for the values: what `Backend.can_run` decides by."""

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

    @property
    def parameters(self) -> int:
        """The number of elements of gamma and beta."""
        return self.groups * self.shape[1] // self.repeat

    def options(self, primitive: Primitive) -> dict[str, Any]:
        """The keyword arguments of the primitive, but for `out`."""
        particular = (
            {"epsilon": self.epsilon} if primitive == "rows_forward" else {"need": self.need}
        )
        return {"center": self.center, "groups": self.groups, "repeat": self.repeat, **particular}


class ChannelsSpec(NamedTuple):
    """A call of a channels primitive, but for the values: what `Backend.can_run` decides by."""

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
        """The keyword arguments of the primitive."""
        if primitive == "channels_backward":
            return {"need": self.need}
        return {"epsilon": self.epsilon}


Spec: TypeAlias = RowsSpec | ChannelsSpec


class Layout(NamedTuple):
    """How x lies in memory, and what its rows are there."""

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
