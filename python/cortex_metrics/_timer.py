"""The timer: seconds of a block, a function, a coroutine or a generator, recorded in a histogram."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator
    from types import TracebackType

    from ._types import Metrics

_F = TypeVar("_F", bound="Callable[..., Any]")


class Timing:
    """One block that is timed; what ``with metrics.timer(…) as timing`` gives."""

    __slots__ = ("_frame", "_start", "_tags", "_timer")

    def __init__(self, timer: Timer, frame: int = 0) -> None:
        """Starts measuring when it is entered."""
        self._timer = timer
        # The frame of the `with` statement, by its address: it lives as long as the block does.
        self._frame = frame
        self._tags: dict[str, object] | None = None
        self._start = 0.0

    @property
    def tags(self) -> dict[str, object]:
        """The tags of this block's record, to be added to: the timer's own stay as they are."""
        if self._tags is None:
            given = self._timer._tags
            if given is not None and not isinstance(given, dict):
                return {}  # what is recorded is dropped for these tags, and counted; the block must not raise
            self._tags = dict(given or {})
        return self._tags

    def __enter__(self) -> Timing:
        """Starts measuring."""
        self._start = perf_counter()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        """Records the seconds since the block began."""
        self._end(perf_counter(), is_raising=exc_type is not None)

    def _end(self, at: float, *, is_raising: bool) -> None:
        timer = self._timer
        tags = timer._tags if self._tags is None else self._tags
        try:
            timer._client.histogram(timer._metric, at - self._start, tags)
        except Exception:
            # A strict client's. What the block itself raised matters more.
            if not is_raising:
                raise


# The blocks that were entered in this thread or task, innermost last: one timer may be in several at a time.
_entered: ContextVar[tuple[Timing, ...]] = ContextVar("cortex_metrics_timers", default=())


def _still_open(entered: tuple[Timing, ...]) -> tuple[Timing, ...]:
    return tuple(timing for timing in entered if timing in timing._timer._open)


class Timer:
    """Measures wall time in seconds and records it in a histogram; what ``MetricsClient.timer`` returns.

    It is a context manager and a decorator, may be used again and again, nested, and by several threads and tasks at
    the same time. It records whether the block ends or raises, and never raises itself unless its client is strict;
    even then what the block raised comes first.

    Example:
        >>> from cortex_metrics.testing import CapturingClient
        >>> metrics = CapturingClient()
        >>> with metrics.timer("preprocess_seconds", {"model": "v1"}) as timing:
        ...     timing.tags["cache"] = "hit"
        >>> metrics.calls[0].tags
        {'model': 'v1', 'cache': 'hit'}
    """

    __slots__ = ("_client", "_metric", "_open", "_tags")

    def __init__(self, client: Metrics, metric: str, tags: Mapping[str, object] | None = None) -> None:
        """Names the histogram of ``client`` that it records in."""
        if hasattr(metric, "__call__"):  # noqa: B004 (after `callable` mypy invents a type that stubtest looks for)
            # `@metrics.timer` without its parentheses: better now than at the first prediction.
            msg = f'got {metric!r} as the name of a timer, want @metrics.timer("name")'
            raise TypeError(msg)
        self._client = client
        self._metric = metric
        # A copy: what the caller does to the mapping later must not change what is recorded.
        try:
            self._tags: Mapping[str, object] | None = (
                dict(tags) if type(tags) is dict or isinstance(tags, Mapping) else tags
            )
        except Exception:
            self._tags = tags  # the client's to refuse
        # Those entered and not yet left: a set from which each is taken by one thread alone.
        self._open: dict[Timing, None] = {}

    def __enter__(self) -> Timing:
        """Starts measuring."""
        timing = Timing(self, id(sys._getframe(1)))
        entered = _entered.get()
        if entered and entered[-1] not in entered[-1]._timer._open:
            entered = _still_open(entered)  # some have been left in another thread or task
        self._open[timing] = None
        _entered.set((*entered, timing))
        timing._start = perf_counter()
        return timing

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        """Records the seconds since the block began."""
        end = perf_counter()
        entered, frame = _entered.get(), id(sys._getframe(1))
        if entered and entered[-1]._timer is self and entered[-1]._frame == frame and self._take(entered[-1]):
            timing = entered[-1]
            _entered.set(entered[:-1])
        else:
            # Not the innermost block of this thread or task (generators take turns), or one that an `ExitStack` entered
            # or another thread: each is recorded once all the same.
            own = [timing for timing in entered if timing._timer is self]
            everyone = list(self._open) + own
            here = [timing for timing in everyone if timing._frame == frame]
            taken = (timing for timing in reversed(everyone + here) if self._take(timing))
            found = next(taken, None)
            if found is None:
                return
            timing = found
            _entered.set(_still_open(entered))
        timing._end(end, is_raising=exc_type is not None)

    def _take(self, timing: Timing) -> bool:
        return self._open.pop(timing, self) is None

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
        if not callable(function) or inspect.isclass(function):
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

    def _record_failed(self, seconds: float) -> None:
        with suppress(Exception):  # a strict client's: what the function raised matters more
            self._client.histogram(self._metric, seconds, self._tags)

    def _around_function(self, function: Callable[..., Any]) -> Callable[..., Any]:
        record, metric, tags = self._client.histogram, self._metric, self._tags

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = perf_counter()
            try:
                result = function(*args, **kwargs)
            except BaseException:
                self._record_failed(perf_counter() - start)
                raise
            record(metric, perf_counter() - start, tags)
            return result

        return timed

    def _around_coroutine(self, function: Callable[..., Any]) -> Callable[..., Any]:
        record, metric, tags = self._client.histogram, self._metric, self._tags

        async def timed(*args: Any, **kwargs: Any) -> Any:
            start = perf_counter()
            try:
                result = await function(*args, **kwargs)
            except BaseException:
                self._record_failed(perf_counter() - start)
                raise
            record(metric, perf_counter() - start, tags)
            return result

        return timed

    def _around_generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            with Timing(self):
                return (yield from function(*args, **kwargs))

        return timed

    def _around_async_generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def timed(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            with Timing(self):
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
                    await inner.aclose()

        return timed
