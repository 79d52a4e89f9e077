"""What every request middleware records, whatever the server's protocol.

``RequestMetrics`` owns the series of one API in one process: it counts requests as they begin and end, and every 10
seconds it records what is in flight and that the replica lives. ``Middleware`` is what the two middlewares have in
common; ``asgi.py`` and ``wsgi.py`` know when a request begins and ends.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import threading
import weakref
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any, Protocol

from ._exit import watch_forks
from ._replica import this_replica
from ._types import Metrics

try:
    import psutil
except ModuleNotFoundError:  # the extra `serve` has it
    psutil = None  # type: ignore[assignment]

logger = logging.getLogger("cortex_metrics")

RECORD_SECONDS = 10.0
"""How often in-flight requests and the replica's life are recorded."""

UNMATCHED = "unmatched"
"""The route of a request that no route took."""

_KNOWN_LABELS_MAX = 4096
# A fork waits so long at most for a record that is under way.
_PAUSE_SECONDS = 1.0


class _Record(Protocol):
    def __call__(self, metric: str, value: float, tags: dict[str, str]) -> None: ...


class RequestMetrics:
    """The request metrics of one API in one process and, anew, in its forks.

    Args:
        client: Where they go.
        api_name: The API; without it ``CORTEX_API_NAME``, then ``default``.
        api_id: Its version; without it ``CORTEX_API_ID``, then empty.
        endpoint: Where the API answers, shown by ``cortex get API_NAME``.
        replica: The id of this replica, shared by all its workers; without it ``CORTEX_REPLICA_ID``, then
            that of the server whose worker this process is.
        replicas_requested: How many replicas the operator asked for; without it ``CORTEX_REPLICAS_REQUESTED``.
    """

    def __init__(
        self,
        client: Metrics,
        *,
        api_name: str | None = None,
        api_id: str | None = None,
        endpoint: str | None = None,
        replica: str | None = None,
        replicas_requested: int | None = None,
    ) -> None:
        # Our clients take the reserved names there, and only there; a client of the user's own just gets the calls.
        system = getattr(client, "_system", client)
        self._increment: _Record = system.increment
        self._gauge: _Record = system.gauge
        self._histogram: _Record = system.histogram
        self._labels = {
            "api_name": api_name or os.environ.get("CORTEX_API_NAME") or "default",
            "api_id": api_id or os.environ.get("CORTEX_API_ID") or "",
        }
        self._known_labels: dict[tuple[int, str | None], dict[str, str]] = {}
        own, started = this_replica()
        self._replica_labels = {**self._labels, "replica": replica or os.environ.get("CORTEX_REPLICA_ID") or own}
        self._info_labels = {**self._labels, "endpoint": endpoint} if endpoint else None
        # A worker that is replaced belongs to the replica that its parent started.
        self._started = _number("CORTEX_REPLICA_START_SECONDS") or started
        requested = replicas_requested if replicas_requested is not None else _number("CORTEX_REPLICAS_REQUESTED")
        self._requested = requested
        self._begin_process()
        _instances.add(self)

    def _begin_process(self) -> None:
        """What belongs to one process: its locks, its counts, its name. A child of a fork begins anew."""
        # Guards the record and its thread. No request takes it: in the middle of a record the garbage collector may end
        # one that a server forgot.
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._is_paused = False
        # As long as there are requests in flight: what a list does is one step for all threads, at a tenth of a lock.
        self._flying: list[None] = []
        self._peak = 0
        process = f"{os.getpid()}-{secrets.token_hex(2)}"
        self._process_labels = {**self._replica_labels, "process": process}
        self._process = psutil.Process() if psutil else None
        self._cpu_seconds = 0.0

    def start(self) -> None:
        """Begins to record: the codes 200, 400 and 500 at 0, and every 10 seconds that this replica lives."""
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is not None:
                return
            for code in (200, 400, 500):
                self._increment("cortex_api_requests_total", 0, self._labels_of(code, None))
            self._record()
            self._start_thread()

    def _start_thread(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=_record_until, args=(weakref.ref(self), self._stop), name="cortex-requests", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError as error:
            # A process at its limit of threads still answers: it only goes without this record.
            logger.warning("in-flight requests of %s are not recorded: %s", self._labels["api_name"], error)

    def stop(self) -> None:
        """Ends the record; ``start()`` begins it again."""
        with self._lock:
            self._stop.set()
            self._thread = None

    def before_fork(self) -> None:
        """Ends the thread for now: whoever forks has no thread of ours."""
        if self._thread is not None and self._thread.is_alive():
            self._stop.set()
            self._thread.join(_PAUSE_SECONDS)
            self._is_paused = True

    def after_fork(self) -> None:
        """Goes on with the record."""
        if self._is_paused:
            self._is_paused = False
            self._start_thread()

    def began(self) -> float:
        """A request began. Gives the time for the other methods, in seconds of ``time.perf_counter``."""
        flying = self._flying
        flying.append(None)
        in_flight = len(flying)
        # No max(), whose call would let another thread in between.
        if in_flight > self._peak:  # noqa: PLR1730
            self._peak = in_flight
        return perf_counter()

    def first_byte(self, began: float, route: str | None = None) -> None:
        """The first byte of the response left."""
        seconds = perf_counter() - began
        labels = self._labels if route is None else self._labels_of(0, route)
        self._histogram("cortex_api_request_first_byte_seconds", seconds, labels)

    def queued(self, began: float, route: str | None = None) -> None:
        """The request is being worked on."""
        seconds = perf_counter() - began
        self._histogram("cortex_api_request_queue_seconds", seconds, self._labels_of(0, route))

    def ended(self, began: float, code: int, route: str | None = None) -> None:
        """The request ended with this response code: its last byte left, or nobody waits for it any more."""
        seconds = perf_counter() - began
        # None, in a fork of the process where it began.
        del self._flying[-1:]
        labels = self._labels if route is None else self._labels_of(0, route)
        self._histogram("cortex_api_request_duration_seconds", seconds, labels)
        labels = self._known_labels.get((code, route)) or self._labels_of(code, route)
        self._increment("cortex_api_requests_total", 1, labels)

    def _labels_of(self, code: int, route: str | None) -> dict[str, str]:
        """The labels with this code, 0 for none, and this route."""
        if route is None and not code:
            return self._labels
        labels = self._known_labels.get((code, route))
        if labels is None:
            labels = dict(self._labels)
            if route is not None:
                labels["route"] = route
            if code:
                # int(): before Python 3.11 the text of an http.HTTPStatus is its name.
                labels["response_code"] = str(int(code)) if 100 <= code <= 599 else "other"
            # Whatever integer an app takes for a code must not fill the memory, nor what it takes for a route.
            if len(self._known_labels) < _KNOWN_LABELS_MAX:
                self._known_labels[code, route] = labels
        return labels

    def _record(self) -> None:
        peak, self._peak = self._peak, 0
        in_flight = len(self._flying)
        if in_flight > self._peak:  # noqa: PLR1730 (as above)
            self._peak = in_flight
        self._gauge("cortex_api_in_flight_requests", in_flight, self._process_labels)
        self._gauge("cortex_api_in_flight_requests_peak", max(peak, in_flight), self._process_labels)
        self._gauge("cortex_api_replica_start_timestamp_seconds", self._started, self._replica_labels)
        if self._requested is not None:
            self._gauge("cortex_api_replicas_requested", self._requested, self._labels)
        if self._info_labels is not None:
            self._gauge("cortex_api_info", 1, self._info_labels)
        if self._process is not None:
            self._record_process(self._process)

    def _record_process(self, process: psutil.Process) -> None:
        try:
            with process.oneshot():
                times, memory = process.cpu_times(), process.memory_info()
        except psutil.Error as error:
            logger.warning("processor time and memory of %s are not recorded: %s", self._labels["api_name"], error)
            self._process = None
            return
        seconds = times.user + times.system
        self._increment("cortex_api_process_cpu_seconds_total", seconds - self._cpu_seconds, self._replica_labels)
        self._cpu_seconds = seconds
        self._gauge("cortex_api_process_resident_memory_bytes", memory.rss, self._process_labels)

    def record(self) -> None:
        """Records what is in flight now; the thread does it every 10 seconds."""
        with self._lock:
            self._record()


class Middleware:
    """What the middlewares have in common: the metrics, what is not counted, and the route."""

    def __init__(
        self,
        client: Metrics,
        *,
        exclude: Iterable[str],
        route_label: bool | Callable[[Any], str | None],
        route_of: Callable[[Any], str | None],
        **labels: Any,
    ) -> None:
        self._metrics = RequestMetrics(client, **labels)
        if isinstance(exclude, str):
            msg = f"exclude: got {exclude!r}, want several paths, like ({exclude!r},)"
            raise TypeError(msg)
        self._exclude = frozenset(exclude)
        self._has_told = False
        self._route_of = route_label if callable(route_label) else route_of if route_label else None

    def _route(self, request: Any) -> str | None:
        """The route's template of a scope or environ, ``None`` if nobody wants it."""
        if self._route_of is None:
            return None
        try:
            return self._route_of(request) or UNMATCHED
        except Exception:
            if not self._has_told:
                self._has_told = True
                logger.warning("route_label raised; the route is %r", UNMATCHED, exc_info=True)
            return UNMATCHED


def _record_until(reference: weakref.ref[RequestMetrics], stop: threading.Event) -> None:
    while not stop.wait(RECORD_SECONDS):
        metrics = reference()
        if metrics is None:
            return
        metrics.record()
        del metrics


def _number(variable: str) -> float | None:
    """The number in an environment variable; what is none is told and is as if it were not set."""
    text = os.environ.get(variable)
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isfinite(number) and number >= 0:
        return number
    logger.warning("%s: got %r, want a number of 0 or more; it is ignored", variable, text)
    return None


_instances: weakref.WeakSet[RequestMetrics] = weakref.WeakSet()


class _Forks:
    """The threads of all instances, around a fork."""

    @staticmethod
    def before_fork() -> None:
        for metrics in list(_instances):
            metrics.before_fork()

    @staticmethod
    def after_fork() -> None:
        for metrics in list(_instances):
            metrics.after_fork()


def _after_fork_in_child() -> None:
    for metrics in list(_instances):
        metrics._begin_process()


watch_forks(_Forks())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
