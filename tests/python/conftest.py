"""The fixtures; what they give is in support.py."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import BIN, Collector, Process, Tally, Udp


@pytest.fixture
def udp() -> Iterator[Udp]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.setblocking(False)
        yield Udp(server)


@pytest.fixture
def tally() -> Iterator[Tally]:
    started = Tally()
    yield started
    started.close()


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Collector]:
    started = Collector(tmp_path)
    yield started
    started.stop()


@pytest.fixture
def collector_with(tmp_path: Path) -> Iterator[Callable[..., Collector]]:
    """Starts the collector with these flags."""
    started: list[Collector] = []

    def start(*flags: str) -> Collector:
        started.append(Collector(tmp_path, "127.0.0.1:0", "127.0.0.1:0", *flags))
        return started[-1]

    yield start
    for each in started:
        each.process.send_signal(signal.SIGCONT)  # to one that a test has stopped
        each.stop()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts `cortex-serve` with a free port; gives the process with its address as `url`."""
    started: list[Process] = []

    def start(*arguments: str | Path, name: str = "serve", env: dict[str, str] | None = None) -> Process:
        command = (BIN / "cortex-serve", *arguments, "--port", "0")
        process = Process(tmp_path / f"{name}{len(started)}.log", *command, env=env)
        started.append(process)
        return process

    yield start
    for process in started:
        process.stop()
