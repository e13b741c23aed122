"""Faults of the NumPy backend outside of its kernels: calls, threads, memory and copies."""

from __future__ import annotations

from fault import NUMPY, Fault, suite, unit

ROWS, TASKS, ARRAY_TASKS, COPY, THREADS, CLAIMS, MEMORY, CHANNELS, COLUMNS = (
    f"{NUMPY}/{name}.py"
    for name in (
        *("rows_dispatch", "tasks", "array_tasks", "contiguous_copy", "threads"),
        *("claims", "memory", "channels_dispatch", "columns_dispatch"),
    )
)

OF_CALLS = (
    Fault(
        "uneven parts leave rows out",
        TASKS,
        "builder.sdiv(builder.mul(count, part), args[3])",
        "builder.mul(builder.sdiv(count, args[3]), part)",
        suite("test_large and test_rows and 1000", backend="numpy"),
    ),
    Fault(
        "who finishes the first part adds up the sums of all",
        TASKS,
        "        if increment(words, FINISHED) == num_parts - 1:",
        "        if increment(words, FINISHED) == 0:",
        suite("test_large and test_rows and layer_norm", backend="numpy"),
    ),
    Fault(
        "blocks of rows depend on the number of threads",
        ROWS,
        "m // groups // 4))",
        "m // groups // (2 * int(__import__('os').environ['NUMBA_NUM_THREADS']))))",
        unit("backends/numpy/test_threads.py", "test_bits"),
    ),
    Fault(
        "blocks of columns depend on the number of threads",
        COLUMNS,
        "rows = -(-max(ROWS, -(-m // BLOCKS)) // TERMS_PER_FLUSH) * TERMS_PER_FLUSH",
        "rows = -(-max(ROWS, -(-m // context.max_parts)) // TERMS_PER_FLUSH) * TERMS_PER_FLUSH",
        unit("backends/numpy/test_channels.py", "threshold and 2500 and float64"),
    ),
    Fault(
        "a small call runs the first of two parts",
        ARRAY_TASKS,
        "    call_task(words, 0, 1)",
        "    call_task(words, 0, 2)",
        suite("test_forward_lengths and bfloat16", backend="numpy"),
    ),
    Fault(
        "every array is the first",
        ARRAY_TASKS,
        "words_at(arrays)[_ITEMS + i]",
        "words_at(arrays)[_ITEMS]",
        unit("backends/numpy/test_tasks.py"),
    ),
    Fault(
        "short channels of many columns always run by columns",
        CHANNELS,
        "SHORT if c * s <= COLUMNS else SHORT_IF_MANY",
        "SHORT",
        unit("backends/numpy/test_channels.py", "swept_by_columns"),
    ),
    Fault(
        "groups of many columns are read in place",
        COLUMNS,
        "k > COLUMNS or not spec.center",
        "not spec.center",
        unit("backends/numpy/test_columns_dispatch.py", "where_it_lies"),
    ),
)

OF_LAYOUT = (
    Fault(
        "the last column of a transposed array is not copied",
        COPY,
        "for j in range(left, min(left + _BLOCK, n)):",
        "for j in range(left, min(left + _BLOCK, n - 1)):",
        unit("backends/numpy/test_contiguous_copy.py"),
    ),
    Fault(
        "the last block of rows of a transposed array is not copied",
        COPY,
        "for top in range(0, m, _BLOCK):",
        "for top in range(0, m - _BLOCK + 1, _BLOCK):",
        unit("backends/numpy/test_contiguous_copy.py"),
    ),
    Fault(
        "axes that do not follow each other are merged",
        COPY,
        "if before_step == length * step:",
        "if before_step >= length * step:",
        unit("backends/numpy/test_contiguous_copy.py"),
    ),
    Fault(
        "swapped bytes are copied as they are",
        COPY,
        "x.flags.aligned and x.dtype.isnative",
        "x.flags.aligned",
        unit("backends/numpy/test_contiguous_copy.py"),
    ),
)

OF_THREADS = (
    Fault(
        "a forked child expects the threads of its parent",
        THREADS,
        "    _pool, _alone_until = _Pool(), 0.0",
        "    _alone_until = 0.0",
        unit("backends/numpy/test_threads.py", "children or child_of_a_child"),
    ),
    Fault(
        "threads do not wake",
        CLAIMS,
        "            release_lock(load_acquire(pool, region + LOCK))\n",
        "            pass\n",
        unit("backends/numpy/test_claims.py", "wake_again"),
    ),
    Fault(
        "a thread sleeps although there is a task",
        CLAIMS,
        "is_missed = load_acquire(pool, NUMBER) != seen or",
        "is_missed =",
        unit("backends/numpy/test_claims.py", "fell_asleep"),
    ),
    Fault(
        "a thread wakes up on the processor of the caller",
        CLAIMS,
        "allow_processor(thread, here, 0)",
        "allow_processor(thread, -1, 0)",
        unit("backends/numpy/test_claims.py", "processor_of_its_caller"),
    ),
    Fault(
        "a thread never regains its processor",
        CLAIMS,
        "            allow_processor(0, avoided - 1, 1)\n",
        "",
        unit("backends/numpy/test_claims.py", "get_back"),
    ),
    Fault(
        "a thread without work never sleeps",
        CLAIMS,
        "            seen = number\n            if helper < load_acquire(pool, _NUM_HELPERS):\n",
        "            if helper < load_acquire(pool, _NUM_HELPERS):\n"
        "                seen = number\n",
        unit("backends/numpy/test_claims.py", "wake_again"),
    ),
    Fault(
        "every wait counts as long",
        CLAIMS,
        "nanoseconds() - end > 3 * each + _LONG_WAIT",
        "nanoseconds() - end > 0",
        unit("backends/numpy/test_claims.py", "long_parts"),
    ),
    Fault(
        "a caller uses threads even after a long wait",
        THREADS,
        "    _alone_until = perf_counter() + _PAUSE_SECONDS",
        "    _alone_until = 0.0",
        unit("backends/numpy/test_claims.py", "waited_long"),
    ),
    Fault(
        "Numba is asked for the number of threads, and starts its own",
        THREADS,
        "known = parallel._is_initialized",
        "known = True",
        unit("backends/numpy/test_threads.py", "numba_are_not_started"),
    ),
    Fault(
        "a pool that has stopped starts threads",
        THREADS,
        "count and not self._stopped:",
        "count:",
        unit("backends/numpy/test_claims.py", "has_stopped"),
    ),
    Fault(
        "a part is claimed without compare-and-swap",
        CLAIMS,
        "if compare_and_swap(pool, index, claims, claims + (1 << _BITS)):",
        "if store_release(pool, index, claims + (1 << _BITS)) is None:",
        unit("backends/numpy/test_claims.py", "run_once"),
    ),
    Fault(
        "a caller does not wait for parts of other threads",
        CLAIMS,
        "while load_acquire(pool, _FINISHED) < num_parts:",
        "while load_acquire(pool, _FINISHED) < 1:",
        unit("backends/numpy/test_claims.py", "run_once or waited_long"),
    ),
    Fault(
        "a pool is used by two callers at once",
        CLAIMS,
        "or not compare_and_swap(pool, OWNED, 0, 1):",
        "or not compare_and_swap(pool, OWNED, pool[OWNED], 1):",
        unit("backends/numpy/test_claims.py", "another_caller"),
    ),
    Fault(
        "all tasks have the same number",
        CLAIMS,
        "pool[NUMBER] % _MAX_NUMBER + 1",
        "1",
        unit("backends/numpy/test_claims.py", "fell_asleep"),
    ),
)

OF_MEMORY = (
    Fault(
        "a result takes memory of any size",
        MEMORY,
        "if free[place].nbytes == size:",
        "if free[place].nbytes >= size:",
        unit("backends/numpy/test_memory.py"),
    ),
    Fault(
        "memory in use stays in the list of free memory",
        MEMORY,
        "buffer = free.pop(place)",
        "buffer = free[place]",
        unit("backends/numpy/test_memory.py", "live_arrays"),
    ),
    Fault(
        "a lower limit has no effect until the next result",
        MEMORY,
        "while (self._returned or self._free_bytes > self._limit) and self._lock.acquire(False):",
        "while self._returned and self._lock.acquire(False):",
        unit("backends/numpy/test_memory.py"),
    ),
    Fault(
        "the most recent memory is freed first",
        MEMORY,
        "self._free.pop(0).nbytes",
        "self._free.pop().nbytes",
        unit("backends/numpy/test_memory.py"),
    ),
    Fault(
        "a view returns the memory to the pool",
        MEMORY,
        "        return np.ndarray(shape, dtype, base)",
        "        return np.frombuffer(buffer.aligned, dtype, math.prod(shape)).reshape(shape)",
        unit("backends/numpy/test_memory.py"),
    ),
    Fault(
        "a forked child waits for a lock that no thread holds",
        MEMORY,
        "        # Another thread of the parent may have held the lock. It does not exist here.\n"
        "        self._lock = threading.Lock()\n",
        "        pass\n",
        unit("backends/numpy/test_memory_of_threads.py", "child"),
    ),
)

FAULTS = (*OF_CALLS, *OF_LAYOUT, *OF_THREADS, *OF_MEMORY)
