"""Run the rows tasks of the NumPy backend on the memory of tensors and on torch's threads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ln_array_api.backend import RowsSpec

from ..numpy import rows_dispatch
from ..numpy.config import ITEMSIZE, accumulation_dtype
from ..numpy.memory import memory_pool
from ..numpy.rows_backward import backward_task
from ..numpy.rows_forward import forward_task
from ..numpy.tasks import Task
from . import threads

_DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
#: The dtypes of NumPy arrays from the pool, since NumPy has no bfloat16.
_NUMPY_DTYPES = {"bfloat16": "int16"}
#: Bytes of a result from which its memory comes from the pool. Torch's allocator reuses smaller
#: memory soon after its release, while it is still in the cache.
POOLED = 4 << 20
#: Bytes of x from which several threads are used.
PARALLEL = 256 << 10
#: Most bytes after the words of a task, for statistics that are not returned and partial sums.
ROOM = 16 << 10


class _Rows:
    """What the forward and the backward pass share."""

    def __init__(self, spec: RowsSpec, count: int) -> None:
        self.m, self.n = spec.shape
        self.count = count
        self.size = self.m * self.n * ITEMSIZE[spec.dtype]
        self.acc_dtype = accumulation_dtype(spec.dtype)
        self.acc_torch_dtype = _DTYPES[self.acc_dtype]
        self._dtype, self._numpy_dtype = (
            _DTYPES[spec.dtype],
            _NUMPY_DTYPES.get(spec.dtype, spec.dtype),
        )
        self._is_pooled = self.size >= POOLED
        self._use_threads = self.size >= PARALLEL

    def like(self, x: Tensor) -> Tensor:
        """Return memory for a result of the shape and dtype of x."""
        if not self._is_pooled:
            return torch.empty_like(x)
        memory = torch.from_numpy(memory_pool.empty(tuple(x.shape), self._numpy_dtype))
        return memory if memory.dtype is self._dtype else memory.view(self._dtype)

    def work(self, task: Task, words: Any, address: int) -> None:
        """Run a task, on several threads if it is large enough."""
        if self._use_threads:
            parts = min(torch.get_num_threads(), self.count)
            if parts > 1:
                threads.run(task, words, parts)
                return
        task.call(address, 0, 1)


class Forward(_Rows):
    """The forward pass for a kind of call."""

    def __init__(self, spec: RowsSpec) -> None:
        m = spec.shape[0]
        super().__init__(spec, m)
        self._center = spec.center
        self._statistic = (m, 1)
        self.after = m * ITEMSIZE[self.acc_dtype]
        self._has_room = 2 * self.after <= ROOM
        self._task = Task(
            forward_task,
            rows_dispatch.forward_arguments(spec),
            m,
            room=2 * self.after if self._has_room else 0,
        )
        places = self._task.places
        self._x, self._gamma, self._beta, _, self._y, self._mean, self._rstd = places[:7]
        self._non_temporal = places[rows_dispatch.FORWARD_NON_TEMPORAL]

    def results(
        self, x: Tensor, gamma: Tensor | None, beta: Tensor | None, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return y, mean and rstd."""
        y = self.like(x) if out is None else out
        rstd = x.new_empty(self._statistic, dtype=self.acc_torch_dtype)
        mean = torch.empty_like(rstd) if self._center else None
        words = self._words(x, gamma, beta, y)
        words[self._rstd] = rstd.data_ptr()
        if mean is not None:
            words[self._mean] = mean.data_ptr()
        if out is not None and (out is x or words[self._y] % out.element_size()):
            words[self._non_temporal] = False
        self.work(self._task, words, words.buffer_info()[0])
        return y, mean, rstd

    def y(
        self,
        x: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        statistics: Tensor | None = None,
    ) -> Tensor:
        """Return only y; write mean, then rstd, to `statistics` if that is given."""
        y = self.like(x)
        words = self._words(x, gamma, beta, y)
        address, _ = words.buffer_info()
        if statistics is None and not self._has_room:
            statistics = self.statistics(x)
        mean = address + self._task.room if statistics is None else statistics.data_ptr()
        if self._center:
            words[self._mean] = mean
        words[self._rstd] = mean + self.after
        self.work(self._task, words, address)
        return y

    def statistics(self, x: Tensor) -> Tensor:
        """Return memory for mean and rstd on x's device, whichever is torch's default device."""
        return x.new_empty(2 * self.m, dtype=self.acc_torch_dtype)

    def _words(self, x: Tensor, gamma: Tensor | None, beta: Tensor | None, y: Tensor) -> Any:
        words = self._task.words[:]
        words[self._x], words[self._y] = x.data_ptr(), y.data_ptr()
        if gamma is not None:
            words[self._gamma] = gamma.data_ptr()
        if beta is not None:
            words[self._beta] = beta.data_ptr()
        return words


class Backward(_Rows):
    """The backward pass for a kind of call."""

    def __init__(self, spec: RowsSpec) -> None:
        blocks = rows_dispatch.task_count("rows_backward", spec)
        super().__init__(spec, blocks)
        self._need, self._parameters = spec.need, spec.parameters
        partials = rows_dispatch.partial_count(spec)
        sums = partials * spec.parameters
        bytes_of_sums = sums * ITEMSIZE[self.acc_dtype]
        # A single partial sum of a parameter is its gradient; several are reduced to it.
        self._sums = sum(spec.need[1:]) * sums if partials > 1 else 0
        self._apart = bytes_of_sums
        self._has_room = sum(spec.need[1:]) * bytes_of_sums <= ROOM
        self._task = Task(
            backward_task,
            rows_dispatch.backward_arguments(spec),
            blocks,
            room=self._sums * ITEMSIZE[self.acc_dtype] if self._has_room else 0,
        )
        places = self._task.places
        self._dy, self._x, self._mean, self._rstd, self._gamma, _, self._dx = places[:7]
        self._tables = places[rows_dispatch.DGAMMA], places[rows_dispatch.DBETA]
        self._results = places[rows_dispatch.DGAMMA_RESULT], places[rows_dispatch.DBETA_RESULT]

    def results(
        self, dy: Tensor, x: Tensor, mean: Tensor | None, rstd: Tensor, gamma: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return dx, dgamma and dbeta where needed, the latter two in the accumulation dtype."""
        return self.gradients(dy, x, 0 if mean is None else mean.data_ptr(), rstd.data_ptr(), gamma)

    def gradients(
        self, dy: Tensor, x: Tensor, mean: int, rstd: int, gamma: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the same results, given the addresses of the statistics."""
        words = self._task.words[:]
        address, _ = words.buffer_info()
        words[self._dy], words[self._x], words[self._rstd] = dy.data_ptr(), x.data_ptr(), rstd
        if self._mean >= 0:
            words[self._mean] = mean
        if gamma is not None:
            words[self._gamma] = gamma.data_ptr()
        dx = None
        if self._need[0]:
            dx = self.like(x)
            words[self._dx] = dx.data_ptr()
        sums = 0
        if self._sums:
            if self._has_room:
                sums = address + self._task.room
            else:
                memory = x.new_empty(self._sums, dtype=self.acc_torch_dtype)
                sums = memory.data_ptr()
        found: list[Tensor | None] = [dx]
        for needed, table, result in zip(self._need[1:], self._tables, self._results, strict=True):
            if not needed:
                found.append(None)
                continue
            total = x.new_empty(self._parameters, dtype=self.acc_torch_dtype)
            found.append(total)
            if sums:
                words[table], words[result] = sums, total.data_ptr()
                sums += self._apart
            else:
                words[table] = words[result] = total.data_ptr()
        self.work(self._task, words, address)
        return tuple(found)  # type: ignore[return-value]
