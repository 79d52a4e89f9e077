"""The last flush, however a process ends.

``atexit`` covers the end of an interpreter. Children of ``multiprocessing`` that were forked skip it: they run the
finalizers of ``multiprocessing.util`` instead, and forget those that they inherited, so one is made in each child.
"""

from __future__ import annotations

import atexit
import os
import sys
from typing import Protocol


class _Flush(Protocol):
    def __call__(self, is_final: bool = True) -> None: ...


_flushes: list[_Flush] = []


def watch(flush: _Flush) -> None:
    """Has ``flush`` called at the end of this process, and of its children."""
    _flushes.append(flush)
    atexit.register(flush)
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        _finalize(None)


def _finalize(_key: object) -> None:
    """Makes the finalizer of a child of ``multiprocessing``."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        # Any priority of 0 or more runs before the child waits for children of its own.
        util.Finalize(None, _flush_all, exitpriority=0)


def _flush_all() -> None:
    for flush in _flushes:
        flush(is_final=False)


def _after_fork() -> None:
    # The child's list of finalizers is cleared after this, and what is registered here is called after that.
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.register_after_fork(_flush_all, _finalize)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
