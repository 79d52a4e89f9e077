"""For the tests of whoever uses ``cortex_metrics``: a client that keeps its calls, and a pytest fixture of it.

The fixture ``metrics_client`` is there where a ``conftest.py`` has ``pytest_plugins = ["cortex_metrics.testing"]``::

    def test_predictions_are_counted(metrics_client):
        predictor = PythonPredictor(config={}, metrics_client=metrics_client)
        predictor.predict({"text": "hello"})
        assert metrics_client.counter_value("predictions", {"model": "v1"}) == 1

PYTEST_DONT_REWRITE: there is no assertion here, and a ``conftest.py`` may import this module before pytest does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, SupportsFloat, SupportsIndex

from ._native import MetricsClient
from ._timer import Timer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from ._types import Stats

    _Kind = Literal["counter", "gauge", "histogram"]

__all__ = ["Call", "CapturingClient"]


class Call(NamedTuple):
    """One call as it would be sent: the value as a number, the tags as text."""

    kind: _Kind
    """``increment`` makes a counter, ``gauge`` a gauge, ``histogram`` and ``timer`` a histogram."""
    metric: str
    value: float
    tags: dict[str, str]


class CapturingClient:
    """A strict client without network and threads: it keeps every call, and raises for one that would be dropped.

    Its checks are those of ``MetricsClient(strict=True)``: the same code, with the same limits and the same constant
    tags, that of ``CORTEX_API_NAME`` included. It is made with the same arguments, so that
    it can stand in for the class itself, and ``MetricsMiddleware`` takes it too.

    Args:
        url: Checked, and not used: nothing is sent.
        tags: Tags that every metric of this client carries.
        flush_interval, contexts_max, payload_bytes_max: Checked, and not used.
        strict: Not used: it always is.
        telemetry: Not used.

    Attributes:
        calls: All calls in their order.

    Raises:
        TypeError, ValueError: A ``MetricsClient`` would not take these arguments.

    Example:
        >>> from cortex_metrics.testing import CapturingClient
        >>> metrics = CapturingClient()
        >>> metrics.increment("predictions", tags={"model": "v1"})
        >>> metrics.calls
        [Call(kind='counter', metric='predictions', value=1.0, tags={'model': 'v1'})]
        >>> metrics.increment("predictions", -1)
        Traceback (most recent call last):
        ValueError: metric "predictions": got an increment of -1, want 0 or more: a counter cannot go back
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        tags: Mapping[str, object] | None = None,
        flush_interval: float = 1.0,
        contexts_max: int = 10_000,
        payload_bytes_max: int | None = None,
        strict: bool | None = None,  # noqa: ARG002
        telemetry: bool = True,  # noqa: ARG002
    ) -> None:
        """Starts without calls."""
        self.calls: list[Call] = []
        # Without a call a client has neither thread nor socket. It checks the arguments; its account has all reasons.
        self._client = MetricsClient(
            "udp://127.0.0.1" if url is None else url,
            tags=tags,
            flush_interval=flush_interval,
            contexts_max=contexts_max,
            payload_bytes_max=payload_bytes_max,
        )
        self._account = self._client.stats()
        self._is_closed = False

    def _take(
        self,
        kind: _Kind,
        metric: str,
        value: SupportsFloat | SupportsIndex,
        tags: Mapping[str, object] | None,
        is_own: bool = False,
    ) -> None:
        name, number, pairs = self._client._check(kind, metric, value, tags, is_own)
        if self._is_closed:
            msg = f'metric "{name}": the client is closed'
            raise ValueError(msg)
        labels: dict[str, str] = {}
        for key, text in pairs:
            labels.setdefault(key, text)  # of equal keys the first wins, and the call's own come first
        self.calls.append(Call(kind, name, number, labels))

    def increment(
        self, metric: str, value: SupportsFloat | SupportsIndex = 1, tags: Mapping[str, object] | None = None
    ) -> None:
        """Keeps the call; see ``MetricsClient.increment``.

        Raises:
            TypeError, ValueError: A ``MetricsClient`` would drop it.

        Example:
            >>> from cortex_metrics.testing import CapturingClient
            >>> metrics = CapturingClient()
            >>> metrics.increment("tokens", 17, {"model": "v1"})
            >>> metrics.counter_value("tokens")
            17.0
        """
        self._take("counter", metric, value, tags)

    def gauge(
        self, metric: str, value: SupportsFloat | SupportsIndex, tags: Mapping[str, object] | None = None
    ) -> None:
        """Keeps the call; see ``MetricsClient.gauge``.

        Raises:
            TypeError, ValueError: A ``MetricsClient`` would drop it.

        Example:
            >>> from cortex_metrics.testing import CapturingClient
            >>> metrics = CapturingClient()
            >>> metrics.gauge("queue_length", 3)
            >>> metrics.gauge_value("queue_length")
            3.0
        """
        self._take("gauge", metric, value, tags)

    def histogram(
        self, metric: str, value: SupportsFloat | SupportsIndex, tags: Mapping[str, object] | None = None
    ) -> None:
        """Keeps the call; see ``MetricsClient.histogram``.

        Raises:
            TypeError, ValueError: A ``MetricsClient`` would drop it.

        Example:
            >>> from cortex_metrics.testing import CapturingClient
            >>> metrics = CapturingClient()
            >>> metrics.histogram("confidence", 0.93)
            >>> metrics.histogram_values("confidence")
            [0.93]
        """
        self._take("histogram", metric, value, tags)

    def timer(self, metric: str, tags: Mapping[str, object] | None = None) -> Timer:
        """A timer whose seconds are kept; see ``MetricsClient.timer``.

        Example:
            >>> from cortex_metrics.testing import CapturingClient
            >>> metrics = CapturingClient()
            >>> with metrics.timer("preprocess_seconds"):
            ...     total = sum(range(1000))
            >>> len(metrics.histogram_values("preprocess_seconds"))
            1
        """
        return Timer(self, metric, tags)

    def _values(self, kind: _Kind, metric: str, tags: Mapping[str, object] | None) -> list[float]:
        # Tags become text as those of a call do.
        wanted = set(self._client._check(kind, metric, 0, tags, True)[2])
        return [
            call.value
            for call in list(self.calls)
            if call.kind == kind and call.metric == metric and wanted <= call.tags.items()
        ]

    def counter_value(self, metric: str, tags: Mapping[str, object] | None = None) -> float:
        """What a counter has come to: the sum of its increments, 0 without any.

        Args:
            metric: The counter's name.
            tags: Calls that carry at least these count; without it all.

        Raises:
            TypeError, ValueError: No call could have such a name or tags.

        Example:
            >>> from cortex_metrics.testing import CapturingClient
            >>> metrics = CapturingClient()
            >>> metrics.increment("predictions", 1, {"model": "v1"})
            >>> metrics.increment("predictions", 2, {"model": "v2"})
            >>> metrics.counter_value("predictions"), metrics.counter_value("predictions", {"model": "v2"})
            (3.0, 2.0)
        """
        return sum(self._values("counter", metric, tags), 0.0)

    def gauge_value(self, metric: str, tags: Mapping[str, object] | None = None) -> float | None:
        """What a gauge was set to last, ``None`` if it never was.

        Args:
            metric: The gauge's name.
            tags: Calls that carry at least these count; without it all.

        Raises:
            TypeError, ValueError: No call could have such a name or tags.

        Example:
            >>> from cortex_metrics.testing import CapturingClient
            >>> metrics = CapturingClient()
            >>> metrics.gauge("queue_length", 3)
            >>> metrics.gauge("queue_length", 2)
            >>> metrics.gauge_value("queue_length")
            2.0
        """
        values = self._values("gauge", metric, tags)
        return values[-1] if values else None

    def histogram_values(self, metric: str, tags: Mapping[str, object] | None = None) -> list[float]:
        """The values of a histogram, or the seconds of a timer, in their order.

        Args:
            metric: The histogram's name.
            tags: Calls that carry at least these count; without it all.

        Raises:
            TypeError, ValueError: No call could have such a name or tags.

        Example:
            >>> from cortex_metrics.testing import CapturingClient
            >>> metrics = CapturingClient()
            >>> metrics.histogram("confidence", 0.93, {"model": "v1"})
            >>> metrics.histogram("confidence", 0.81, {"model": "v2"})
            >>> metrics.histogram_values("confidence")
            [0.93, 0.81]
        """
        return self._values("histogram", metric, tags)

    def clear(self) -> None:
        """Forgets all calls.

        Example:
            >>> from cortex_metrics.testing import CapturingClient
            >>> metrics = CapturingClient()
            >>> metrics.increment("predictions")
            >>> metrics.clear()
            >>> metrics.calls
            []
        """
        self.calls.clear()

    def flush(self) -> None:
        """Does nothing: there is nobody to send to.

        Example:
            >>> from cortex_metrics.testing import CapturingClient
            >>> CapturingClient().flush()
        """

    def close(self) -> None:
        """From now on every call raises ``ValueError``; what was kept stays.

        Example:
            >>> from cortex_metrics.testing import CapturingClient
            >>> metrics = CapturingClient()
            >>> metrics.close()
            >>> metrics.increment("predictions")
            Traceback (most recent call last):
            ValueError: metric "predictions": the client is closed
        """
        self._is_closed = True

    def stats(self) -> Stats:
        """The account of a client that sends nothing: all calls are held. Refused ones have raised and are not counted.

        Example:
            >>> from cortex_metrics.testing import CapturingClient
            >>> metrics = CapturingClient()
            >>> metrics.increment("predictions")
            >>> metrics.stats()["held"]
            1
        """
        calls = len(self.calls)
        return {**self._account, "called": calls, "held": calls, "dropped": dict(self._account["dropped"])}

    @property
    def _system(self) -> _SystemMetrics:
        return _SystemMetrics(self)

    def __enter__(self) -> CapturingClient:
        """Nothing to open."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        """Closes it."""
        self.close()


class _SystemMetrics:
    """What the package's own middleware records, under the names that are reserved for it."""

    def __init__(self, client: CapturingClient) -> None:
        self._client = client

    def increment(
        self, metric: str, value: SupportsFloat | SupportsIndex = 1, tags: Mapping[str, object] | None = None
    ) -> None:
        self._client._take("counter", metric, value, tags, is_own=True)

    def gauge(
        self, metric: str, value: SupportsFloat | SupportsIndex, tags: Mapping[str, object] | None = None
    ) -> None:
        self._client._take("gauge", metric, value, tags, is_own=True)

    def histogram(
        self, metric: str, value: SupportsFloat | SupportsIndex, tags: Mapping[str, object] | None = None
    ) -> None:
        self._client._take("histogram", metric, value, tags, is_own=True)


try:
    import pytest
except ImportError:  # the client is of use without it
    pass
else:

    @pytest.fixture
    def metrics_client() -> Iterator[CapturingClient]:
        """A ``CapturingClient`` for one test."""
        with CapturingClient() as client:
            yield client
