"""`timer`: seconds of blocks, functions, coroutines and generators of both kinds."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
import time
from collections import UserDict
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from cortex_metrics import MetricsClient, _timer
from cortex_metrics.testing import CapturingClient
from support import Udp

PAUSE = 0.02


@pytest.fixture
def client() -> CapturingClient:
    return CapturingClient()


def recorded(client: CapturingClient) -> list[float]:
    return client.histogram_values("t")


def test_a_block_is_measured_in_seconds_also_when_it_raises(client: CapturingClient) -> None:
    with client.timer("t", {"model": "v1"}):
        time.sleep(PAUSE)
    with pytest.raises(KeyError), client.timer("t"):
        raise KeyError
    first, second = recorded(client)
    assert PAUSE <= first < 100 * PAUSE
    assert second < first
    assert client.calls[0].tags == {"model": "v1"}


def test_tags_added_within_a_block_are_that_blocks_alone(client: CapturingClient) -> None:
    tags = {"model": "v1"}
    timer = client.timer("t", tags)
    tags["model"] = "changed later"
    with timer as outer:
        outer.tags["cache"] = "hit"
        with timer as inner:
            inner.tags["cache"] = "miss"
    with timer:
        pass
    assert [call.tags for call in client.calls] == [
        {"model": "v1", "cache": "miss"},
        {"model": "v1", "cache": "hit"},
        {"model": "v1"},
    ]


def test_one_timer_nests_and_overlaps(client: CapturingClient) -> None:
    timer = client.timer("t")
    with timer:
        time.sleep(PAUSE)
        with timer:
            pass
    inner, outer = recorded(client)
    assert inner < PAUSE <= outer
    client.clear()
    # Blocks that end in the order in which they began, as generators can make them.
    first, second = client.timer("t"), client.timer("t")
    first.__enter__()
    time.sleep(PAUSE)
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert recorded(client)[0] >= PAUSE > recorded(client)[1]


def test_one_timer_serves_many_threads_and_tasks(client: CapturingClient) -> None:
    timer = client.timer("t")
    gate = threading.Barrier(8)

    def work(pause: float) -> None:
        gate.wait()
        with timer:
            time.sleep(pause)

    threads = [threading.Thread(target=work, args=(PAUSE * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(seconds >= PAUSE * n for n, seconds in enumerate(sorted(recorded(client))))
    client.clear()

    async def task(pause: float) -> None:
        with timer:
            await asyncio.sleep(pause)

    async def tasks() -> None:
        await asyncio.gather(*(task(PAUSE * n) for n in range(5)))

    asyncio.run(tasks())
    assert all(seconds >= PAUSE * n * 0.9 for n, seconds in enumerate(sorted(recorded(client))))


def test_a_block_that_ends_in_another_context_is_recorded(client: CapturingClient) -> None:
    # As FastAPI does with the generators that it calls in threads of a pool.
    timer = client.timer("t")
    for _ in range(100):
        stack = ExitStack()
        stack.enter_context(timer).tags["n"] = 1
        thread = threading.Thread(target=stack.close)
        thread.start()
        thread.join()
    assert [call.tags for call in client.calls] == [{"n": "1"}] * 100
    with timer:
        assert len(_timer._entered.get()) == 1, "blocks that ended elsewhere are forgotten here"
    assert _timer._entered.get() == ()
    timer.__exit__(None, None, None)  # never entered: nothing to record
    assert len(client.calls) == 101


def test_a_function_keeps_what_it_is(client: CapturingClient) -> None:
    @client.timer("t")
    def double(number: int, *, twice: bool = False) -> int:
        """Doubles."""
        return number * (4 if twice else 2)

    assert double(3, twice=True) == 12
    assert (double.__name__, double.__doc__) == ("double", "Doubles.")
    assert str(inspect.signature(double)) == "(number: 'int', *, twice: 'bool' = False) -> 'int'"
    assert len(recorded(client)) == 1

    @client.timer("t")
    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    assert len(recorded(client)) == 2


def test_methods_of_every_kind(client: CapturingClient) -> None:
    class Predictor:
        @client.timer("t")
        def predict(self) -> str:
            return "method"

        @client.timer("t")
        @classmethod
        def make(cls) -> str:
            return cls.__name__

        @client.timer("t")
        @staticmethod
        def help() -> str:
            return "static"

    assert (Predictor().predict(), Predictor.make(), Predictor.help()) == ("method", "Predictor", "static")
    assert len(recorded(client)) == 3


def test_a_coroutine_is_measured_to_its_end_and_stays_one(client: CapturingClient) -> None:
    @client.timer("t")
    async def wait(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "done"

    assert inspect.iscoroutinefunction(wait)
    assert asyncio.run(wait(PAUSE)) == "done"
    assert recorded(client)[0] >= PAUSE * 0.9

    class Callable:
        async def __call__(self) -> str:
            await asyncio.sleep(PAUSE)
            return "called"

    assert asyncio.run(client.timer("t")(Callable())()) == "called"
    assert asyncio.run(client.timer("t")(functools.partial(wait, PAUSE))()) == "done"
    assert all(seconds >= PAUSE * 0.9 for seconds in recorded(client))

    async def cancelled() -> None:
        task = asyncio.create_task(wait(100))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    client.clear()
    asyncio.run(cancelled())
    assert len(recorded(client)) == 1


def test_a_generator_is_measured_to_its_end_and_takes_what_is_sent(client: CapturingClient) -> None:
    @client.timer("t")
    def echo() -> Generator[str, str, str]:
        got = "start"
        while got != "stop":
            try:
                got = yield got
            except KeyError:
                got = "thrown"
        return "returned"

    generator = echo()
    assert inspect.isgeneratorfunction(echo)
    assert recorded(client) == []
    assert [next(generator), generator.send("a"), generator.throw(KeyError())] == ["start", "a", "thrown"]
    with pytest.raises(StopIteration) as stopped:
        generator.send("stop")
    assert stopped.value.value == "returned"
    assert len(recorded(client)) == 1
    closed = echo()
    next(closed)
    closed.close()
    assert len(recorded(client)) == 2

    @client.timer("t")
    def slow() -> Iterator[int]:
        yield 1
        time.sleep(PAUSE)

    assert list(slow()) == [1]
    assert recorded(client)[-1] >= PAUSE


def test_an_async_generator_is_measured_to_its_end_and_takes_what_is_sent(client: CapturingClient) -> None:
    cleaned = []

    @client.timer("t")
    async def echo() -> AsyncGenerator[str, str]:
        got = "start"
        try:
            while got != "stop":
                try:
                    got = yield got
                except KeyError:
                    got = "thrown"
        finally:
            await asyncio.sleep(0)
            cleaned.append(got)

    @client.timer("t")
    async def slow() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(PAUSE)

    async def run() -> None:
        generator = echo()
        assert await generator.__anext__() == "start"
        assert await generator.asend("a") == "a"
        assert await generator.athrow(KeyError()) == "thrown"
        with pytest.raises(StopAsyncIteration):
            await generator.asend("stop")
        closed = echo()
        await closed.__anext__()
        await closed.aclose()
        assert [value async for value in slow()] == [1]

    assert inspect.isasyncgenfunction(echo)
    asyncio.run(run())
    assert cleaned == ["stop", "start"]
    assert len(recorded(client)) == 3
    assert recorded(client)[-1] >= PAUSE * 0.9


@pytest.mark.parametrize("thing", [3, None, int, property(lambda self: self)])
def test_what_is_no_function_is_refused_where_it_is_decorated(client: CapturingClient, thing: Any) -> None:
    with pytest.raises(TypeError, match="want a function"):
        client.timer("t")(thing)


class BrokenMapping(UserDict[str, object]):
    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("broken")


BAD = [("", None), (3, None), ("t", 5), ("t", {3: "x"}), ("t", ["a:b"]), ("t", BrokenMapping())]


def test_a_bad_timer_never_raises_where_the_client_is_not_strict(udp: Udp) -> None:
    with MetricsClient(udp.url) as client:
        for metric, tags in [*BAD, ("t", {"good": "x"})]:
            with client.timer(metric, tags) as timing:  # type: ignore[arg-type]
                pass
            with client.timer(metric, tags) as timing:  # type: ignore[arg-type]
                timing.tags["added"] = 1
            assert client.timer(metric, tags)(len)([]) == 0  # type: ignore[arg-type]
        stats = client.stats()
    assert (stats["called"], sum(stats["dropped"].values())) == (3 * len(BAD) + 3, 3 * len(BAD))
    assert sorted(line.rpartition("|")[2] for line in udp.messages()) == ["#added:1,good:x", "#good:x"]


def test_what_a_strict_client_refuses_does_not_hide_what_the_body_raised(client: CapturingClient) -> None:
    for metric, tags in BAD:
        with pytest.raises((TypeError, ValueError)), client.timer(metric, tags):  # type: ignore[arg-type]
            pass
        with pytest.raises(KeyError), client.timer(metric, tags):  # type: ignore[arg-type]
            raise KeyError
    assert client.calls == []


def test_a_real_client_times_functions_too(udp: Udp) -> None:
    with MetricsClient(udp.url, strict=True) as client:

        @client.timer("predict_seconds", {"model": "v1"})
        def predict() -> int:
            return 1

        assert [predict() for _ in range(3)] == [1, 1, 1]
    (line,) = udp.messages()
    assert line.startswith("predict_seconds:")
    assert line.endswith("|h|#model:v1")
    assert line.count(":") == 4


def test_a_decorator_without_its_parentheses_is_told_where_it_stands(client: CapturingClient, udp: Udp) -> None:
    with MetricsClient(udp.url) as real:
        for metrics in (client, real):
            with pytest.raises(TypeError, match=r'want @metrics\.timer\("name"\)'):
                metrics.timer(lambda: None)  # type: ignore[arg-type]


def test_blocks_of_generators_that_take_turns_are_each_their_own(client: CapturingClient) -> None:
    timer = client.timer("block_seconds")

    def block(name: str) -> Iterator[None]:
        with timer as timing:
            timing.tags["name"] = name
            yield
            timing.tags["end"] = name

    first, second = block("a"), block("b")
    next(first)
    next(second)
    for generator in (first, second):
        assert next(generator, "over") == "over"
    assert [call.tags for call in client.calls] == [{"name": "a", "end": "a"}, {"name": "b", "end": "b"}]


def test_blocks_of_an_exit_stack_are_recorded_once_each(client: CapturingClient) -> None:
    timer = client.timer("block_seconds")
    with ExitStack() as stack:
        for name in ("a", "b"):
            stack.enter_context(timer).tags["name"] = name
    assert [call.tags["name"] for call in client.calls] == ["b", "a"]
