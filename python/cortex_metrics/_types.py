"""The types that users name: the account of a client, and what every client can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, SupportsFloat, SupportsIndex, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from typing_extensions import Self

    from ._timer import Timer


class Stats(TypedDict):
    """The account of a client's calls in this process: ``called = sent + held + sum(dropped.values())``."""

    called: int
    """Calls of ``increment``, ``gauge`` and ``histogram``, refused ones included."""
    sent: int
    """Calls whose payload the operating system took, and nobody on this host refused."""
    held: int
    """Calls that wait for the next flush, or for a collector."""
    dropped: dict[str, int]
    """Calls that are lost, by reason; every reason is there."""
    payloads_sent: int
    """Datagrams that left."""
    payloads_refused: int
    """Datagrams that were refused; what they held is still held."""


class Metrics(Protocol):
    """What a predictor may ask of its ``metrics_client``: the real one, a capturing one in tests, or none at all.

    Example:
        >>> from cortex_metrics import Metrics, NullClient
        >>> class PythonPredictor:
        ...     def __init__(self, config: dict[str, str], metrics_client: Metrics) -> None:
        ...         self.metrics = metrics_client
        >>> predictor = PythonPredictor({}, NullClient())
    """

    def increment(
        self, metric: str, value: SupportsFloat | SupportsIndex = 1, tags: Mapping[str, object] | None = None
    ) -> None:
        """Adds to a counter."""

    def gauge(
        self, metric: str, value: SupportsFloat | SupportsIndex, tags: Mapping[str, object] | None = None
    ) -> None:
        """Sets a gauge."""

    def histogram(
        self, metric: str, value: SupportsFloat | SupportsIndex, tags: Mapping[str, object] | None = None
    ) -> None:
        """Records a value of a distribution."""

    def timer(self, metric: str, tags: Mapping[str, object] | None = None) -> Timer:
        """Measures seconds of a block or a function."""

    def flush(self) -> None:
        """Sends what has accumulated."""

    def close(self) -> None:
        """Sends what has accumulated, and ends."""

    def stats(self) -> Stats:
        """The account of calls."""

    def __enter__(self) -> Self:
        """The client itself."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        """Closes it."""
