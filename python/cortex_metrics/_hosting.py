"""How ``cortex-serve`` lives as a process: its port, its signals, its workers, its end, whatever a prediction does."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from . import _exit

if TYPE_CHECKING:
    from .asgi import App, Receive, Send

logger = logging.getLogger("cortex_metrics.serve")

HEALTHCHECK_SECONDS = 120
"""A worker that lets no other thread run for so long is replaced. A model that is read in one piece takes its time."""

BODY_BYTES_MAX = 256 << 20
"""What a request's body may be long, unless told otherwise: one request is not to take all of the memory."""

# What is cancelled at the end of the grace gets so long to end.
_LAST_SECONDS = 1.0
_EXIT_FAILURE = 1


class CannotListenError(Exception):
    """The address cannot be had; the message says why."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that has the address and does not listen yet: nobody is to wait for a model that is being loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        raise CannotListenError(_why(error)) from error
    listener.set_inheritable(True)
    return listener


def endpoint_of(listener: socket.socket) -> str:
    """The URL at which it answers; of all addresses, the machine's name."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104
        host = socket.gethostname()
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


class EndsInTime:
    """An app whose process ends soon after its shutdown, also when a prediction never does.

    The server waits for what runs, and then cancels it; but a thread cannot be cancelled, and Python waits for it.
    """

    def __init__(self, app: App, running: Callable[[], int]) -> None:
        """``running`` tells how many predictions are under way."""
        self.app = app
        self._running = running

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serves one connection scope."""
        try:
            await self.app(scope, receive, send)
        finally:
            if scope["type"] == "lifespan":
                threading.Thread(target=self._end, name="cortex-end", daemon=True).start()

    def _end(self) -> None:
        time.sleep(_LAST_SECONDS)
        if running := self._running():
            logger.error("predictions given up that did not end in the time of grace (--grace-seconds): %d", running)
            _exit._flush()
            logging.shutdown()
            os._exit(_EXIT_FAILURE)


def serve_alone(app: App, listener: socket.socket, ready: str, options: dict[str, Any]) -> None:
    """Serves in this process until a signal ends it."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, **options))
    for number in (signal.SIGINT, signal.SIGTERM):
        # Uvicorn stops in good order and raises the signal again: then the interpreter ends in good order too.
        signal.signal(number, _end)
    if _is_hangup_heard():
        signal.signal(signal.SIGHUP, server.handle_exit)
    _listen(listener)
    print(ready, flush=True)
    server.run(sockets=[listener])


def serve_with_workers(listener: socket.socket, ready: str, options: dict[str, Any]) -> None:
    """Serves ``app_from_settings`` in several processes until a signal ends them."""
    import uvicorn
    from uvicorn.supervisors.multiprocess import Multiprocess, Process

    look_after = Multiprocess.keep_subprocess_alive

    def look_after_and_tell(self: Multiprocess) -> None:
        for process in self.processes:
            code = process.process.exitcode
            if code not in (None, 0, uvicorn.config.STARTUP_FAILURE) and not self.should_exit.is_set():
                how = f"by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"with exit code {code}"
                logger.warning("worker %s ended %s; another is started", process.pid, how)
        look_after(self)

    # Uvicorn would load the file anew, and serve what may be another version by the name of this one.
    hangup: Any = Multiprocess.handle_term if _is_hangup_heard() else _ignore
    pulse: Any = _has_pulse
    Multiprocess.handle_hup = hangup  # type: ignore[method-assign]
    Multiprocess.keep_subprocess_alive = look_after_and_tell  # type: ignore[method-assign]
    Process.is_alive = pulse  # type: ignore[method-assign]
    _listen(listener)
    threading.Thread(target=_announce_when_answered, args=(listener, ready), daemon=True).start()
    options = {**options, "timeout_worker_healthcheck": HEALTHCHECK_SECONDS, "fd": listener.fileno()}
    uvicorn.run("cortex_metrics.serve:app_from_settings", factory=True, **options)


def begin_worker() -> None:
    """Called in a worker: it ends with its parent, which alone hears of terminals that are gone."""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def follow() -> None:
        parent.join()
        logger.error("the parent process %s is gone: this worker ends", parent.pid)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, name="cortex-parent", daemon=True).start()


def _is_hangup_heard() -> bool:
    """Whether a terminal that is gone ends this process: not under ``nohup``."""
    return hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN


def _has_pulse(self: Any, timeout: float) -> bool:
    """Whether a worker of uvicorn's lives and has answered within this time, without waiting for it.

    Uvicorn's own waits: with so long a time, no signal would be heard, nor a worker missed that dies meanwhile.
    """
    if not self.process.is_alive():
        return False
    asked: float | None = getattr(self, "asked", None)
    try:
        if asked is not None and self.parent_conn.poll():
            self.parent_conn.recv()
            asked = None
        if asked is None:
            self.parent_conn.send(b"ping")
            asked = time.monotonic()
    except (OSError, EOFError):
        return False
    self.asked = asked
    return time.monotonic() - asked < timeout


def _ignore(_self: object) -> None:
    return


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


def _listen(listener: socket.socket) -> None:
    try:
        listener.listen(2048)
    except OSError as error:  # another process, which had bound the same address, was first
        raise CannotListenError(_why(error)) from error


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return "another program does: end it, or take another port (--port 0 finds one)"
    return getattr(error, "strerror", None) or str(error)


def _announce_when_answered(listener: socket.socket, ready: str) -> None:
    """Prints the line once a worker answers; until then the request waits in the listener's queue."""
    with socket.socket(listener.family, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(listener.getsockname())
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            if connection.recv(1):
                print(ready, flush=True)
        except OSError:
            # No worker could start: that is told by who waits for them.
            return
