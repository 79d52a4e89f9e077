"""`cortex top`: the metrics with the most messages and the most series, of a collector under way."""

from __future__ import annotations

import csv
import io
import json
import os
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support import BIN, Collector, until


def top(folder: Path, web: str, *arguments: str) -> tuple[int, str, str]:
    (folder / "environments.toml").write_text(f'[environment.local]\nurl = "http://{web}"\n')
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("CORTEX_", "DD_"))}
    done = subprocess.run(
        [BIN / "cortex", "top", *arguments],
        env={**clean, "CORTEX_CONFIG_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@contextmanager
def sending(collector: Collector) -> Iterator[None]:
    """Over and over: ten messages of hits and two of depth, one of them with a user who never comes again."""
    host, port = collector.udp.split(":")
    over = threading.Event()

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for user in range(100_000):
                hits = "\n".join(f"hits:1|c|#code:{code % 2}" for code in range(10))
                sender.sendto(
                    f"{hits}\ndepth:{user}|g|#zone:eu\ndepth:1|g|#user:{user},zone:eu".encode(), (host, int(port))
                )
                if over.wait(0.01):
                    return

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_the_most_messages_and_the_most_series(collector: Collector, tmp_path: Path) -> None:
    with sending(collector):
        until(lambda: collector.query("count(depth)").get("", 0) > 10)
        code, out, err = top(tmp_path, collector.web, "--seconds", "2", "-o", "json")
        assert (code, err) == (0, "")
        data = json.loads(out)["data"]
        first, second = data["metrics"][:2]
        assert (first["metric"], first["type"], first["series"]) == ("hits", "counter", 2)
        assert (first["label"], first["values"]) == ("code", 2)
        assert (second["metric"], second["type"], second["label"]) == ("depth", "gauge", "user")
        # Whole datagrams alone are counted at once: the rest is at most one of them.
        assert abs(first["messages"] - 5 * second["messages"]) <= 10
        assert second["messages"] > 20
        assert data["messages"] == sum(metric["messages"] for metric in data["metrics"])
        assert 2 <= data["seconds"] < 10

        code, out, err = top(tmp_path, collector.web, "--seconds", "2", "--by", "contexts", "--limit", "3")
        assert (code, err) == (0, "")
        cells = [line.split() for line in out.splitlines()]
        assert cells[0] == ["context", "type", "messages", "messages/s"]
        assert {line[0] for line in cells[1:3]} == {'hits{code="0"}', 'hits{code="1"}'}
        assert cells[3][0] == 'depth{zone="eu"}'
        busiest, rarer = int(cells[1][2]), int(cells[3][2])
        assert abs(busiest - 5 * rarer) <= 5
        assert busiest > 50

        code, out, _ = top(tmp_path, collector.web, "--seconds", "1", "--by", "series", "--limit", "1", "-o", "csv")
        (row,) = csv.DictReader(io.StringIO(out))
        assert (code, row["metric"], row["widest label"]) == (0, "depth", "user")
        assert int(row["series"]) == int(row["values"]) + 1 > 10

        code, out, _ = top(tmp_path, collector.web, "--seconds", "1")
        lines = out.splitlines()
        assert lines[0].split() == ["metric", "type", "series", "messages", "messages/s", "widest", "label", "values"]
        assert lines[1].split()[:3] == ["hits", "counter", "2"]
        assert lines[-1].endswith(" series")


def test_whoever_goes_away_leaves_nobody_counting(collector: Collector, tmp_path: Path) -> None:
    url = f"http://{collector.web}/api/v1/status/top?seconds=60"
    with suppress(TimeoutError):
        urllib.request.urlopen(url, timeout=0.5)
    code, out, err = top(tmp_path, collector.web, "--seconds", "1")
    assert (code, out) == (0, "")
    assert err == "cortex: no message came in 1 s\n"


def test_those_who_count_at_once_do_not_wait_for_each_other_and_are_so_many(
    collector: Collector, tmp_path: Path
) -> None:
    host, port = collector.web.split(":")
    others = []
    for _ in range(16):
        other = socket.create_connection((host, int(port)))
        other.sendall(b"GET /api/v1/status/top?seconds=60 HTTP/1.1\r\nhost: test\r\n\r\n")
        others.append(other)
    until(lambda: top(tmp_path, collector.web, "--seconds", "1")[0] == 1)
    code, out, err = top(tmp_path, collector.web, "--seconds", "1")
    assert (code, out) == (1, "")
    assert err.startswith("cortex: env local: 503")
    assert "16 others have messages counted already" in err
    others.pop().close()
    with sending(collector):
        until(lambda: top(tmp_path, collector.web, "--seconds", "1")[1].startswith("metric"))
    for other in others:
        other.close()


def test_what_is_wrong_is_told(collector: Collector, tmp_path: Path) -> None:
    for wrong in (
        "seconds=0",
        "seconds=0.5",
        "seconds=61",
        "seconds=x",
        "limit=0",
        "limit=0.5",
        "limit=1001",
        "by=name",
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://{collector.web}/api/v1/status/top?{wrong}", timeout=10)
        assert refused.value.code == 400
        assert wrong.split("=", maxsplit=1)[0] in json.loads(refused.value.read())["error"]
    code, _, err = top(tmp_path, "127.0.0.1:1")
    assert code == 1
    assert "Connection refused" in err
    assert top(tmp_path, collector.web, "--seconds", "0")[0] == 2
