"""What a process does around its forks, and at its end, however it ends: the last flush.

``atexit`` covers the end of an interpreter. Children of ``multiprocessing`` that were forked skip it: they run the
finalizers of ``multiprocessing.util`` instead, and forget those that they inherited, so one is made in each child.

From Python 3.12 on, ``os.fork`` warns when the process has a second thread of any kind. So the flushers' threads, and
those that ``watch_forks`` is told of, end before a fork and start again when it has returned; what they know stays.
"""

from __future__ import annotations

import atexit
import os
import sys
import time

from ._native import after_fork_in_child, after_fork_in_parent, wait_for_calls

TYPE_CHECKING = False  # importing typing would cost more than all of this package
if TYPE_CHECKING:
    from typing import Any, Protocol

    class _Threads(Protocol):
        def before_fork(self) -> None: ...
        def after_fork(self) -> None: ...

    class _Hooks(_Threads, Protocol):
        @property
        def is_alive(self) -> bool: ...
        def at_exit(self, is_final: bool, timeout: float) -> None: ...
        def tell(self) -> None: ...


# How many seconds the end of a process waits for all its clients together.
TIMEOUT = 0.1


_watched: list[_Hooks] = []
_threads: list[_Threads] = []
_finalizer: Any = None
_is_after_fork_registered = False


def watch(hooks: _Hooks) -> None:
    """Has the hooks of a client called; those of clients that are gone are forgotten."""
    # Not first by a call that has something to tell: a child that is forked while another thread imports it would wait
    # for that thread for ever. And not by a hook of ours before a fork: logging's own would then run halfway.
    import logging  # noqa: F401

    _watched[:] = [other for other in _watched if other.is_alive]
    _watched.append(hooks)
    _watch_multiprocessing()
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        _finalize(None)
    _watch_uvicorn()


def _watch_multiprocessing() -> None:
    # A child's list of finalizers is cleared when it begins, which may be after its main module made a client; what is
    # registered here is called after that.
    global _is_after_fork_registered  # noqa: PLW0603
    util = sys.modules.get("multiprocessing.util")
    if util is not None and not _is_after_fork_registered:
        _is_after_fork_registered = True
        util.register_after_fork(_flush, _finalize)


def _finalize(_key: object) -> None:
    """Makes the finalizer of a child of ``multiprocessing``."""
    global _finalizer  # noqa: PLW0603
    util = sys.modules.get("multiprocessing.util")
    if util is not None and (_finalizer is None or not _finalizer.still_active()):
        # Any priority of 0 or more runs before the child waits for children of its own.
        _finalizer = util.Finalize(None, _flush, exitpriority=0)


def _watch_uvicorn() -> None:
    """Flushes at the end of uvicorn's shutdown: it then raises the signal again, which ends the process at once."""
    server = getattr(sys.modules.get("uvicorn.server"), "Server", None)
    shutdown = getattr(server, "shutdown", None)
    if server is None or shutdown is None or hasattr(shutdown, "flushes_metrics"):
        return

    async def shutdown_and_flush(self: object, *args: Any, **kwargs: Any) -> None:
        try:
            await shutdown(self, *args, **kwargs)
        finally:
            _flush()

    shutdown_and_flush.flushes_metrics = True  # type: ignore[attr-defined]
    server.shutdown = shutdown_and_flush


def _flush(is_final: bool = False) -> None:
    clients = [hooks for hooks in _watched if hooks.is_alive]
    if len(clients) > 1:
        # All at the same time: one that must wait for its endpoint does not take the others' time.
        for hooks in clients:
            hooks.at_exit(False, 0.0)
    deadline = time.monotonic() + TIMEOUT
    for hooks in clients:
        hooks.at_exit(is_final, deadline - time.monotonic())
    for hooks in clients:
        hooks.tell()
    if is_final:
        # Threads that are not joined may still be inside a call: the interpreter must not end below them.
        wait_for_calls(max(deadline - time.monotonic(), 0.01))


atexit.register(_flush, is_final=True)


def watch_forks(threads: _Threads) -> None:
    """Has other threads of ours end before a fork and start again after it."""
    _threads.append(threads)


def _before_fork() -> None:
    for threads in (*_threads, *_watched):
        threads.before_fork()


def after_fork() -> None:
    """Starts the threads of this process again; called once ``os.fork`` has returned."""
    for threads in (*_watched, *_threads):
        threads.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=after_fork_in_child)
    os.register_at_fork(after_in_child=_watch_multiprocessing)
    if sys.version_info >= (3, 12):
        os.register_at_fork(before=_before_fork, after_in_parent=after_fork_in_parent)
