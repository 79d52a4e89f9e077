from collections.abc import Mapping
from types import TracebackType
from typing import Literal, SupportsFloat, SupportsIndex, final

from typing_extensions import disjoint_base

from ._timer import Timer
from ._types import Stats

__all__ = ["MetricsClient", "SystemMetrics", "__version__", "after_fork_in_parent", "check"]

__version__: str

@disjoint_base
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
    def timer(self, metric: str, tags: Mapping[str, object] | None = None) -> Timer: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...
    def stats(self) -> Stats: ...
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
def check(
    kind: Literal["counter", "gauge", "histogram"],
    metric: str,
    value: SupportsFloat | SupportsIndex,
    tags: object,
    constant_tags: Mapping[str, object] | None,
) -> tuple[str, float, list[tuple[str, str]]]: ...
