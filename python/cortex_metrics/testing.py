"""For the tests of whoever uses ``cortex_metrics``: a client that keeps its calls, and a pytest fixture of it.

The fixture ``metrics_client`` is there where a ``conftest.py`` has ``pytest_plugins = ["cortex_metrics.testing"]``::

    def test_predictions_are_counted(metrics_client):
        predictor = PythonPredictor(config={}, metrics_client=metrics_client)
        predictor.predict({"text": "hello"})
        assert metrics_client.counter_value("predictions", {"model": "v1"}) == 1
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, SupportsFloat, SupportsIndex

from ._native import check
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

    Its checks are those of ``MetricsClient(strict=True)``: the same code.

    Args:
        tags: Constant tags, as for ``MetricsClient``.

    Example:
        >>> from cortex_metrics.testing import CapturingClient
        >>> metrics = CapturingClient()
        >>> metrics.increment("predictions", tags={"model": "v1"})
        >>> metrics.increment("predictions", 2, {"model": "v2"})
        >>> metrics.counter_value("predictions")
        3.0
        >>> metrics.counter_value("predictions", {"model": "v2"})
        2.0
    """

    def __init__(self, tags: Mapping[str, object] | None = None) -> None:
        """Starts without calls."""
        self.calls: list[Call] = []
        """The calls in their order."""
        self._tags = tags
        self._is_closed = False
        check("gauge", "tags", 0, tags, None)

    def _take(self, kind: _Kind, metric: str, value: SupportsFloat | SupportsIndex, tags: object) -> None:
        name, number, pairs = check(kind, metric, value, tags, self._tags)
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
        """Keeps the call.

        Raises:
            TypeError, ValueError: A ``MetricsClient`` would drop it.
        """
        self._take("counter", metric, value, tags)

    def gauge(
        self, metric: str, value: SupportsFloat | SupportsIndex, tags: Mapping[str, object] | None = None
    ) -> None:
        """Keeps the call.

        Raises:
            TypeError, ValueError: A ``MetricsClient`` would drop it.
        """
        self._take("gauge", metric, value, tags)

    def histogram(
        self, metric: str, value: SupportsFloat | SupportsIndex, tags: Mapping[str, object] | None = None
    ) -> None:
        """Keeps the call.

        Raises:
            TypeError, ValueError: A ``MetricsClient`` would drop it.
        """
        self._take("histogram", metric, value, tags)

    def timer(self, metric: str, tags: Mapping[str, object] | None = None) -> Timer:
        """A timer that records here."""
        return Timer(self, metric, tags)

    def _values(self, kind: _Kind, metric: str, tags: Mapping[str, object] | None) -> list[float]:
        wanted = {(key, str(value)) for key, value in (tags or {}).items()}
        return [
            call.value
            for call in self.calls
            if call.kind == kind and call.metric == metric and wanted <= set(call.tags.items())
        ]

    def counter_value(self, metric: str, tags: Mapping[str, object] | None = None) -> float:
        """What a counter has come to: the sum of its increments, 0 without any.

        Args:
            metric: The counter's name.
            tags: Calls that carry at least these count.
        """
        return sum(self._values("counter", metric, tags), 0.0)

    def gauge_value(self, metric: str, tags: Mapping[str, object] | None = None) -> float | None:
        """What a gauge was set to last, ``None`` if it never was.

        Args:
            metric: The gauge's name.
            tags: Calls that carry at least these count.
        """
        values = self._values("gauge", metric, tags)
        return values[-1] if values else None

    def histogram_values(self, metric: str, tags: Mapping[str, object] | None = None) -> list[float]:
        """The values of a histogram or timer in their order.

        Args:
            metric: The histogram's name.
            tags: Calls that carry at least these count.
        """
        return self._values("histogram", metric, tags)

    def clear(self) -> None:
        """Forgets all calls."""
        self.calls.clear()

    def flush(self) -> None:
        """Does nothing: there is nobody to send to."""

    def close(self) -> None:
        """From now on every call raises ``ValueError``."""
        self._is_closed = True

    def stats(self) -> Stats:
        """The calls are held for good."""
        held = len(self.calls)
        return {"called": held, "sent": 0, "held": held, "dropped": {}, "payloads_sent": 0, "payloads_refused": 0}

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
