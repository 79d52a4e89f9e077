"""Both middlewares in real servers with several workers, before a real collector: counts are exact, a server is one replica."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import BIN, Collector, Process, free_port, until

APP = """
import asyncio, os, time
from cortex_metrics import MetricsClient
from cortex_metrics.asgi import MetricsMiddleware as Asgi
from cortex_metrics.wsgi import MetricsMiddleware as Wsgi
from fastapi import FastAPI, WebSocket
from fastapi.responses import StreamingResponse
from flask import Flask, Response

def pieces():
    while True:
        time.sleep(0.01)
        yield b"x" * 10_000

fast = FastAPI()

@fast.get("/items/{item}")
async def item(item: int):
    await asyncio.sleep(0.001)
    if item % 10 == 9:
        raise LookupError
    return os.getpid()

@fast.get("/stream")
async def stream():
    return StreamingResponse(pieces())

@fast.get("/slow")
async def slow():
    await asyncio.sleep(0.5)
    return "done"

@fast.websocket("/echo")
async def echo(websocket: WebSocket):
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())
    await websocket.close()

flask = Flask(__name__)

@flask.get("/items/<int:item>")
def flask_item(item):
    if item % 10 == 9:
        raise LookupError
    return str(os.getpid())

@flask.get("/stream")
def flask_stream():
    return Response(pieces())

client = MetricsClient(tags={"api_name": "shop"})
asgi = Asgi(fast, client, api_name="shop", route_label=True)
wsgi = Wsgi(flask, client, api_name="shop", route_label=True)
"""

SERVERS = {
    "uvicorn": ["uvicorn", "app:asgi", "--workers", "8", "--log-level", "critical", "--port"],
    "gunicorn": ["gunicorn", "app:wsgi", "--workers", "4", "--log-level", "critical", "--bind"],
    "gunicorn-preload": [
        *("gunicorn", "app:wsgi", "--preload", "--workers", "4", "--threads", "2", "--max-requests", "50"),
        *("--max-requests-jitter", "20", "--log-level", "critical", "--bind"),
    ],
}


class Server(Process):
    """A server in its folder; its address once it answers."""

    def __init__(self, folder: Path, collector: Collector, name: str) -> None:
        (folder / "app.py").write_text(APP)
        self.port = free_port()
        program, *arguments = SERVERS[name]
        place = f"127.0.0.1:{self.port}" if program == "gunicorn" else str(self.port)
        env = {"PYTHONPATH": str(folder), "CORTEX_METRICS_URL": collector.url}
        super().__init__(folder / f"{name}.log", BIN / program, *arguments, place, env=env)
        until(self.answers, 60)

    def answers(self) -> bool:
        assert self.process.poll() is None, self.text()
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", self.port)) == 0

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def many(self, count: int, threads: int = 8) -> Counter[int]:
        """Asks for so many items, every tenth of which fails."""
        codes: Counter[int] = Counter()

        def ask(first: int) -> None:
            own = Counter(self.get(f"/items/{item}")[0] for item in range(first, count, threads))
            with lock:
                codes.update(own)

        lock = threading.Lock()
        asking = [threading.Thread(target=ask, args=(at,)) for at in range(threads)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        return codes

    def leave_slow(self) -> None:
        """Asks for an answer that takes its time and goes away before it."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            connection.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
            time.sleep(0.1)

    def leave_a_stream(self) -> None:
        """Asks for a stream without end and goes away."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            connection.sendall(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(12) == b"HTTP/1.1 200"


@pytest.fixture
def server(tmp_path: Path, collector: Collector) -> Iterator[Callable[[str], Server]]:
    started: list[Server] = []

    def start(name: str) -> Server:
        started.append(Server(tmp_path, collector, name))
        return started[-1]

    yield start
    for each in started:
        each.stop()


REQUESTS = "sum by (response_code, route) (cortex_api_requests_total{route!=''})"


@pytest.mark.parametrize("name", SERVERS)
def test_counts_are_exact_however_many_workers_there_are(
    server: Callable[[str], Server], collector: Collector, name: str
) -> None:
    running = server(name)
    assert running.many(400) == {200: 360, 500: 40}
    assert running.get("/none")[0] == 404
    running.leave_a_stream()
    if name == "uvicorn":
        running.leave_slow()
    item = "/items/{item}" if name == "uvicorn" else "/items/<int:item>"
    want = {
        f"response_code=200,route={item}": 360,
        f"response_code=500,route={item}": 40,
        "response_code=404,route=unmatched": 1,
        "response_code=499,route=/stream": 1,
        # A plain answer, whose app never asks whether somebody waits for it.
        **({"response_code=499,route=/slow": 1} if name == "uvicorn" else {}),
    }
    until(lambda: collector.query(REQUESTS) == want, 30)
    assert collector.query("sum(cortex_api_in_flight_requests)") == {"": 0}
    rows = collector.rows()
    assert rows["shop"]["responses"] == {"200": 360, "404": 1, "499": 2 if name == "uvicorn" else 1, "500": 40}
    assert rows["shop"]["up_to_date"] == 1, "a server is one replica with all its workers"
    assert rows["shop"]["status"] == "live"
    assert collector.query("count(cortex_api_process_resident_memory_bytes > 1e7)")[""] >= 2
    assert collector.query("sum by (replica) (cortex_api_process_cpu_seconds_total)").popitem()[1] > 0.1
    assert running.stop() == 0
    assert collector.query(REQUESTS) == want


def test_a_worker_that_is_killed_loses_a_second_at_most_and_its_gauges_end(
    server: Callable[[str], Server], collector: Collector
) -> None:
    running = server("gunicorn")
    running.many(200)
    time.sleep(1.5)
    pid = int(running.get("/items/1")[1])
    workers = f'count(cortex_api_in_flight_requests{{process=~"{pid}-.*"}})'
    until(lambda: collector.query(workers) == {"": 1})
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    # What it had not sent: the last request alone.
    until(lambda: collector.query("sum(cortex_api_requests_total)")[""] >= 200, 10)
    assert running.many(50) == {200: 45, 500: 5}
    until(lambda: 250 <= collector.query("sum(cortex_api_requests_total)")[""] <= 251, 10)
    until(lambda: not collector.query(workers), 45)
    assert time.monotonic() - killed < 45
    assert collector.rows()["shop"]["up_to_date"] == 1


def test_a_websocket_passes_through_uncounted(server: Callable[[str], Server], collector: Collector) -> None:
    running = server("uvicorn")
    with socket.create_connection(("127.0.0.1", running.port), timeout=30) as connection:
        connection.sendall(
            b"GET /echo HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        head = connection.recv(4096)
        assert head.startswith(b"HTTP/1.1 101"), head
        # A text frame, masked with zeros: "hello".
        connection.sendall(b"\x81\x85\0\0\0\0hello")
        assert connection.recv(4096).startswith(b"\x81\x05hello")
    assert running.get("/items/1")[0] == 200
    until(lambda: collector.query("sum(cortex_api_requests_total)") == {"": 1})
