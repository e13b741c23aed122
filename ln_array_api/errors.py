"""The errors that ln_array_api adds to Python's own."""


class BackendError(RuntimeError):
    """A backend was asked for by name and cannot be had."""


class BackendWarning(RuntimeWarning):
    """A backend broke while loading; the call runs on the generic kernels instead."""


class DeviceMismatchError(ValueError):
    """The arrays of one call live on different devices."""
