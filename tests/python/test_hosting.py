"""How `cortex-serve` lives and ends as a process: signals, workers that die, predictions that hang, ports that are taken."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support import BIN, Process, Recorded, Udp, post, until

Serve = Callable[..., Process]

PREDICTORS = """
import asyncio, ctypes, os, pathlib, time
class Pid:
    def predict(self):
        return str(os.getpid())
class Hangs:
    def predict(self):
        print("begun", flush=True)
        time.sleep(600)
class HangsInStream:
    def predict(self):
        yield "a"
        print("begun", flush=True)
        time.sleep(600)
class HangsInLoop:
    async def predict(self):
        print("begun", flush=True)
        await asyncio.Event().wait()
class Waits:
    def __init__(self, config):
        print("begun", flush=True)
        while not pathlib.Path(config["until"]).exists():
            time.sleep(0.05)
    def predict(self): ...
class HoldsTheGil:
    def __init__(self):
        ctypes.PyDLL(None).sleep(8)
    def predict(self):
        return "read"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "predictors.py"
    path.write_text(PREDICTORS)
    return path


def address(process: Process) -> str:
    return process.line(r"serving \S+ at (http://\S+)")


@pytest.mark.parametrize(
    ("name", "workers", "code"),
    [("Hangs", "1", 1), ("HangsInStream", "1", 1), ("HangsInLoop", "1", 0), ("Hangs", "2", 0)],
)
def test_a_prediction_that_hangs_is_given_up_and_counted_when_the_time_of_grace_is_over(
    serve: Serve, file: Path, udp: Udp, name: str, workers: str, code: int
) -> None:
    # It held the end up for as long as it took.
    more = ("--workers", workers, "--grace-seconds", "1")
    process = serve(f"{file}:{name}", "--api-name", "x", "--collector-url", udp.url, *more)
    url = address(process)

    def ask() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):  # of a connection that is closed
            post(url, b"")

    asking = threading.Thread(target=ask)
    asking.start()
    process.line("(begun)")
    assert process.stop() == code
    asking.join(30)
    assert not asking.is_alive()
    assert ("predictions given up" in process.text()) == (code == 1)
    assert +Recorded(udp).requests == {"500": 1}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_terminal_that_is_gone_ends_it_in_good_order_but_not_under_nohup(
    serve: Serve, file: Path, udp: Udp, workers: str
) -> None:
    more = ("--workers", workers)
    process = serve(f"{file}:Pid", "--api-name", "x", "--collector-url", udp.url, *more)
    assert post(address(process), b"")[0] == 200
    assert process.stop(signal.SIGHUP) == 0
    assert Recorded(udp).requests["200"] == 1
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = serve(f"{file}:Pid", "--api-name", "x", "--collector-url", udp.url, *more)
    finally:
        signal.signal(signal.SIGHUP, before)
    url = address(process)
    os.kill(process.process.pid, signal.SIGHUP)
    os.kill(int(post(url, b"")[1]), signal.SIGHUP)
    assert post(url, b"")[0] == 200
    assert process.stop() == 0


def test_a_worker_that_is_killed_is_told_and_replaced(serve: Serve, file: Path, udp: Udp) -> None:
    process = serve(f"{file}:Pid", "--api-name", "x", "--collector-url", udp.url, "--workers", "2")
    pid = post(address(process), b"")[1]
    os.kill(int(pid), signal.SIGKILL)
    process.line(rf"(worker {pid} ended by signal 9 \(Killed\); another is started)")
    pids = set()

    def ask() -> bool:
        pids.add(post(address(process), b"")[1])
        return len(pids) == 2

    until(ask, 30)
    assert pid not in pids


def test_workers_end_with_a_parent_that_is_killed(serve: Serve, file: Path, udp: Udp) -> None:
    # They went on for ever, and kept the port.
    process = serve(f"{file}:Pid", "--api-name", "x", "--collector-url", udp.url, "--workers", "2")
    port = int(re.findall(r":(\d+)/", address(process))[0])
    assert post(address(process), b"")[0] == 200
    process.process.kill()

    def is_free() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) != 0

    until(is_free, 30)
    until(lambda: Recorded(udp).requests["200"] == 1, 1)


def test_a_model_that_is_read_in_one_piece_is_waited_for(serve: Serve, file: Path, udp: Udp) -> None:
    # No other thread runs meanwhile: uvicorn killed such a worker after 5 s, and its successors.
    process = serve(f"{file}:HoldsTheGil", "--api-name", "x", "--collector-url", udp.url, "--workers", "2")
    assert post(address(process), b"") == (200, "read")
    assert "ended by signal" not in process.text()


def test_the_second_of_two_that_load_their_model_for_one_port_is_told(file: Path, tmp_path: Path, udp: Udp) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"until: {tmp_path / 'loaded'}\n")
    with socket.socket() as first:
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        first.bind(("127.0.0.1", 0))
        port = str(first.getsockname()[1])
        command = (BIN / "cortex-serve", f"{file}:Waits", "--api-name", "x", "--config", config, "--port", port)
        process = Process(tmp_path / "log", *command, "--collector-url", udp.url)
        process.line("(begun)")
        first.listen()
        (tmp_path / "loaded").touch()
        assert process.process.wait(30) == 1
    assert f"cortex-serve: --host 127.0.0.1 --port {port}: cannot listen: " in process.text()
    assert "Traceback" not in process.text()


def test_a_file_that_ends_the_interpreter_is_named(serve: Serve, tmp_path: Path) -> None:
    # It ended with exit code 0, and without a word.
    (tmp_path / "ends.py").write_text("raise SystemExit(0)")
    process = serve(tmp_path / "ends.py", "--api-name", "x")
    assert process.process.wait(30) == 2
    assert "ends.py: cannot be imported: SystemExit: 0" in process.text()


def test_of_all_addresses_the_endpoint_is_the_machines_name(serve: Serve, file: Path, udp: Udp) -> None:
    process = serve(f"{file}:Pid", "--api-name", "x", "--collector-url", udp.url, "--host", "0.0.0.0")
    assert re.fullmatch(rf"http://{re.escape(socket.gethostname())}:\d+/", address(process))
