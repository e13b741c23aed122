"""What no thread may be at while another forks the process: the child would wait for it forever.

A first call imports modules, loads a backend, and compiles. Each takes a lock, and a child has the
locks as they were, without the thread that would let them go. So who forks takes them first.
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


# What is registered last is called first. A module that is imported may take the lock of logging,
# which registers functions too: it is imported before, so that who forks takes that lock second.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork
    )
