"""Locks that are held while a process forks, so that the child can take them.

A first call imports modules, loads a backend, and compiles, and holds a lock meanwhile. A child has
a copy of each lock, but not the thread that would release it. So a fork waits for these locks.
"""

from __future__ import annotations

import logging  # noqa: F401 # see below
import os
import threading
from typing import Any

#: Held while modules are imported and backends are loaded.
importing = threading.RLock()
#: What a backend wants held as well. Those that are loaded are all there when `importing` is held.
locks: list[Any] = []
_held: list[Any] = []


def _before_fork() -> None:
    importing.acquire()
    for lock in locks:
        lock.acquire()
        _held.append(lock)


def _after_fork() -> None:
    while _held:
        _held.pop().release()
    importing.release()


# The functions that are registered last are called first. Logging registers some for a lock of its
# own, which modules take when they are imported. It is imported first, so that a fork takes that
# lock after this one, as an import does.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork
    )
