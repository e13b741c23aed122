"""Faults of the NumPy backend outside of its kernels: calls, threads, memory and copies."""

from __future__ import annotations

from fault import NUMPY, Fault, suite, unit

CALLS, KINDS, LAYOUT, THREADS, MEMORY, CHANNEL_CALLS, COLUMN_CALLS = (
    f"{NUMPY}/{name}.py"
    for name in ("calls", "kinds", "layout", "threads", "memory", "channel_calls", "column_calls")
)

OF_CALLS = (
    Fault(
        "blocks of rows depend on the number of threads",
        CALLS,
        "m // groups // 4))",
        "m // groups // (2 * numba.config.NUMBA_NUM_THREADS)))",
        unit("backends/numpy/test_threads.py", "test_bits"),
    ),
    Fault(
        "blocks of columns depend on the number of threads",
        COLUMN_CALLS,
        "self.rows = -(-max(ROWS, -(-m // BLOCKS)) // RUN) * RUN",
        "self.rows = -(-max(ROWS, -(-m // kind.at_once)) // RUN) * RUN",
        unit("backends/numpy/test_channels.py", "threshold and 2500 and float64"),
    ),
    Fault(
        "half of the rows run on one thread alone",
        CALLS,
        "serial(*arrays, *constants, past_the_cache, 0, m)",
        "serial(*arrays, *constants, past_the_cache, 0, -(-m // 2))",
        suite("test_accuracy and test_forward_lengths and bfloat16", backend="numpy"),
    ),
    Fault(
        "gradients of parameters are those of all blocks",
        CALLS,
        "return sums[:parameters] if keeps else sums[:parameters].copy()",
        "return sums[-parameters:] if keeps else sums[:parameters].copy()",
        suite("test_many_rows and layer_norm", backend="numpy"),
    ),
    Fault(
        "a call of one task of many is run without threads",
        KINDS,
        "alone(*given, 0, count)",
        "alone(*given, 0, max(count - 1, 1))",
        suite("test_family_accuracy and test_cases and batch_norm", backend="numpy"),
    ),
    Fault(
        "short channels of many columns are taken as columns without end",
        CHANNEL_CALLS,
        "SHORT if c * s <= COLUMNS else SHORT_IF_MANY",
        "SHORT",
        unit("backends/numpy/test_channels.py", "swept_by_columns"),
    ),
    Fault(
        "groups of many columns are read where they lie",
        COLUMN_CALLS,
        "k > COLUMNS or not spec.center",
        "not spec.center",
        unit("backends/numpy/test_column_calls.py", "where_it_lies"),
    ),
)

OF_LAYOUT = (
    Fault(
        "the last column of a transposed array is not copied",
        LAYOUT,
        "for j in range(left, min(left + _BLOCK, n)):",
        "for j in range(left, min(left + _BLOCK, n - 1)):",
        unit("backends/numpy/test_layout.py"),
    ),
    Fault(
        "the last block of rows of a transposed array is not copied",
        LAYOUT,
        "for top in range(0, m, _BLOCK):",
        "for top in range(0, m - _BLOCK + 1, _BLOCK):",
        unit("backends/numpy/test_layout.py"),
    ),
    Fault(
        "axes that do not follow each other are merged",
        LAYOUT,
        "if before_step == length * step:",
        "if before_step >= length * step:",
        unit("backends/numpy/test_layout.py"),
    ),
    Fault(
        "swapped bytes are copied as they are",
        LAYOUT,
        "x.flags.aligned and x.dtype.isnative",
        "x.flags.aligned",
        unit("backends/numpy/test_layout.py"),
    ),
)

OF_THREADS = (
    Fault(
        "a child goes parallel where OpenMP does not survive a fork",
        THREADS,
        '_may_go_parallel = _may_go_parallel and numba.threading_layer() != "omp"',
        "_may_go_parallel = _may_go_parallel and bool(numba.threading_layer())",
        unit("backends/numpy/test_threads.py", "after_a_fork"),
    ),
    Fault(
        "a child waits for a lock of its parent",
        THREADS,
        "    global _lock, _may_go_parallel\n    _lock = threading.Lock()\n",
        "    global _may_go_parallel\n",
        unit("backends/numpy/test_threads.py", "after_a_fork"),
    ),
    Fault(
        "the work queue runs for several threads at once",
        THREADS,
        '_THREAD_SAFE = ("omp", "tbb")',
        '_THREAD_SAFE = ("omp", "tbb", "workqueue")',
        unit("backends/numpy/test_threads.py", "one_at_a_time"),
    ),
    Fault(
        "OpenMP comes first though somebody has asked for another layer",
        THREADS,
        "        and not asked_for\n",
        "",
        unit("backends/numpy/test_threads.py", "priority"),
    ),
)

OF_MEMORY = (
    Fault(
        "a result takes memory of any size",
        MEMORY,
        "if self._free[place].nbytes == size:",
        "if self._free[place].nbytes >= size:",
        unit("backends/numpy/test_memory.py"),
    ),
    Fault(
        "memory that is taken stays free",
        MEMORY,
        "memory = self._free.pop(place)",
        "memory = self._free[place]",
        unit("backends/numpy/test_memory.py", "live_arrays"),
    ),
    Fault(
        "a lower limit waits for the next result",
        MEMORY,
        "while (self._returned or self._free_bytes > self._limit) and self._lock.acquire(False):",
        "while self._returned and self._lock.acquire(False):",
        unit("backends/numpy/test_memory.py"),
    ),
    Fault(
        "the latest memory is freed first",
        MEMORY,
        "self._free.pop(0).nbytes",
        "self._free.pop().nbytes",
        unit("backends/numpy/test_memory.py"),
    ),
    Fault(
        "a view of a loan gives the memory back",
        MEMORY,
        "        return np.ndarray(shape, dtype, loan)",
        "        return np.frombuffer(memory.aligned, dtype, math.prod(shape)).reshape(shape)",
        unit("backends/numpy/test_memory.py"),
    ),
    Fault(
        "a child waits for a lock that nobody holds",
        MEMORY,
        "        # Another thread of the parent may have held the lock. It does not exist here.\n"
        "        self._lock = threading.Lock()\n",
        "        pass\n",
        unit("backends/numpy/test_memory.py", "child"),
    ),
)

FAULTS = (*OF_CALLS, *OF_LAYOUT, *OF_THREADS, *OF_MEMORY)
