"""Two weeks on disk, as the real collector keeps them: full disks, kills, a second collector."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import socket
import urllib.error
import urllib.request
from pathlib import Path

from support import BIN, Collector, Process, namespaces, until


def send(address: str, *lines: str) -> None:
    host, _, port = address.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for line in lines:
            sender.sendto(line.encode(), (host, int(port)))


def has(collector: Collector, wanted: dict[str, float]) -> bool:
    return all(collector.query(name) == {"": value} for name, value in wanted.items())


class OnSmallDisk(Collector):
    """A collector whose data directory is a file system of its own, of 2 MiB."""

    def __init__(self, folder: Path) -> None:
        data = folder / "data"
        data.mkdir()
        mount = 'mount -t tmpfs -o size=2m,mode=0700 store "$0" && exec "$@"'
        arguments = (
            "--listen-udp",
            "127.0.0.1:0",
            "--listen-http",
            "127.0.0.1:0",
            "--data-dir",
            data,
            "--interval",
            "1s",
        )
        command: tuple[str | Path, ...] = (
            *namespaces(folder, {}),
            "sh",
            "-c",
            mount,
            data,
            BIN / "cortex-collector",
            *arguments,
        )
        log = folder / "collector.log"
        log.write_bytes(b"")
        Process.__init__(self, log, *command)
        self.folder = folder
        self.flags: tuple[str, ...] = ()
        self.why = ""
        self.udp = self.line(r"metrics in: +udp://(\S+)")
        self.web = self.line(r"dashboard: +http://(\S+)/")
        # Its mounts are its own, but seen from here too.
        self.disk = Path(f"/proc/{self.process.pid}/root") / str(data).lstrip("/")

    def is_healthy(self) -> bool:
        try:
            return "ok" in self.get("/healthz").lower()
        except urllib.error.HTTPError as error:
            self.why = error.read().decode()
            return False

    def fill(self, spare: int) -> None:
        """Takes all room but so many bytes."""
        with (self.disk / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
            while True:
                ballast.write(b"x" * 4096)
        size = (self.disk / "ballast").stat().st_size
        os.truncate(self.disk / "ballast", max(0, size - spare))


def own_failures(collector: Collector) -> float:
    found = re.search(r"^cortex_collector_commit_failures_total (\S+)", collector.get("/metrics"), re.MULTILINE)
    return float(found[1]) if found else 0.0


def shown(collector: Collector, name: str) -> float:
    """What `/metrics` says of a counter without labels."""
    found = re.search(rf"^{name}(?:_total)? (\S+)", collector.get("/metrics"), re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_a_full_disk_stops_nothing_and_is_over_when_there_is_room(tmp_path: Path) -> None:
    collector = OnSmallDisk(tmp_path)
    total, series = 0.0, 0

    def is_shown() -> bool:
        return shown(collector, "visits") == total

    def is_stored() -> bool:
        return collector.query("visits") == {"": total} and collector.query("count(new)") == {"": float(series)}

    try:
        # Room for nothing, for a page, for a few: each write of a tick fails once.
        for spare in [0, 4096, 8192, 12_288, 16_384, 24_576, 40_960]:
            collector.fill(spare)
            for _ in range(400):
                # New series need more room than is left, however much is used again.
                series += 1
                send(collector.udp, f"visits:1|c\nnew:1|c|#number:{series},text:{'x' * 180}")
                total += 1
            until(lambda: not collector.is_healthy(), 20)
            assert "full" in collector.why, collector.why
            # Ingest goes on, and live values are served.
            send(collector.udp, "visits:10|c")
            total += 10
            until(is_shown, 10)
            assert own_failures(collector) > 0
            (collector.disk / "ballast").unlink()
            until(collector.is_healthy, 10)
            until(is_stored, 10)
        assert collector.query("min(new)") == {"": 1.0}
        assert "panic" not in collector.text()
        # Whoever stops it while the disk refuses is told that something is lost.
        collector.fill(0)
        for _ in range(400):
            series += 1
            send(collector.udp, f"new:1|c|#number:{series},text:{'x' * 180}")
        until(lambda: not collector.is_healthy(), 20)
        assert collector.stop() == 1
        assert "could not be stored and is lost" in collector.text()
        assert "stored and stopped" not in collector.text()
    finally:
        collector.stop()


def test_history_is_there_after_kill_9(tmp_path: Path) -> None:
    collector = Collector(tmp_path)
    try:
        for step in range(1, 6):
            send(collector.udp, "steps:1|c\nlatency:0.25|h\nlevel:2.5|g")
            until(functools.partial(has, collector, {"steps": float(step)}), 10)
        before = json.loads(collector.get("/api/v1/query?query=steps[5m]"))["data"]["result"][0]["values"]
        collector.process.kill()
        collector.process.wait(10)
        collector = collector.again()
        after = json.loads(collector.get("/api/v1/query?query=steps[5m]"))["data"]["result"][0]["values"]
        assert after[: len(before)] == before
        assert collector.query("latency_count") == {"": 5.0}
        send(collector.udp, "steps:1|c")
        until(lambda: collector.query("steps") == {"": 6.0}, 10)
        assert collector.query("resets(steps[5m])") == {"": 0.0}
    finally:
        collector.stop()


def test_a_second_collector_is_told_whose_the_directory_is(tmp_path: Path) -> None:
    collector = Collector(tmp_path)
    try:
        second = Process(
            tmp_path / "second.log",
            BIN / "cortex-collector",
            *("--listen-udp", "127.0.0.1:0", "--listen-http", "127.0.0.1:0", "--data-dir", tmp_path / "data"),
        )
        assert second.process.wait(10) != 0
        assert f"data directory {tmp_path / 'data'}: another collector uses it" in second.text()
    finally:
        collector.stop()


def test_a_damaged_day_is_set_aside_and_told(tmp_path: Path) -> None:
    collector = Collector(tmp_path)
    send(collector.udp, "steps:1|c")
    until(lambda: collector.query("steps") == {"": 1.0}, 10)
    collector.stop()
    (tmp_path / "data" / "2001-02-03.db").write_bytes(b"nothing of a database" * 1000)
    collector = collector.again()
    try:
        assert collector.query("steps") == {"": 1.0}
        assert (tmp_path / "data" / "2001-02-03.db.damaged-1").exists()
        assert re.search(r"ERROR.*a file of the store is damaged.*2001-02-03\.db", collector.text())
        until(lambda: collector.query("cortex_collector_store_damaged_files_total") == {"": 1.0}, 10)
    finally:
        collector.stop()
