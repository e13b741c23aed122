"""How threads claim the parts of a task that a caller shares.

A task is divided into one region per thread, and each region into parts. Each thread claims the
parts of its own region first, and then those of other regions. So the same rows are in the caches
of the same processor from call to call. The caller does the same. At the end it waits only for
parts that a thread has claimed and not finished, so it never waits for a thread that has not
started. A thread can still lose its processor while it works on a part. After a long wait for such
a part, the caller runs its tasks without helpers for a while.

A thread without work sleeps after a while, until a caller wakes it. Neither needs the interpreter
for that, whose lock the caller usually holds. The thread must not wake up on the processor of the
caller, since one of the two would wait for the other.

The pool has room for one task: a caller that finds it in use runs without helpers. Results do not
depend on which thread works on which part.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from .atomics import (
    acquire_lock,
    allow_processor,
    compare_and_swap,
    give_way,
    increment,
    load_acquire,
    nanoseconds,
    pause,
    processor,
    release_lock,
    store_release,
    words_at,
)
from .compile import OPTIONS
from .tasks import call_task
from .vector_memory import fence

#: Indices of the words of a pool. Words that different threads write are in different cache lines.
_TASK, _NUM_PARTS, _NUM_HELPERS, NUMBER, _FINISHED, OWNED, STOPPED, CLAIMS = range(0, 64, 8)
CACHE_LINE_BYTES = 64
#: Offsets from the claims of a region to the words of its helper: whether it is asleep, the lock
#: that it waits for, its number in the system, and 1 + the processor that it must not use.
ASLEEP, LOCK, THREAD, AVOIDED = 1, 2, 3, 4
#: The claims of a region are one word: the number of the task, and 16 bits each for the next part
#: and the end. So a swap that claims a part succeeds only if the part is of this task.
_BITS, _MASK = 16, (1 << 16) - 1
_MAX_NUMBER = 1 << 30

#: Most parts of a region.
_MAX_PARTS = 8
#: How often a thread looks for work before it sleeps; about 0.1 ms.
_SPIN_COUNT = 4000
#: A wait is long if it takes more than this in nanoseconds, plus three times the time of a part.
_LONG_WAIT = 300_000
#: How often a caller checks whether the last parts are finished before it yields its processor.
_MAX_SPINS = 20_000


@njit(**OPTIONS)
def _run_region(pool: Any, region: Any) -> Any:
    """Claim and run parts of a region until there are no more; return their number."""
    count = 0
    index = CLAIMS + 8 * region
    claims = load_acquire(pool, index)
    part, end = claims >> _BITS & _MASK, claims & _MASK
    while part < end:
        words, num_parts = load_acquire(pool, _TASK), load_acquire(pool, _NUM_PARTS)
        if compare_and_swap(pool, index, claims, claims + (1 << _BITS)):
            call_task(words_at(words), part, num_parts)
            increment(pool, _FINISHED)
            count += 1
        claims = load_acquire(pool, index)
        part, end = claims >> _BITS & _MASK, claims & _MASK
    return count


@njit(**OPTIONS)
def _run_regions(pool: Any, first: int) -> int:
    """Run parts of all regions, beginning with region `first`; return their number."""
    num_regions, count = load_acquire(pool, _NUM_HELPERS) + 1, 0
    for i in range(num_regions):
        count += _run_region(pool, (first + i) % num_regions)
    return count


@njit(**OPTIONS)
def help_callers(address: int, helper: int) -> None:
    """Run parts of all tasks until the pool is stopped; sleep while there are none."""
    pool, seen, idle = words_at(address), 0, 0
    while load_acquire(pool, STOPPED) == 0:
        number = load_acquire(pool, NUMBER)
        if number != seen:
            seen = number
            if helper < load_acquire(pool, _NUM_HELPERS):
                _run_regions(pool, helper + 1)
                idle = 0
        idle += 1
        if idle < _SPIN_COUNT:
            pause()
        else:
            sleep(address, helper, seen)
            idle = 0


@njit(**OPTIONS)
def sleep(address: int, helper: int, seen: int) -> None:
    """Sleep until a caller has work, unless a task came after `seen` or the pool is stopped."""
    pool, region = words_at(address), CLAIMS + 8 * (helper + 1)
    store_release(pool, region + ASLEEP, 1)
    fence()
    # A caller that came before this word was stored cannot have woken this thread.
    is_missed = load_acquire(pool, NUMBER) != seen or load_acquire(pool, STOPPED) != 0
    if not is_missed or not compare_and_swap(pool, region + ASLEEP, 1, 0):
        acquire_lock(load_acquire(pool, region + LOCK))
        avoided = load_acquire(pool, region + AVOIDED)
        if avoided != 0:
            allow_processor(0, avoided - 1, 1)
            store_release(pool, region + AVOIDED, 0)


@njit(**OPTIONS)
def wake(address: int, num_helpers: int) -> None:
    """Wake the first `num_helpers` helpers, if they sleep."""
    pool = words_at(address)
    fence()  # a thread that falls asleep from now on sees what was stored before
    here = processor()
    for helper in range(num_helpers):
        region = CLAIMS + 8 * (helper + 1)
        is_asleep = load_acquire(pool, region + ASLEEP) != 0
        if is_asleep and compare_and_swap(pool, region + ASLEEP, 1, 0):
            thread = load_acquire(pool, region + THREAD)
            if thread != 0 and allow_processor(thread, here, 0):
                store_release(pool, region + AVOIDED, here + 1)
            release_lock(load_acquire(pool, region + LOCK))


@njit(**OPTIONS)
def share(address: int, words: int, max_parts: int, num_helpers: int) -> Any:
    """Run a task in at most `max_parts` parts, with helpers unless another caller has them.

    Returns whether the wait for the last part was so long that its thread cannot have been running.
    """
    pool = words_at(address)
    if num_helpers == 0 or not compare_and_swap(pool, OWNED, 0, 1):
        call_task(words_at(words), 0, 1)
        return False
    num_regions = num_helpers + 1
    length = min(max(max_parts // num_regions, 1), _MAX_PARTS)
    num_parts, number = num_regions * length, pool[NUMBER] % _MAX_NUMBER + 1
    # All parts of the last task are claimed, so no thread reads these words before the claims.
    store_release(pool, _TASK, words)
    store_release(pool, _NUM_PARTS, num_parts)
    store_release(pool, _NUM_HELPERS, num_helpers)
    store_release(pool, _FINISHED, 0)
    for region in range(num_regions):
        first = region * length
        claims = (number << _BITS | first) << _BITS | (first + length)
        store_release(pool, CLAIMS + 8 * region, claims)
    store_release(pool, NUMBER, number)
    wake(address, num_helpers)
    start = nanoseconds()
    count = _run_regions(pool, 0)
    end, spins = nanoseconds(), 0
    while load_acquire(pool, _FINISHED) < num_parts:
        spins += 1
        if spins < _MAX_SPINS:
            pause()
        else:
            give_way()
    store_release(pool, OWNED, 0)
    if spins < _MAX_SPINS:
        return False
    each = (end - start) // max(count, 1)
    return end == 0 or nanoseconds() - end > 3 * each + _LONG_WAIT
