"""The ASGI middleware, called as a server calls it; what it records is read from a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

import pytest
from cortex_metrics import MetricsClient
from cortex_metrics.asgi import MetricsMiddleware
from support import Recorded, Udp

Message = MutableMapping[str, Any]
OK: list[Message] = [
    {"type": "http.response.start", "status": 200, "headers": []},
    {"type": "http.response.body", "body": b"ok"},
]


async def run(app: Any, scope: Message | None = None, received: list[Message] | None = None) -> list[Message]:
    """One request; gives what was sent."""
    sent: list[Message] = []
    queue = list(received or [{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Message:
        return queue.pop(0) if queue else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope or {"type": "http", "method": "GET", "path": "/", "headers": []}, receive, send)
    return sent


def answering(messages: list[Message]) -> Callable[..., Awaitable[None]]:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    return app


def test_a_request_is_counted_and_timed_and_the_codes_begin_at_zero(udp: Udp) -> None:
    with MetricsClient(udp.url, flush_interval=60) as client:
        app = MetricsMiddleware(answering(OK), client, api_name="iris", api_id="v1", endpoint="http://x/")
        assert asyncio.run(run(app)) == OK
        recorded = Recorded(udp, client)
    assert recorded.requests == {"200": 1, "400": 0, "500": 0}
    assert set(recorded.requests) == {"200", "400", "500"}
    assert (recorded.durations, recorded.first_bytes) == (1, 1)
    assert recorded.labels["cortex_api_requests_total"].keys() == {"api_name", "api_id", "response_code"}
    assert recorded.labels["cortex_api_request_duration_seconds"] == {"api_name": "iris", "api_id": "v1"}
    assert recorded.labels["cortex_api_in_flight_requests"].keys() == {"api_name", "api_id", "replica", "process"}
    assert recorded.labels["cortex_api_info"]["endpoint"] == "http://x/"
    assert recorded.gauges["cortex_api_replica_start_timestamp_seconds"] > 1.7e9
    assert recorded.gauges["cortex_api_in_flight_requests"] == 0


def counted(
    udp: Udp, app: Any, received: list[Message] | None = None, raises: type[BaseException] | None = None
) -> Counter[str]:
    with MetricsClient(udp.url, flush_interval=60) as client:
        wrapped = MetricsMiddleware(app, client, api_name="a")
        if raises:
            with pytest.raises(raises):
                asyncio.run(run(wrapped, received=received))
        else:
            asyncio.run(run(wrapped, received=received))
        recorded = Recorded(udp, client)
        wrapped._metrics.record()
        assert Recorded(udp, client).gauges["cortex_api_in_flight_requests"] == 0
    assert recorded.durations == 1
    return +recorded.requests


def test_an_exception_counts_as_500_and_is_raised_on(udp: Udp) -> None:
    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        raise LookupError

    assert counted(udp, app, raises=LookupError) == {"500": 1}


def test_an_exception_after_the_last_byte_leaves_the_code_as_it_was_sent(udp: Udp) -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        for message in OK:
            await send(message)
        raise LookupError

    assert counted(udp, app, raises=LookupError) == {"200": 1}


def test_no_whole_response_counts_as_500(udp: Udp) -> None:
    assert counted(udp, answering(OK[:1])) == {"500": 1}


def test_a_client_that_disconnects_counts_as_499_and_the_app_sees_it(udp: Udp) -> None:
    seen = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        seen.append((await receive())["type"])
        await send(OK[0])
        seen.append((await receive())["type"])
        await send(OK[1])

    assert counted(udp, app) == {"499": 1}
    assert seen == ["http.request", "http.disconnect"]


def test_a_disconnect_after_the_response_is_no_disconnect(udp: Udp) -> None:
    async def app(_scope: Any, receive: Any, send: Any) -> None:
        for message in OK:
            await send(message)
        await receive()
        assert (await receive())["type"] == "http.disconnect"

    assert counted(udp, app) == {"200": 1}


def test_a_cancelled_request_counts_as_499(udp: Udp) -> None:
    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        raise asyncio.CancelledError

    assert counted(udp, app, raises=asyncio.CancelledError) == {"499": 1}


class Cycle:
    """A request of uvicorn's, whose method `receive` is."""

    disconnected = False

    async def receive(self) -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}


def test_uvicorn_is_asked_whether_a_client_is_gone_that_nobody_waits_for(udp: Udp) -> None:
    cycle = Cycle()

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        cycle.disconnected = True  # and all that is sent is dropped
        for message in OK:
            await send(message)

    async def cancelled(_scope: Any, _receive: Any, _send: Any) -> None:
        raise asyncio.CancelledError

    async def send(_message: Message) -> None: ...

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    with MetricsClient(udp.url, flush_interval=60) as client:
        for inner, code in ((cancelled, "500"), (app, "499"), (cancelled, "499")):
            wrapped = MetricsMiddleware(inner, client, api_name="a")
            with contextlib.suppress(asyncio.CancelledError):
                asyncio.run(wrapped(scope, cycle.receive, send))
            assert +Recorded(udp, client).requests == {code: 1}


def test_requests_leave_nothing_in_memory(udp: Udp) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if scope["path"] == "/raise":
            raise LookupError
        await send(OK[0])
        if scope["path"] == "/cancel":
            raise asyncio.CancelledError
        await send(OK[1])

    async def many(wrapped: Any, count: int) -> None:
        for _ in range(count):
            for path in ("/", "/raise", "/cancel"):
                with contextlib.suppress(LookupError, asyncio.CancelledError):
                    await run(wrapped, {"type": "http", "method": "GET", "path": path, "headers": []})

    with MetricsClient(udp.url, flush_interval=60) as client:
        wrapped = MetricsMiddleware(app, client, api_name="a", route_label=lambda scope: scope["path"])
        asyncio.run(many(wrapped, 10))
        gc.collect()
        gc.disable()
        try:
            before = len(gc.get_objects())
            asyncio.run(many(wrapped, 1000))
            # Not even what only the garbage collector would find; some objects of asyncio's own remain.
            assert len(gc.get_objects()) - before < 300
        finally:
            gc.enable()


def test_in_flight_is_zero_again_whatever_happened_and_its_peak_is_true(udp: Udp) -> None:
    dice = random.Random(7)

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await asyncio.sleep(0.01 * dice.random())
        if dice.random() < 0.2:
            raise LookupError
        await send(OK[0])
        await asyncio.sleep(0)
        await send(OK[1])

    async def many(wrapped: Any) -> None:
        tasks = [asyncio.ensure_future(run(wrapped)) for _ in range(500)]
        await asyncio.sleep(0.005)
        for task in dice.sample(tasks, 100):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    with MetricsClient(udp.url, flush_interval=60) as client:
        wrapped = MetricsMiddleware(app, client, api_name="a")
        asyncio.run(many(wrapped))
        wrapped._metrics.record()
        recorded = Recorded(udp, client)
        assert recorded.gauges["cortex_api_in_flight_requests"] == 0
        assert recorded.gauges["cortex_api_in_flight_requests_peak"] == 500
        assert sum(recorded.requests.values()) == recorded.durations == 500
        wrapped._metrics.record()
        assert Recorded(udp, client).gauges["cortex_api_in_flight_requests_peak"] == 0


def test_in_flight_is_zero_after_a_hundred_thousand_requests_that_are_cancelled_raise_or_stream(udp: Udp) -> None:
    dice = random.Random(11)

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await asyncio.sleep(0)
        what = dice.random()
        if what < 0.1:
            raise LookupError
        await send(OK[0])
        if what < 0.4:
            for _ in range(3):
                await asyncio.sleep(0)
                await send({"type": "http.response.body", "body": b"o", "more_body": True})
        elif what < 0.5:
            return
        await send(OK[1])

    async def many(wrapped: Any) -> None:
        for _ in range(100):
            tasks = [asyncio.ensure_future(run(wrapped)) for _ in range(1000)]
            for turns in range(4):
                await asyncio.sleep(0)
                for task in dice.sample(tasks, 50 * turns):
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    with MetricsClient(udp.url, flush_interval=60) as client:
        wrapped = MetricsMiddleware(app, client, api_name="a")
        asyncio.run(many(wrapped))
        wrapped._metrics.record()
        recorded = Recorded(udp, client)
    assert recorded.gauges["cortex_api_in_flight_requests"] == 0
    # A task that was cancelled before its first step never called the app.
    assert sum(recorded.requests.values()) == recorded.durations > 95_000
    assert min(recorded.requests[code] for code in ("200", "499", "500")) > 1000


def test_one_path_to_exclude_that_is_no_list_is_told(udp: Udp) -> None:
    with MetricsClient(udp.url) as client, pytest.raises(TypeError, match=r"want several paths, like \('/live',\)"):
        MetricsMiddleware(answering(OK), client, exclude="/live")


def test_the_route_is_a_template_and_never_a_path(udp: Udp, caplog: pytest.LogCaptureFixture) -> None:
    from fastapi import FastAPI
    from litestar import Litestar, get
    from litestar.params import FromPath
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def item(item_id: int) -> int:
        return 1 // item_id

    async def litestar_item(item_id: FromPath[int]) -> int:
        return item_id

    async def starlette_item(_request: Any) -> PlainTextResponse:
        return PlainTextResponse("1")

    fast = FastAPI()
    fast.get("/items/{item_id}")(item)
    apps = (
        fast,
        Starlette(routes=[Route("/items/{item_id:int}", starlette_item)]),
        Litestar([get("/items/{item_id:int}")(litestar_item)], logging_config=None),
    )

    def routes(app: Any, route_label: Any, *paths: str) -> set[str]:
        with MetricsClient(udp.url, flush_interval=60) as client:
            wrapped = MetricsMiddleware(app, client, api_name="a", route_label=route_label)
            for path in paths:
                scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "headers": []}
                more = {"query_string": b"", "root_path": "", "scheme": "http", "server": ("x", 80), "state": {}}
                with contextlib.suppress(ZeroDivisionError):
                    asyncio.run(run(wrapped, {**scope, **more}))
            recorded = Recorded(udp, client)
            assert recorded.durations == len(paths)
            return recorded.routes

    for app in apps:
        assert routes(app, True, "/items/1", "/items/2") == {"/items/{item_id}"}
        assert routes(app, True, "/none") == {"unmatched"}
        assert routes(app, False, "/items/1") == set()
    assert routes(fast, True, "/items/0") == {"/items/{item_id}"}, "an exception too"
    assert routes(answering(OK), True, "/items/1") == {"unmatched"}
    assert routes(answering(OK), lambda scope: scope["path"][:3], "/items/1") == {"/it"}
    assert routes(answering(OK), lambda scope: scope["no such"], "/items/1", "/items/2") == {"unmatched"}
    assert caplog.text.count("route_label raised") == 1, "told once"


def test_other_scopes_and_excluded_paths_pass_through_uncounted(udp: Udp) -> None:
    with MetricsClient(udp.url, flush_interval=60) as client:
        app = MetricsMiddleware(answering(OK), client, api_name="a", exclude=("/live",))
        for scope in ({"type": "websocket", "path": "/"}, {"type": "http", "path": "/live"}, {"type": "lifespan"}):
            assert asyncio.run(run(app, scope)) == OK
        recorded = Recorded(udp, client)
    assert recorded.durations == 0


@pytest.mark.parametrize(
    "messages",
    [
        [OK[0], {"type": "http.response.pathsend", "path": "/etc/hostname"}],
        [OK[0], {"type": "http.response.zerocopysend", "file": 3, "more_body": True}, OK[1]],
        [OK[0], {"type": "http.response.body", "body": b"o", "more_body": True}, OK[1]],
        [{**OK[0], "trailers": True}, OK[1], {"type": "http.response.trailers", "headers": []}],
    ],
    ids=["a path", "a file", "chunks", "trailers"],
)
def test_a_response_is_complete_however_its_body_is_sent(udp: Udp, messages: list[Message]) -> None:
    assert counted(udp, answering(messages)) == {"200": 1}


def test_a_response_whose_trailers_never_came_counts_as_500(udp: Udp) -> None:
    assert counted(udp, answering([{**OK[0], "trailers": True}, OK[1]])) == {"500": 1}


def test_the_name_of_a_code_is_its_number(udp: Udp) -> None:
    # Before Python 3.11 str(HTTPStatus.CREATED) is "HTTPStatus.CREATED".
    assert counted(udp, answering([{**OK[0], "status": HTTPStatus.CREATED}, OK[1]])) == {"201": 1}


def test_a_process_that_gets_no_thread_answers_all_the_same(
    udp: Udp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with MetricsClient(udp.url, flush_interval=60) as client:
        app = MetricsMiddleware(answering(OK), client, api_name="a")
        for _ in range(2):
            assert asyncio.run(run(app)) == OK
    assert [record.getMessage() for record in caplog.records] == [
        "in-flight requests of a are not recorded: can't start new thread"
    ]


@pytest.mark.parametrize("text", ["many", "nan", "inf", "-1"])
def test_a_bad_number_of_replicas_is_told_and_ignored(
    udp: Udp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    monkeypatch.setenv("CORTEX_REPLICAS_REQUESTED", text)
    with MetricsClient(udp.url, flush_interval=60) as client:
        app = MetricsMiddleware(answering(OK), client, api_name="a")
        asyncio.run(run(app))
        assert "cortex_api_replicas_requested" not in Recorded(udp, client).gauges
    assert [record.getMessage() for record in caplog.records] == [
        f"CORTEX_REPLICAS_REQUESTED: got {text!r}, want a number of 0 or more; it is ignored"
    ]


def test_codes_that_no_response_has_do_not_make_series(udp: Udp) -> None:
    messages: list[Message] = [{**OK[0], "status": 7_000_001}, OK[1]]
    assert counted(udp, answering(messages)) == {"other": 1}


def test_a_fork_is_a_process_of_the_same_replica(udp: Udp) -> None:
    client = MetricsClient(udp.url, flush_interval=60)
    app = MetricsMiddleware(answering(OK), client, api_name="a")
    asyncio.run(run(app))
    client.flush()
    parent = [m for m in udp.messages() if m.startswith("cortex_api_in_flight_requests:")]
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(run(app))
            client.flush()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    forked = [m for m in udp.messages() if m.startswith("cortex_api_in_flight_requests:")]
    labels = [dict(t.split(":", 1) for t in m[0].partition("|#")[2].split(",")) for m in (parent, forked)]
    assert labels[0]["replica"] == labels[1]["replica"]
    assert labels[0]["process"] != labels[1]["process"]
    client.close()
