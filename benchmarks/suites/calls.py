"""Ways to call layer norm on NumPy arrays: other axes, `out=`, busy or idle threads, first call."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import ClassVar

import numpy as np
from cases import BY_NAME, arrays

import ln_array_api as ln

#: Shapes with the axis that is normalised.
AXES = {
    "1024x4096 axis 0": ((1024, 4096), 0),
    "64x256x28x28 axis 1": ((64, 256, 28, 28), 1),
    "64x256x56x56 axis 1": ((64, 256, 56, 56), 1),
    "256x128x64 axis 2": ((256, 128, 64), 2),
    "256x128x64 axes 0 and 2": ((256, 128, 64), (0, 2)),
}
OUT_SHAPES = ["8x64", "512x768", "32768x1024"]
BUSY_SHAPES = ["128x256", "512x768", "4096x1024"]


class Axes:
    """Time of forward and backward where rows are not contiguous."""

    params: ClassVar = list(AXES)
    param_names: ClassVar = ["call"]

    def setup(self, call: str) -> None:
        shape, self.axis = AXES[call]
        rng = np.random.default_rng(0)
        self.x = 1 + rng.standard_normal(shape, np.float32)
        self.dy = rng.standard_normal(shape, np.float32)
        _, self.mean, self.rstd = ln.layer_norm_forward(self.x, axis=self.axis)
        self.time_backward(call)

    def time_forward(self, call: str) -> None:
        ln.layer_norm_forward(self.x, axis=self.axis)

    def time_backward(self, call: str) -> None:
        ln.layer_norm_backward(self.dy, self.x, self.mean, self.rstd, axis=self.axis)


class Out:
    """Time of forward into new memory, into `out`, and in place."""

    params: ClassVar = (OUT_SHAPES, ["fresh", "out", "in place"])
    param_names: ClassVar = ["shape", "target"]

    def setup(self, shape: str, target: str) -> None:
        self.x, self.gamma, self.beta, _ = arrays(BY_NAME[shape])
        self.out = {"fresh": None, "out": np.empty_like(self.x), "in place": self.x}[target]
        self.time_forward(shape, target)

    def time_forward(self, shape: str, target: str) -> None:
        ln.layer_norm(self.x, self.gamma, self.beta, out=self.out)


class Busy:
    """Time of forward while two other processes are busy, on all threads and on one."""

    params: ClassVar = (BUSY_SHAPES, ["all", "one"])
    param_names: ClassVar = ["shape", "threads"]

    def setup(self, shape: str, threads: str) -> None:
        import numba  # has to be installed for threads

        self.before = numba.get_num_threads()
        numba.set_num_threads(1 if threads == "one" else self.before)
        self.x, self.gamma, self.beta, _ = arrays(BY_NAME[shape])
        self.time_forward(shape, threads)
        spin = [sys.executable, "-c", "while True: pass"]
        self.others = [subprocess.Popen(spin) for _ in range(2)]

    def teardown(self, shape: str, threads: str) -> None:
        import numba

        for other in self.others:
            other.kill()
            other.wait()
        numba.set_num_threads(self.before)

    def time_forward(self, shape: str, threads: str) -> None:
        ln.layer_norm_forward(self.x, self.gamma, self.beta)


class Pauses:
    """Time of twenty calls after a pause in which all threads start to sleep."""

    params: ClassVar = ["512x768", "4096x1024"]
    param_names: ClassVar = ["shape"]
    number, warmup_time = 20, 0

    def setup(self, shape: str) -> None:
        self.x, self.gamma, self.beta, self.dy = arrays(BY_NAME[shape])
        _, self.mean, self.rstd = ln.layer_norm_forward(self.x, self.gamma, self.beta)
        self.time_backward(shape)
        time.sleep(0.01)

    def time_forward(self, shape: str) -> None:
        ln.layer_norm_forward(self.x, self.gamma, self.beta)

    def time_backward(self, shape: str) -> None:
        ln.layer_norm_backward(self.dy, self.x, self.mean, self.rstd, self.gamma)


class FirstCall:
    """Time of a process that makes the first call, without cached kernels."""

    timeout = 300

    def timeraw_forward(self) -> str:
        return """
            import os, tempfile
            os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp()
            import numpy, ln_array_api
            x, p = numpy.ones((8, 64), numpy.float32), numpy.ones(64, numpy.float32)
            ln_array_api.layer_norm_forward(x, p, p)
        """
