"""The WSGI middleware, called as a server calls it and in real servers; what it records is read from a real socket."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import FileWrapper, setup_testing_defaults

import pytest
from cortex_metrics import MetricsClient
from cortex_metrics.wsgi import MetricsMiddleware
from support import Recorded, Udp, package_path, pythons

Start = Callable[..., Callable[[bytes], object]]


def ok(_environ: Any, start: Start) -> list[bytes]:
    start("200 OK", [("Content-Type", "text/plain")])
    return [b"o", b"k"]


def environ(path: str = "/", **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"PATH_INFO": path, "wsgi.file_wrapper": FileWrapper, **more}
    setup_testing_defaults(made)
    return made


class Server:
    """Calls an app as PEP 3333 says a server does; `pieces` may end before the body does."""

    def __init__(self, app: Any, pieces: int = 1000, **more: Any) -> None:
        self.status = ""
        self.written: list[bytes] = []
        body = app(environ(**more), self.start_response)
        self.body = body
        try:
            for _, piece in zip(range(pieces), body, strict=False):
                self.written.append(piece)
        finally:
            if hasattr(body, "close"):
                body.close()

    def start_response(self, status: str, _headers: Any, exc_info: Any = None) -> Callable[[bytes], object]:
        if exc_info and self.written:
            raise exc_info[1]
        self.status = status
        return self.written.append


def counted(udp: Udp, app: Any, raises: type[BaseException] | None = None, **how: Any) -> Counter[str]:
    with MetricsClient(udp.url, flush_interval=60) as client:
        wrapped = MetricsMiddleware(app, client, api_name="a")
        if raises:
            with pytest.raises(raises):
                Server(wrapped, **how)
        else:
            Server(wrapped, **how)
        recorded = Recorded(udp, client)
        wrapped._metrics.record()
        assert Recorded(udp, client).gauges["cortex_api_in_flight_requests"] == 0
    assert recorded.durations == 1
    return +recorded.requests


def test_a_request_is_counted_and_timed_and_the_codes_begin_at_zero(udp: Udp) -> None:
    with MetricsClient(udp.url, flush_interval=60) as client:
        app = MetricsMiddleware(ok, client, api_name="iris", api_id="v1", endpoint="http://x/")
        begun = Recorded(udp, client)
        assert begun.gauges["cortex_api_replica_start_timestamp_seconds"] > 1.7e9, "before any request"
        server = Server(app)
        recorded = Recorded(udp, client)
    assert (server.status, server.written) == ("200 OK", [b"o", b"k"])
    assert begun.requests == {"200": 0, "400": 0, "500": 0}
    assert recorded.requests == {"200": 1}
    assert (recorded.durations, recorded.first_bytes) == (1, 1)
    assert recorded.labels["cortex_api_request_duration_seconds"] == {"api_name": "iris", "api_id": "v1"}


def test_a_stream_lasts_until_its_last_piece_and_its_first_byte_is_its_own(udp: Udp) -> None:
    def app(_environ: Any, start: Start) -> Iterator[bytes]:
        start("201 Created", [])
        yield b""
        yield b"a"
        yield b"b"

    with MetricsClient(udp.url, flush_interval=60) as client:
        wrapped = MetricsMiddleware(app, client, api_name="a")
        client.flush()
        udp.messages()
        body = iter(wrapped(environ(), lambda *_: print))
        for piece, first_bytes in ((b"", 0), (b"a", 1), (b"b", 0)):
            assert next(body) == piece
            recorded = Recorded(udp, client)
            assert (recorded.first_bytes, recorded.durations) == (first_bytes, 0)
        assert next(body, None) is None
        assert Recorded(udp, client).requests == {"201": 1}


def test_an_exception_counts_as_500_and_is_raised_on(udp: Udp) -> None:
    def at_once(_environ: Any, _start: Start) -> list[bytes]:
        raise LookupError

    def later(_environ: Any, start: Start) -> Iterator[bytes]:
        start("200 OK", [])
        yield b"a"
        raise LookupError

    class NoIterator:
        def __iter__(self) -> Iterator[bytes]:
            raise LookupError

    for app in (at_once, later, lambda *_: NoIterator()):
        assert counted(udp, app, raises=LookupError) == {"500": 1}


def test_an_app_that_answers_an_error_itself_is_counted_by_its_last_word(udp: Udp) -> None:
    def app(_environ: Any, start: Start) -> list[bytes]:
        start("200 OK", [])
        try:
            raise LookupError
        except LookupError:
            start("503 Service Unavailable", [], sys.exc_info())
        return [b"later"]

    assert counted(udp, app) == {"503": 1}


def test_an_app_that_never_says_its_status_counts_as_500(udp: Udp) -> None:
    assert counted(udp, lambda *_: []) == {"500": 1}


def test_a_server_that_stops_to_ask_counts_as_499(udp: Udp) -> None:
    closed = []

    class Body(list[bytes]):
        def close(self) -> None:
            closed.append(1)

    def app(_environ: Any, start: Start) -> Iterable[bytes]:
        start("200 OK", [])
        return Body([b"a", b"b", b"c"])

    assert counted(udp, app, pieces=2) == {"499": 1}
    assert counted(udp, app, pieces=0, REQUEST_METHOD="HEAD") == {"200": 1}
    assert counted(udp, app) == {"200": 1}
    assert closed == [1, 1, 1]


def test_a_server_that_never_closes_leaves_nothing_in_flight(udp: Udp) -> None:
    with MetricsClient(udp.url, flush_interval=60) as client:
        wrapped = MetricsMiddleware(ok, client, api_name="a")
        next(iter(wrapped(environ(), lambda *_: print)))
        gc.collect()
        assert Recorded(udp, client).requests["499"] == 1


def test_the_garbage_collector_may_end_a_request_in_the_middle_of_a_record(udp: Udp) -> None:
    # It did while the lock was held, by the same thread, which then waited for itself; and all requests with it.
    with MetricsClient(udp.url, flush_interval=60) as client:
        wrapped = MetricsMiddleware(ok, client, api_name="a")
        metrics = wrapped._metrics
        plain = metrics._gauge

        def gauge_and_collect(metric: str, value: float, tags: dict[str, str]) -> None:
            plain(metric, value, tags)
            bodies.clear()

        bodies = [wrapped(environ(), lambda *_: print)]
        metrics._gauge = gauge_and_collect
        recording = threading.Thread(target=metrics.record, daemon=True)
        recording.start()
        recording.join(10)
        assert not recording.is_alive()
        metrics._gauge = plain
        metrics.record()
        recorded = Recorded(udp, client)
    assert recorded.requests["499"] == 1
    assert recorded.gauges["cortex_api_in_flight_requests"] == 0


def test_what_is_written_is_passed_on(udp: Udp) -> None:
    def app(_environ: Any, start: Start) -> list[bytes]:
        write = start("200 OK", [])
        write(b"old ")
        return [b"ways"]

    with MetricsClient(udp.url, flush_interval=60) as client:
        assert Server(MetricsMiddleware(app, client, api_name="a")).written == [b"old ", b"ways"]
        recorded = Recorded(udp, client)
    assert (recorded.first_bytes, recorded.requests["200"]) == (1, 1)


def test_a_body_keeps_its_length_and_a_file_its_wrapper(udp: Udp, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")

    def file(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start("200 OK", [])
        return environ["wsgi.file_wrapper"]((tmp_path / "file").open("rb"))  # type: ignore[no-any-return]

    with MetricsClient(udp.url, flush_interval=60) as client:
        server = Server(MetricsMiddleware(file, client, api_name="a"))
        assert type(server.body) is FileWrapper, "so that the server can send the file itself"
        assert server.written == [b"content"]
        assert server.body.filelike.closed
        assert len(Server(MetricsMiddleware(ok, client, api_name="a")).body) == 2
        assert Recorded(udp, client).requests["200"] == 2


def test_excluded_paths_pass_through_uncounted(udp: Udp) -> None:
    with MetricsClient(udp.url, flush_interval=60) as client:
        app = MetricsMiddleware(ok, client, api_name="a", exclude=("/live",))
        Server(app, PATH_INFO="/live")
        assert Recorded(udp, client).durations == 0
        with pytest.raises(TypeError, match=r"want several paths, like \('/live',\)"):
            MetricsMiddleware(ok, client, exclude="/live")


def test_the_route_is_a_template_and_never_a_path(udp: Udp, caplog: pytest.LogCaptureFixture) -> None:
    flask = pytest.importorskip("flask")
    app = flask.Flask("shop")
    app.get("/items/<int:item>")(lambda item: f"{item}")

    def boom() -> None:
        raise LookupError

    app.get("/boom")(boom)

    def routes(route_label: Any, *paths: str) -> set[str]:
        with MetricsClient(udp.url, flush_interval=60) as client:
            wrapped = MetricsMiddleware(app, client, api_name="a", route_label=route_label)
            Recorded(udp, client)
            for path in paths:
                Server(wrapped, PATH_INFO=path)
            recorded = Recorded(udp, client)
            assert recorded.durations == len(paths)
            return recorded.routes

    assert routes(True, "/items/1", "/items/2") == {"/items/<int:item>"}
    assert routes(True, "/none", "/items/x") == {"unmatched"}
    assert routes(True, "/boom") == {"/boom"}
    assert routes(False, "/items/1") == set()
    assert routes(lambda environ: environ["PATH_INFO"][:3], "/items/1") == {"/it"}
    assert "raised" not in caplog.text.replace("Exception", "")
    assert routes(lambda environ: environ["no such"], "/items/1") == {"unmatched"}
    assert "route_label raised" in caplog.text


def test_a_django_app_is_counted(udp: Udp) -> None:
    django = pytest.importorskip("django.conf")
    if not django.settings.configured:
        django.settings.configure(SECRET_KEY="x", ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"])
    from django.core.wsgi import get_wsgi_application

    with MetricsClient(udp.url, flush_interval=60) as client:
        app = MetricsMiddleware(get_wsgi_application(), client, api_name="a")
        assert Server(app, PATH_INFO="/hello").written == [b"hello"]
        assert Server(app, PATH_INFO="/none").status.startswith("404")
        assert +Recorded(udp, client).requests == {"200": 1, "404": 1}


def _urlpatterns() -> list[Any]:
    from django.http import HttpResponse
    from django.urls import path

    return [path("hello", lambda _request: HttpResponse("hello"))]


def __getattr__(name: str) -> Any:
    # What Django looks for in the module of its routes.
    if name == "urlpatterns":
        return _urlpatterns()
    raise AttributeError(name)


FORKS = """
import os, sys, threading, time
threads = []
# Hooks run in reverse: what is registered before ours runs after it, right before the fork.
os.register_at_fork(before=lambda: threads.append(threading.active_count()))
from cortex_metrics import MetricsClient, _requests
from cortex_metrics.wsgi import MetricsMiddleware
_requests.RECORD_SECONDS = 0.05
client = MetricsClient(sys.argv[1], flush_interval=0.05)
app = MetricsMiddleware(lambda *_: [], client, api_name="a")
for _ in range(3):
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert [thread.name for thread in threading.enumerate()] == ["MainThread", "cortex-requests"]
    time.sleep(0.2)
assert threads == [1 if sys.version_info >= (3, 12) else 2] * 3, threads
"""


@pytest.mark.parametrize("python", pythons(), ids=lambda python: python.parents[1].name)
def test_a_fork_finds_no_thread_of_ours_and_the_record_goes_on(udp: Udp, tmp_path: Path, python: Path) -> None:
    command: list[str | Path] = [python, "-W", "error", "-c", FORKS, udp.url]
    env = {**os.environ, "PYTHONPATH": package_path(tmp_path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    records = [m for m in udp.messages() if m.startswith("cortex_api_in_flight_requests:")]
    assert len(records) >= 6, "two after each fork"


def test_a_fork_is_a_process_of_the_same_replica(udp: Udp) -> None:
    client = MetricsClient(udp.url, flush_interval=60)
    app = MetricsMiddleware(ok, client, api_name="a")
    parent = Recorded(udp, client).labels["cortex_api_in_flight_requests"]
    child = os.fork()
    if child == 0:
        try:
            Server(app)
            client.flush()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    forked = Recorded(udp, client).labels["cortex_api_in_flight_requests"]
    assert parent["replica"] == forked["replica"]
    assert parent["process"] != forked["process"]
    client.close()
