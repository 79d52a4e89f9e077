"""A mapping file of statsd_exporter before the real collector: what it makes of names, how it is refused, how it is read anew."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support import BIN, Collector, Process, until

FILE = """\
defaults:
  observer_type: summary
mappings:
- match: "test.dispatcher.*.*.*"
  name: "dispatcher_events_total"
  labels:
    processor: "$1"
    action: "$2"
    outcome: "$3"
    job: "test_dispatcher"
- match: "*.latency_us"
  name: "${1}_latency_seconds"
  scale: 1e-6
- match: "gone.*"
  name: "gone"
  ttl: 2s
- match: '^debug[.]'
  match_type: regex
  action: drop
  name: dropped
"""


@pytest.fixture
def mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mapping file that collectors of this test read."""
    path = tmp_path / "statsd-mapping.yaml"
    path.write_text(FILE)
    monkeypatch.setenv("CORTEX_COLLECTOR_MAPPING_CONFIG", str(path))
    return path


def send(collector: Collector, *lines: str) -> None:
    host, _, port = collector.udp.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for line in lines:
            sender.sendto(line.encode(), (host, int(port)))


def series(collector: Collector) -> dict[str, float]:
    """What `/metrics` has, but of the collector itself."""
    lines = [line for line in collector.get("/metrics").splitlines() if line and not line.startswith(("#", "cortex_"))]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def status(collector: Collector) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(collector.get("/api/v1/status/ingest"))["data"]
    return data


def refused(mapping: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """A collector that should not start."""
    arguments = ("--mapping-config", mapping, "--data-dir", folder / "data", "--listen-udp", "127.0.0.1:0")
    return subprocess.run(
        (BIN / "cortex-collector", *arguments), capture_output=True, text=True, timeout=30, check=False
    )


@pytest.mark.usefixtures("mapping")
def test_names_are_mapped_on_the_way_from_the_socket_to_metrics(tmp_path: Path) -> None:
    collector = Collector(tmp_path)
    send(
        collector,
        "test.dispatcher.Foo.send.ok:2|c|#job:mine,zone:a\ntest.dispatcher.Foo.send.ok:1|c|@0.5|#zone:a",
        "api.latency_us:1500:2500|h",
        "gone.soon:7|g",
        "debug.x:1|c\ndebug.y:1|ms",
        "not.mapped:1|c",
    )
    labels = 'action="send",job="test_dispatcher",outcome="ok",processor="Foo",zone="a"'
    wanted = {
        f"dispatcher_events_total{{{labels}}}": 4.0,
        "api_latency_seconds_count": 2.0,
        "api_latency_seconds_sum": 0.004,
        "gone": 7.0,
        "not_mapped": 1.0,
    }
    until(lambda: wanted.items() <= series(collector).items())
    assert not [name for name in series(collector) if "debug" in name or "dropped" in name]
    account = status(collector)
    assert account["dropped"] == {"mapped_drop": {"count": 2, "example": "debug.x:1|c"}}
    assert account["mapping"] == {"mappings": 4, "error": None}
    assert "a summary is asked for; observers are exponential histograms" in collector.text()
    until(lambda: "gone" not in series(collector))
    assert "message dropped" not in collector.text(), "what somebody wants dropped is no news"
    assert collector.stop() == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("mappings:\n- match: a.*\n  nmae: x\n", "line 3: unknown field `nmae`"),
        ("mappings:\n- match: a.*\n  name: m\n  ttl: tomorrow\n", "line 4: ttl: got `tomorrow`"),
        ("mappings:\n- match: 'a('\n  match_type: regex\n  name: m\n", "line 2: match: unclosed group"),
        ("mappings: [\n", "line "),
    ],
)
def test_a_bad_file_is_refused_at_start_with_line_and_reason(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "mapping.yaml"
    path.write_text(text)
    done = refused(path, tmp_path)
    assert done.returncode == 1
    assert f"cortex-collector: --mapping-config {path}: {reason}" in done.stderr
    assert done.stdout == "", "it does not listen"
    assert not (tmp_path / "data").exists()


def test_a_file_that_is_not_there_is_refused_at_start(tmp_path: Path) -> None:
    done = refused(tmp_path / "none", tmp_path)
    assert (done.returncode, "No such file" in done.stderr) == (1, True), done.stderr


def test_a_bad_file_on_sighup_is_told_and_the_rules_of_before_stay(mapping: Path, tmp_path: Path) -> None:
    collector = Collector(tmp_path)
    mapping.write_text("mappings:\n- match: a.*\n  name: new\n  labels: [x]\n")
    collector.process.send_signal(signal.SIGHUP)
    error = until(lambda: re.search(r"SIGHUP: (.*line 4: .*); the rules of before stay", collector.text()))[1]
    assert status(collector)["mapping"] == {"mappings": 4, "error": error}
    send(collector, "test.dispatcher.Foo.send.ok:1|c\na.x:1|c")
    until(lambda: series(collector).get("a_x") == 1)
    assert sum("dispatcher_events_total" in name for name in series(collector)) == 1
    mapping.write_text("mappings:\n- match: a.*\n  name: new\n")
    collector.process.send_signal(signal.SIGHUP)
    until(lambda: status(collector)["mapping"] == {"mappings": 1, "error": None})
    send(collector, "a.x:1|c")
    until(lambda: series(collector).get("new") == 1)
    assert series(collector)["a_x"] == 1
    assert collector.stop() == 0


def cpu_ticks(pid: int) -> int:
    """Ticks of processor time, mostly of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="what a process does is seen in /proc")
def test_sighup_while_it_starts_ends_nothing(mapping: Path, tmp_path: Path) -> None:
    """SIGHUP ended it as long as it was reading its file. And however many come, one thread reads."""
    rule = "- {{match: '^app{0}[.](\\w+)[.](\\w+)$', match_type: regex, name: app_{0}, labels: {{a: $1, b: $2}}}}\n"
    mapping.write_text("mappings:\n" + "".join(rule.format(number) for number in range(4000)))
    flags = ("--listen-udp=127.0.0.1:0", "--listen-http=127.0.0.1:0", f"--data-dir={tmp_path / 'data'}")
    collector = Process(tmp_path / "log", BIN / "cortex-collector", *flags)
    until(lambda: cpu_ticks(collector.process.pid) >= 5)
    for _ in range(20):
        collector.process.send_signal(signal.SIGHUP)
    assert "metrics in" not in collector.text(), "it was too late for this test"
    collector.line("(metrics in)")
    for _ in range(50):
        collector.process.send_signal(signal.SIGHUP)
        time.sleep(0.001)
    threads = len(list(Path(f"/proc/{collector.process.pid}/task").iterdir()))
    until(lambda: len(re.findall("mapping names", collector.text())) >= 3)
    assert threads < 20, "a thread for each"
    assert collector.stop() == 0
    assert len(re.findall("mapping names", collector.text())) < 20


def test_sighup_without_a_file_ends_nothing(collector: Collector) -> None:
    collector.process.send_signal(signal.SIGHUP)
    until(lambda: "there is no --mapping-config to read anew" in collector.text())
    send(collector, "c:1|c")
    until(lambda: series(collector).get("c") == 1)


@pytest.mark.parametrize("threads", ["1", "3"])
def test_nothing_is_lost_while_files_change_under_load(
    mapping: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: str
) -> None:
    monkeypatch.setenv("CORTEX_COLLECTOR_INGEST_THREADS", threads)
    rule = (
        "mappings:\n- {{match: load.*, name: load_{0}, labels: {{part: $1}}}}\n- {{match: often.{0}, action: drop}}\n"
    )
    mapping.write_text(rule.format(0))
    collector = Collector(tmp_path)
    sent = 0
    is_ended = threading.Event()

    def load() -> None:
        nonlocal sent
        host, _, port = collector.udp.rpartition(":")
        lines = [f"{name}.{i % 2}:1|c\nobserved.{i}:1|h".encode() for i in range(20) for name in ("load", "often")]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.connect((host, int(port)))
            while not is_ended.is_set():
                for line in lines:
                    sender.send(line)
                sent += len(lines)
                time.sleep(0.001)

    loader = threading.Thread(target=load)
    loader.start()
    for i in range(1, 40):
        mapping.write_text("mappings: [" if i % 4 == 3 else rule.format(i % 4))
        collector.process.send_signal(signal.SIGHUP)
        time.sleep(0.05)
    is_ended.set()
    loader.join()

    def is_whole() -> bool:
        account = status(collector)
        dropped = account["dropped"]
        assert set(dropped) <= {"mapped_drop"}, dropped
        got = series(collector)
        counted = sum(value for name, value in got.items() if name.startswith(("load_", "often_")))
        observed = sum(value for name, value in got.items() if re.fullmatch(r"observed_\d+_count", name))
        lost = account["kernelDrops"]
        by_mapping = dropped.get("mapped_drop", {"count": 0})["count"]
        return (counted + by_mapping + lost, observed + lost) == (sent, sent)

    until(is_whole, 30)
    got = series(collector)
    assert {re.sub(r"\{.*", "", name) for name in got if name.startswith("load_")} == {"load_0", "load_1", "load_2"}
    assert collector.stop() == 0
