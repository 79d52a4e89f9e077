"""A client that does nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, SupportsFloat, SupportsIndex

from ._native import MetricsClient
from ._timer import Timer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from ._types import Stats


class NullClient:
    """Takes the calls of a ``MetricsClient`` and forgets them: no thread, no socket, no check, no error.

    Example:
        >>> from cortex_metrics import NullClient
        >>> metrics = NullClient()
        >>> metrics.increment("my_counter", 1, {"model": "v1"})
        >>> metrics.stats()["called"]
        0
    """

    __slots__ = ()

    def increment(
        self, metric: str, value: SupportsFloat | SupportsIndex = 1, tags: Mapping[str, object] | None = None
    ) -> None:
        """Does nothing."""

    def gauge(
        self, metric: str, value: SupportsFloat | SupportsIndex, tags: Mapping[str, object] | None = None
    ) -> None:
        """Does nothing."""

    def histogram(
        self, metric: str, value: SupportsFloat | SupportsIndex, tags: Mapping[str, object] | None = None
    ) -> None:
        """Does nothing."""

    def timer(self, metric: str, tags: Mapping[str, object] | None = None) -> Timer:
        """A timer whose seconds are forgotten."""
        return Timer(self, metric, tags)

    def flush(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""

    def stats(self) -> Stats:
        """The account of a client that nobody called."""
        return MetricsClient("udp://127.0.0.1").stats()

    @property
    def _system(self) -> NullClient:
        return self

    def __enter__(self) -> NullClient:
        """Does nothing."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        """Does nothing."""
