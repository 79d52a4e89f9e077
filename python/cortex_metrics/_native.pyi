from collections.abc import Mapping
from types import TracebackType
from typing import Literal, SupportsFloat, SupportsIndex, final

from typing_extensions import Self, disjoint_base

from ._timer import Timer
from ._types import Stats

__all__ = [
    "MetricsClient",
    "SystemMetrics",
    "__version__",
    "after_fork_in_child",
    "after_fork_in_parent",
    "wait_for_calls",
]

__version__: str

@disjoint_base
class MetricsClient:
    """Counts, sets and measures; sends it to the collector beside the process.

    A call costs next to nothing, never waits, and never raises unless the client is strict: what cannot be sent is
    counted by its reason and told once through ``logging`` (logger ``cortex_metrics``).

    That the collector is away or back is logged by the next call, ``flush()`` or ``close()`` that comes along: the
    thread that sends never touches Python. While it is away metrics are held in bounded memory and merged.

    Args:
        url: Where to send: ``udp://host:port`` or ``unix:///path``. Without it the environment decides
            (``CORTEX_METRICS_URL``, ``DD_DOGSTATSD_URL``, ``DD_AGENT_HOST`` with ``DD_DOGSTATSD_PORT``), and
            without that ``udp://127.0.0.1:9125``.
        tags: Tags that every metric of this client carries.
        flush_interval: Seconds between sends, 0.01 to 3600.
        contexts_max: Combinations of name and tags in one flush, 1 to 1,000,000; calls for more are dropped and
            counted.
        payload_bytes_max: Bytes of a datagram, 512 to 65,507; 1432 over UDP and 8192 over a Unix socket unless given.
        strict: Raise ``TypeError`` or ``ValueError`` for a call that would be dropped. Without it
            ``CORTEX_METRICS_STRICT=1`` decides.
        telemetry: Name this process in each payload and send the account of calls along. Without it the collector
            cannot know when the process has ended, and its gauges stay.

    Raises:
        ValueError: One of these arguments is out of its range. The network never raises.

    Example:
        >>> from cortex_metrics import MetricsClient
        >>> with MetricsClient() as metrics:
        ...     metrics.increment("my_counter", 1, {"model": "v1"})
    """

    def __new__(
        cls,
        url: str | None = None,
        *,
        tags: Mapping[str, object] | None = None,
        flush_interval: float = 1.0,
        contexts_max: int = 10_000,
        payload_bytes_max: int | None = None,
        strict: bool | None = None,
        telemetry: bool = True,
    ) -> Self: ...
    def increment(
        self, metric: str, value: SupportsFloat | SupportsIndex = 1, tags: Mapping[str, object] | None = None
    ) -> None:
        """Adds to a counter.

        Args:
            metric: The counter's name.
            value: How much, 0 or more: anything with ``__float__`` or ``__index__``.
            tags: A mapping of text to text, numbers or flags; a ``None`` leaves its tag out.

        Raises:
            TypeError, ValueError: In a strict client only: an argument that cannot be used.

        Example:
            >>> from cortex_metrics import MetricsClient
            >>> metrics = MetricsClient()
            >>> metrics.increment("predictions")
            >>> metrics.increment("tokens", 17, {"model": "v1"})
        """
    def gauge(
        self, metric: str, value: SupportsFloat | SupportsIndex, tags: Mapping[str, object] | None = None
    ) -> None:
        """Sets a gauge. The newest value of all processes that set it counts.

        Args:
            metric: The gauge's name.
            value: A finite number: anything with ``__float__`` or ``__index__``.
            tags: As in ``increment``.

        Raises:
            TypeError, ValueError: In a strict client only: an argument that cannot be used.

        Example:
            >>> from cortex_metrics import MetricsClient
            >>> metrics = MetricsClient()
            >>> metrics.gauge("queue_length", 3, {"queue": "gpu"})
        """
    def histogram(
        self, metric: str, value: SupportsFloat | SupportsIndex, tags: Mapping[str, object] | None = None
    ) -> None:
        """Records a value of a distribution, in any unit: percentiles are right to 2.2 % of the value.

        Args:
            metric: The histogram's name.
            value: A finite number: anything with ``__float__`` or ``__index__``.
            tags: As in ``increment``.

        Raises:
            TypeError, ValueError: In a strict client only: an argument that cannot be used.

        Example:
            >>> from cortex_metrics import MetricsClient
            >>> metrics = MetricsClient()
            >>> metrics.histogram("confidence", 0.93, {"model": "v1"})
        """
    def timer(self, metric: str, tags: Mapping[str, object] | None = None) -> Timer:
        """A context manager and decorator that records seconds in a histogram; see ``Timer``.

        Args:
            metric: The histogram's name; by Prometheus's custom it ends with ``_seconds``.
            tags: As in ``increment``.

        Raises:
            TypeError, ValueError: In a strict client only, when it records: an argument that cannot be used.

        Example:
            >>> from cortex_metrics import MetricsClient
            >>> metrics = MetricsClient()
            >>> with metrics.timer("preprocess_seconds"):
            ...     total = sum(range(1000))
            >>> @metrics.timer("predict_seconds", {"model": "v1"})
            ... async def predict(payload):
            ...     return payload
        """
    def flush(self) -> None:
        """Sends what has accumulated now. Not needed: it is sent every ``flush_interval`` and at exit.

        Waits for the sending, which waits for nothing but room in a full Unix socket and a look-up of the host name
        that has just begun, at most 40 ms each. What nobody takes is held: see ``stats()``.

        Example:
            >>> from cortex_metrics import MetricsClient
            >>> metrics = MetricsClient()
            >>> metrics.increment("predictions")
            >>> metrics.flush()
        """
    def close(self) -> None:
        """Sends what has accumulated and ends. Later calls are dropped and counted; a second ``close()`` does nothing.

        What nobody takes now is lost, counted as dropped (``closed``), and logged. Waits as ``flush()`` does.

        Example:
            >>> from cortex_metrics import MetricsClient
            >>> metrics = MetricsClient()
            >>> metrics.close()
        """
    def stats(self) -> Stats:
        """The account of this process's calls: ``called = sent + held + sum(dropped.values())``.

        Returns:
            A ``Stats``: ``called``, ``sent`` and ``held`` calls, ``dropped`` calls by reason, ``payloads_sent`` and
            ``payloads_refused``.

        Example:
            >>> from cortex_metrics import MetricsClient
            >>> metrics = MetricsClient()
            >>> metrics.gauge("temperature", float("nan"))
            >>> stats = metrics.stats()
            >>> stats["called"], stats["dropped"]["not_finite"]
            (1, 1)
        """
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...
    def __copy__(self) -> Self: ...
    def __deepcopy__(self, memo: object, /) -> Self: ...
    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, object]]: ...
    def _check(
        self,
        kind: Literal["counter", "gauge", "histogram"],
        metric: str,
        value: SupportsFloat | SupportsIndex,
        tags: Mapping[str, object] | None,
        is_own: bool,
    ) -> tuple[str, float, list[tuple[str, str]]]: ...
    @property
    def _system(self) -> SystemMetrics: ...

@final
class SystemMetrics:
    def increment(
        self, metric: str, value: SupportsFloat | SupportsIndex = 1, tags: Mapping[str, object] | None = None
    ) -> None: ...
    def gauge(
        self, metric: str, value: SupportsFloat | SupportsIndex, tags: Mapping[str, object] | None = None
    ) -> None: ...
    def histogram(
        self, metric: str, value: SupportsFloat | SupportsIndex, tags: Mapping[str, object] | None = None
    ) -> None: ...

def after_fork_in_child() -> None: ...
def after_fork_in_parent() -> None: ...
def wait_for_calls(timeout: float) -> None: ...
