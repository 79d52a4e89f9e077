"""What the middlewares add to a request of an app that does nothing, beside other middlewares.

All subjects are measured in one run, in turn, round after round; what is shown is the median of the rounds. ``make
bench-requests`` installs what this needs; peers that are not installed are left out. What is subtracted is the same app
without a middleware: a bare ASGI or WSGI app, and for the peers, which want it, one of Starlette.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any

from cortex_metrics import MetricsClient
from cortex_metrics.asgi import MetricsMiddleware as Asgi
from cortex_metrics.wsgi import MetricsMiddleware as Wsgi
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "method": "GET",
    "path": "/",
    "raw_path": b"/",
    "root_path": "",
    "query_string": b"",
    "headers": [(b"host", b"x")],
    "scheme": "http",
    "server": ("127.0.0.1", 80),
    "client": ("127.0.0.1", 1),
}


async def bare(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


def bare_wsgi(_environ: Any, start: Any) -> list[bytes]:
    start("200 OK", [])
    return [b"ok"]


def starlette(*middleware: tuple[Any, dict[str, Any]]) -> Any:
    async def ok(_request: Request) -> Response:
        return Response(b"ok")

    app = Starlette(routes=[Route("/", ok)])
    for cls, arguments in middleware:
        app.add_middleware(cls, **arguments)
    return app


def asgi_calls(app: Any, count: int) -> Callable[[], float]:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_message: Any) -> None:
        return

    async def calls() -> float:
        began = time.perf_counter()
        for _ in range(count):
            await app(dict(SCOPE), receive, send)
        return (time.perf_counter() - began) / count * 1e6

    return lambda: asyncio.run(calls())


def wsgi_calls(app: Any, count: int) -> Callable[[], float]:
    def calls() -> float:
        began = time.perf_counter()
        for _ in range(count):
            body = app({"PATH_INFO": "/", "REQUEST_METHOD": "GET"}, lambda *_: None)
            for _piece in body:
                pass
            if hasattr(body, "close"):
                body.close()
        return (time.perf_counter() - began) / count * 1e6

    return calls


def subjects(url: str) -> dict[str, tuple[Callable[[Any, int], Callable[[], float]], Any, str]]:
    """How it is called, the app, and what of the others it is compared with."""
    client = MetricsClient(url)
    found: dict[str, Any] = {
        "a bare ASGI app": (asgi_calls, bare, ""),
        "cortex_metrics.asgi": (asgi_calls, Asgi(bare, client, api_name="a"), "a bare ASGI app"),
        "a bare WSGI app": (wsgi_calls, bare_wsgi, ""),
        "cortex_metrics.wsgi": (wsgi_calls, Wsgi(bare_wsgi, client, api_name="a"), "a bare WSGI app"),
        "Starlette": (asgi_calls, starlette(), ""),
        "cortex_metrics.asgi in Starlette": (
            asgi_calls,
            starlette((Asgi, {"client": client, "api_name": "a", "route_label": True})),
            "Starlette",
        ),
    }
    try:
        from prometheus_fastapi_instrumentator import Instrumentator

        app = starlette()
        Instrumentator().instrument(app)
        found["prometheus-fastapi-instrumentator"] = (asgi_calls, app, "Starlette")
    except ImportError:
        pass
    try:
        from starlette_exporter import PrometheusMiddleware

        found["starlette_exporter"] = (asgi_calls, starlette((PrometheusMiddleware, {})), "Starlette")
    except ImportError:
        pass
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", nargs="?", choices=["quick"], help="a look instead of a measurement")
    is_quick = parser.parse_args().size == "quick"
    count, rounds = (2_000, 3) if is_quick else (20_000, 11)
    sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sink.bind(("127.0.0.1", 0))
    found = subjects(f"udp://127.0.0.1:{sink.getsockname()[1]}")
    calls = {name: how(app, count) for name, (how, app, _) in found.items()}
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(call())
    medians = {name: statistics.median(of) for name, of in times.items()}
    print(f"us a request, median of {rounds} rounds of {count:,}; CPython {platform.python_version()}\n")
    print(f"{'':36}{'all':>8}{'added':>9}")
    for name, (_, _, base) in found.items():
        added = f"{medians[name] - medians[base]:9.2f}" if base else ""
        print(f"{name:36}{medians[name]:8.2f}{added}")


if __name__ == "__main__":
    main()
