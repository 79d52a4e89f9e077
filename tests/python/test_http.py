"""The collector's HTTP as hostile or broken clients use it."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path

import pytest
from support import Collector, until


def is_answered(collector: Collector) -> bool:
    try:
        with urllib.request.urlopen(f"http://{collector.web}/healthz", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@pytest.mark.torture
def test_connections_that_say_nothing_lock_nobody_out_for_long(tmp_path: Path) -> None:
    collector = Collector(tmp_path)
    host, _, port = collector.web.rpartition(":")
    idle = []
    try:
        # More than there may be at once.
        idle = [socket.create_connection((host, int(port))) for _ in range(600)]
        until(lambda: is_answered(collector), 60)
        assert "more wait" in collector.text()
    finally:
        for connection in idle:
            connection.close()
        collector.stop()
