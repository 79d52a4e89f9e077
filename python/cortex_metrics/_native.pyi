from collections.abc import Mapping
from types import TracebackType
from typing import SupportsFloat, SupportsIndex, TypedDict, final

__version__: str

class _Stats(TypedDict):
    called: int
    sent: int
    held: int
    dropped: dict[str, int]
    payloads_sent: int
    payloads_refused: int

class MetricsClient:
    def __new__(
        cls,
        url: str | None = None,
        *,
        tags: Mapping[str, object] | None = None,
        flush_interval: float = 1.0,
        strict: bool = False,
        telemetry: bool = True,
    ) -> MetricsClient: ...
    def increment(
        self, metric: str, value: SupportsFloat | SupportsIndex = 1, tags: Mapping[str, object] | None = None
    ) -> None: ...
    def gauge(
        self, metric: str, value: SupportsFloat | SupportsIndex, tags: Mapping[str, object] | None = None
    ) -> None: ...
    def histogram(
        self, metric: str, value: SupportsFloat | SupportsIndex, tags: Mapping[str, object] | None = None
    ) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...
    def stats(self) -> _Stats: ...
    def __enter__(self) -> MetricsClient: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...
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

def after_fork_in_parent() -> None: ...
