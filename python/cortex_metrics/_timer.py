"""The timer: seconds of a block, a function, a coroutine or a generator, recorded in a histogram."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextvars import ContextVar
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator
    from types import TracebackType

    from ._types import Metrics

_F = TypeVar("_F", bound="Callable[..., Any]")

# The blocks that run in this thread or task, with their starts: one timer may be in several at a time.
_running: ContextVar[tuple[tuple[Timer, float], ...]] = ContextVar("cortex_metrics_timers", default=())


class Timer:
    """Measures wall time in seconds and records it in a histogram; what ``MetricsClient.timer`` returns.

    It is a context manager and a decorator, may be used again and again, nested, and by several threads and tasks at
    the same time. It records whether the block ends or raises, and never raises itself unless its client is strict.

    Attributes:
        tags: The tags of the next record, for adding to them within the block. A decorator uses them as they are.

    Example:
        >>> from cortex_metrics.testing import CapturingClient
        >>> metrics = CapturingClient()
        >>> with metrics.timer("preprocess_seconds", {"model": "v1"}) as timer:
        ...     timer.tags["cache"] = "hit"
        >>> metrics.calls[0].tags
        {'model': 'v1', 'cache': 'hit'}
    """

    __slots__ = ("_client", "_last_start", "_metric", "tags")

    def __init__(self, client: Metrics, metric: str, tags: Mapping[str, object] | None = None) -> None:
        """Names the histogram of ``client`` that it records in."""
        self._client = client
        self._metric = metric
        # What is no mapping is the client's to refuse when it is recorded.
        self.tags = dict(tags or {}) if isinstance(tags, Mapping | None) else tags
        self._last_start = 0.0

    def __enter__(self) -> Timer:
        """Starts measuring."""
        self._last_start = perf_counter()
        _running.set((*_running.get(), (self, self._last_start)))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        """Records the seconds since the block began."""
        end = perf_counter()
        start = self._last_start  # should the block end in another context than it began in
        running = _running.get()
        for at in range(len(running) - 1, -1, -1):
            if running[at][0] is self:
                start = running[at][1]
                _running.set(running[:at] + running[at + 1 :])
                break
        self._record(end - start)

    def _record(self, seconds: float) -> None:
        self._client.histogram(self._metric, seconds, self.tags)

    def __call__(self, function: _F, /) -> _F:
        """Decorates a function, a coroutine function, or a generator function of either kind.

        A generator is measured from its first value's request to its end, the time of whoever consumes it included.

        Args:
            function: What to measure. Its type, name, signature and documentation stay.

        Returns:
            A function of the same kind.

        Raises:
            TypeError: It is not callable.

        Example:
            >>> from cortex_metrics.testing import CapturingClient
            >>> metrics = CapturingClient()
            >>> @metrics.timer("predict_seconds")
            ... def predict(payload: str) -> str:
            ...     return payload.upper()
            >>> predict("text")
            'TEXT'
            >>> len(metrics.histogram_values("predict_seconds"))
            1
        """
        import inspect  # a third of a megabyte that only who decorates needs

        if isinstance(function, staticmethod | classmethod):
            return cast("_F", type(function)(self(function.__func__)))
        if not callable(function):
            msg = f"timer {self._metric!r}: got {function!r}, want a function"
            raise TypeError(msg)
        target = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004
        wrapper: Callable[..., Any]
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(target):
            wrapper = self._around_coroutine(function)
        elif inspect.isasyncgenfunction(function) or inspect.isasyncgenfunction(target):
            wrapper = self._around_async_generator(function)
        elif inspect.isgeneratorfunction(function) or inspect.isgeneratorfunction(target):
            wrapper = self._around_generator(function)
        else:
            wrapper = self._around_function(function)
        return cast("_F", functools.update_wrapper(wrapper, function))

    def _around_function(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._record(perf_counter() - start)

        return timed

    def _around_coroutine(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def timed(*args: Any, **kwargs: Any) -> Any:
            start = perf_counter()
            try:
                return await function(*args, **kwargs)
            finally:
                self._record(perf_counter() - start)

        return timed

    def _around_generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            start = perf_counter()
            try:
                return (yield from function(*args, **kwargs))
            finally:
                self._record(perf_counter() - start)

        return timed

    def _around_async_generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def timed(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            start = perf_counter()
            inner = function(*args, **kwargs)
            try:
                # There is no `yield from` here: what comes in is passed on by hand.
                step = inner.__anext__()
                while True:
                    try:
                        value = await step
                    except StopAsyncIteration:
                        return
                    try:
                        sent = yield value
                    except GeneratorExit:
                        raise
                    except BaseException as error:
                        step = inner.athrow(error)
                    else:
                        step = inner.asend(sent)
            finally:
                try:
                    await inner.aclose()
                finally:
                    self._record(perf_counter() - start)

        return timed
