"""Layer norm and RMS norm on NumPy arrays, on each backend."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from cases import BY_NAME, DTYPES, arrays

import ln_array_api as ln


class Shapes:
    """Time and peak memory of forward and backward, by shape and backend."""

    params: ClassVar = (list(BY_NAME), ["numpy", "generic"])
    param_names: ClassVar = ["shape", "backend"]

    def setup(self, shape: str, backend: str) -> None:
        self.x, self.gamma, self.beta, self.dy = arrays(BY_NAME[shape])
        self.backend = backend
        self.time_forward(shape, backend)
        _, self.mean, self.rstd = ln.layer_norm_forward(self.x, self.gamma, self.beta)
        self.time_backward(shape, backend)

    def time_forward(self, shape: str, backend: str) -> None:
        with ln.use_backend(self.backend):
            ln.layer_norm_forward(self.x, self.gamma, self.beta)

    def time_backward(self, shape: str, backend: str) -> None:
        with ln.use_backend(self.backend):
            ln.layer_norm_backward(self.dy, self.x, self.mean, self.rstd, self.gamma)

    def time_rms_norm(self, shape: str, backend: str) -> None:
        with ln.use_backend(self.backend):
            ln.rms_norm(self.x, self.gamma)

    def peakmem_forward(self, shape: str, backend: str) -> None:
        self.time_forward(shape, backend)

    def peakmem_backward(self, shape: str, backend: str) -> None:
        self.time_backward(shape, backend)


class Dtypes:
    """Time of forward and backward at 4096x1024, by dtype."""

    params: ClassVar = list(DTYPES)
    param_names: ClassVar = ["dtype"]

    def setup(self, dtype: str) -> None:
        self.x, self.gamma, self.beta, self.dy = arrays((4096, 1024), dtype)
        _, self.mean, self.rstd = ln.layer_norm_forward(self.x, self.gamma, self.beta)
        self.time_backward(dtype)

    def time_forward(self, dtype: str) -> None:
        ln.layer_norm_forward(self.x, self.gamma, self.beta)

    def time_backward(self, dtype: str) -> None:
        ln.layer_norm_backward(self.dy, self.x, self.mean, self.rstd, self.gamma)


class Growth:
    """Time of forward as the number of rows, or their length, grows and the other stays 256."""

    params: ClassVar = (["rows", "length"], [2**k for k in range(4, 17, 2)])
    param_names: ClassVar = ["grows", "to"]

    def setup(self, grows: str, to: int) -> None:
        self.x, self.gamma, self.beta, _ = arrays((to, 256) if grows == "rows" else (256, to))
        self.time_forward(grows, to)

    def time_forward(self, grows: str, to: int) -> None:
        ln.layer_norm_forward(self.x, self.gamma, self.beta)


class Overhead:
    """The time of a call without its kernel, and of importing."""

    def setup(self) -> None:
        self.x, self.gamma, self.beta, _ = arrays((8, 64))
        ln.layer_norm(self.x, self.gamma, self.beta)

    def time_small_call(self) -> None:
        ln.layer_norm(self.x, self.gamma, self.beta)

    def time_explain(self) -> None:
        ln.explain(ln.layer_norm, self.x, self.gamma, self.beta)

    def timeraw_import(self) -> str:
        return "import ln_array_api"

    def timeraw_import_and_first_call(self) -> str:
        return """
            import numpy, ln_array_api
            ln_array_api.layer_norm(numpy.ones((8, 64), numpy.float32))
        """


class Memory:
    """Peak memory of a large forward pass."""

    def peakmem_first_large_result(self) -> None:
        ln.layer_norm(np.ones((8192, 1024), np.float32))
