"""`cortex get`: the same table from a collector and from real Prometheuses; on a terminal, in colour and drawn anew."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cortex_metrics import MetricsClient
from cortex_metrics.asgi import MetricsMiddleware
from support import BIN, Collector, Process, free_port, of_debian, until


class Prometheus(Process):
    """One that scrapes a collector every second, or takes remote write."""

    def __init__(self, folder: Path, config: dict[str, Any], *flags: str) -> None:
        folder.mkdir()
        (folder / "prometheus.yml").write_text(json.dumps({"global": {"scrape_interval": "1s"}, **config}))
        (folder / "log").write_bytes(b"")
        self.web = f"127.0.0.1:{free_port()}"
        super().__init__(
            folder / "log",
            of_debian("prometheus") / "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address={self.web}",
            *flags,
        )
        self.line(r"(Server is ready)")


def scraping(collector: Collector) -> dict[str, Any]:
    return {"scrape_configs": [{"job_name": "cortex", "static_configs": [{"targets": [collector.web]}]}]}


@pytest.fixture
def prometheuses(tmp_path: Path, collector: Collector) -> Iterator[dict[str, Prometheus]]:
    """One scrapes text, one native histograms alone, and one gets by remote write what the first scrapes."""
    scrape = scraping(collector)
    started: dict[str, Prometheus] = {}
    try:
        started["received"] = Prometheus(tmp_path / "received", {}, "--web.enable-remote-write-receiver")
        write = {"remote_write": [{"url": f"http://{started['received'].web}/api/v1/write"}]}
        started["scraped"] = Prometheus(tmp_path / "scraped", {**scrape, **write})
        started["native"] = Prometheus(tmp_path / "native", scrape, "--enable-feature=native-histograms")
        yield started
    finally:
        for each in reversed(started.values()):  # the sender before the receiver
            each.stop()


def environments(folder: Path, collector: Collector, others: dict[str, Prometheus]) -> dict[str, str]:
    config = folder / "environments"
    config.mkdir(exist_ok=True)
    addresses = {"local": collector.web, **{name: each.web for name, each in others.items()}}
    lines = [f'[environment.{name}]\nurl = "http://{web}"\n' for name, web in addresses.items()]
    (config / "environments.toml").write_text("".join(lines))
    return {**os.environ, "CORTEX_CONFIG_DIR": str(config)}


def rows(env: dict[str, str], *arguments: str) -> dict[str, dict[str, Any]]:
    """The rows of the one API there is, by environment."""
    done = subprocess.run([BIN / "cortex", "get", "-o", "json", *arguments], env=env, capture_output=True, check=True)
    return {row.pop("env"): row for row in json.loads(done.stdout)}


async def serve(app: MetricsMiddleware, *codes: int) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_message: Any) -> None:
        return

    for code in codes:
        await app({"type": "http", "method": "GET", "path": f"/{code}", "headers": []}, receive, send)


async def answer(scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": int(scope["path"][1:]), "headers": []})
    await send({"type": "http.response.body", "body": b""})


def test_the_table_is_the_same_from_a_collector_and_from_prometheus(
    collector: Collector, prometheuses: dict[str, Prometheus], tmp_path: Path
) -> None:
    env = environments(tmp_path, collector, prometheuses)
    with MetricsClient(collector.url) as client:
        made: dict[str, Any] = {"api_name": "shop", "api_id": "v1", "replicas_requested": 1, "endpoint": "http://shop/"}
        app = MetricsMiddleware(answer, client, **made)
        app._metrics.start()
        # The zeros of the first codes are scraped before the first request.
        until(lambda: len(rows(env)) == 4, 30)
        asyncio.run(serve(app, *[200] * 1223, *[404] * 3, *[500] * 2))
        # Of the 404s a scrape never saw a zero.
        want = {"200": 1223, "404": 3, "500": 2}
        until(lambda: all(row["responses"] == want for row in rows(env).values()), 30)
        found = rows(env)
        local = found.pop("local")
        for name, row in found.items():
            for key in ("api", "status", "up_to_date", "stale", "requested", "endpoint"):
                assert row[key] == local[key], (name, key)
            assert row["avg_request_seconds"] == pytest.approx(local["avg_request_seconds"], rel=1e-9), name
            assert row["last_update_seconds"] == pytest.approx(local["last_update_seconds"], abs=5), name
        # One that begins to scrape only now counts from here on.
        late = Prometheus(tmp_path / "late", scraping(collector))
        try:
            late_env = environments(tmp_path / "late", collector, {"late": late})
            until(lambda: "late" in rows(late_env), 30)
            asyncio.run(serve(app, *[200] * 10))
            until(lambda: rows(late_env)["late"]["responses"] == {"200": 10}, 30)
            until(lambda: rows(late_env)["local"]["responses"]["200"] == 1233)
        finally:
            late.stop()
        # The data are lost, and its counters begin anew: a Prometheus still knows what it had scraped.
        collector.stop()
        shutil.rmtree(collector.folder / "data")
        again = collector.again()
        try:
            app._metrics.start()
            asyncio.run(serve(app, *[200] * 100))
            until(lambda: rows(env).get("local", {"responses": {}})["responses"].get("200") == 100, 30)
            # Between both, increase() is asked, which extrapolates: by a scrape's worth at most.
            until(lambda: rows(env)["scraped"]["responses"]["200"] == pytest.approx(1333, abs=100), 30)
            assert rows(env)["scraped"]["responses"]["500"] >= 2
        finally:
            again.stop()


def on_a_terminal(command: list[str | Path], env: dict[str, str], done: Callable[[str], bool]) -> str:
    """What a program draws on a terminal of 60 columns until it is enough."""
    import fcntl
    import struct
    import termios

    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    process = subprocess.Popen(command, env=env, stdout=follower, stderr=follower, stdin=follower)
    os.close(follower)
    text, deadline = "", time.monotonic() + 30
    while not done(text):
        assert time.monotonic() < deadline, text
        try:
            piece = os.read(leader, 65536).decode()
        except OSError:  # the other end is closed
            break
        text += piece
    process.send_signal(signal.SIGINT)
    process.wait(10)
    os.close(leader)
    return text


def test_on_a_terminal_the_status_has_a_color_unless_it_is_unwanted(collector: Collector, tmp_path: Path) -> None:
    env = environments(tmp_path, collector, {})
    env.pop("NO_COLOR", None)
    with MetricsClient(collector.url) as client:
        MetricsMiddleware(answer, client, api_name="shop")._metrics.start()
        client.flush()
    until(lambda: rows(env))
    get: list[str | Path] = [BIN / "cortex", "get"]
    never = lambda _text: False  # noqa: E731
    assert "\x1b[32mlive\x1b[0m" in on_a_terminal(get, env, never)
    assert "\x1b" not in on_a_terminal(get, {**env, "NO_COLOR": "1"}, never)
    assert "\x1b" not in subprocess.run(get, env=env, capture_output=True, text=True, check=True).stdout


def shows_last_hour(get: list[str | Path], env: dict[str, str]) -> bool:
    text = on_a_terminal(get, env, lambda _text: False)
    # The newest, on the right, is the highest there is: before there was nothing.
    rows = re.findall(r"(?m)^(requests/s|p99) {3,}[ ▁▂▃▄▅▆▇]*█ {3}([0-9.]+(?:us|ms|s)?)\r?$", text)
    return [name for name, _ in rows] == ["requests/s", "p99"] and "\nlast hour  " in text


def test_one_api_shows_its_last_hour_on_a_terminal_alone(
    collector: Collector, prometheuses: dict[str, Prometheus], tmp_path: Path
) -> None:
    env = {**environments(tmp_path, collector, prometheuses), "NO_COLOR": "1"}
    with MetricsClient(collector.url) as client:
        app = MetricsMiddleware(answer, client, api_name="shop")
        app._metrics.start()
        until(lambda: len(rows(env)) == 4, 30)
        for _ in range(3):
            asyncio.run(serve(app, *[200] * 100))
            client.flush()
            time.sleep(1.5)  # a rate needs several samples
        for name in ("local", *prometheuses):
            get: list[str | Path] = [BIN / "cortex", "get", "shop", "-e", name]
            until(functools.partial(shows_last_hour, get, env), 30)
            piped = subprocess.run(get, env=env, capture_output=True, text=True, check=True).stdout
            assert "last hour" not in piped


def test_watching_draws_in_place_and_never_wraps(collector: Collector, tmp_path: Path) -> None:
    env = {**environments(tmp_path, collector, {}), "NO_COLOR": "1"}
    with MetricsClient(collector.url) as client:
        app = MetricsMiddleware(answer, client, api_name="a-name-that-is-longer-than-the-terminal-is-wide-by-far")
        app._metrics.start()
        client.flush()
        until(lambda: rows(env))
        drawn = on_a_terminal([BIN / "cortex", "get", "-w"], env, lambda text: text.count("\x1b[J") == 3)
    screens = drawn.split("\x1b[J")
    assert screens[0].startswith("\x1b[2J\x1b[?7l\x1b[1;1Henv     api "), "cleared once, and lines are not wrapped"
    for screen in screens[1:3]:
        assert screen.startswith("\x1b[3;1H\x1b[?7h\x1b[?7l\x1b[1;1Henv     api "), "over what was there"
        assert len(re.findall(r"\x1b\[2;1Hlocal   a-name.*\x1b\[K", screen)) == 1
        assert "\n" not in screen, "or a table that is higher than the terminal would scroll it"
