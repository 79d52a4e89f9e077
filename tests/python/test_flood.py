"""Tags that never repeat: memory stays bounded, totals stay exact, and the series that were there are left alone."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Collector, until

# What docs/operations.md states, for the default limits.
MEMORY_MIB_MAX = 128
HISTOGRAMS = ("h0", "h1")
NAMES = (*(f"c{number}" for number in range(16)), "g0", "g1", *HISTOGRAMS)
LINES_A_DATAGRAM = 60


def peak_mib(collector: Collector) -> float:
    """The most memory that the process has held."""
    status = Path(f"/proc/{collector.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


@pytest.mark.parametrize(
    "lines", [pytest.param(600_000, id="short"), pytest.param(10_000_000, id="long", marks=pytest.mark.torture)]
)
def test_tags_that_never_repeat_cost_bounded_memory_and_no_total(
    tmp_path: Path, collector_with: Callable[..., Collector], lines: int
) -> None:
    path = tmp_path / "metrics.sock"
    rng = random.Random(7)
    sent = dict.fromkeys(NAMES, 0)
    collector = collector_with("--listen-unix", str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(str(path))
        sender.send(b"kept:1|c|#zone:eu")
        until(lambda: collector.query("kept") == {"zone=eu": 1})
        for _ in range(lines // LINES_A_DATAGRAM):
            datagram = ["kept:1|c|#zone:eu"]
            for _ in range(LINES_A_DATAGRAM):
                name = rng.choice(NAMES)
                sent[name] += 1
                value = f"{rng.random() * 100:.6f}" if name in HISTOGRAMS else "1"
                datagram.append(f"{name}:{value}|{name[0]}|#user:{rng.getrandbits(64):x}")
            sender.send("\n".join(datagram).encode())
    datagrams = lines // LINES_A_DATAGRAM
    until(lambda: collector.query("kept") == {"zone=eu": 1 + datagrams}, 60)
    for name in NAMES:
        if name in HISTOGRAMS:
            assert collector.query(f"sum(histogram_count({name}))") == {"": sent[name]}
        elif name[0] == "c":
            assert collector.query(f"sum({name})") == {"": sent[name]}
    status = collector.status("ingest")
    assert status["messages"] == 1 + datagrams * (1 + LINES_A_DATAGRAM)
    assert (status["dropped"], status["kernelDrops"]) == ({}, 0)
    overflows = {overflow["name"]: overflow for overflow in status["overflows"]}
    assert set(overflows) == set(NAMES)
    assert {overflow["label"] for overflow in overflows.values()} == {"user"}
    limits = {overflow["limit"] for overflow in overflows.values()}
    assert limits <= {"series", "series_per_metric"}
    assert status["series"] < 101_000
    print(f"{lines:,} lines, {status['series']:,} series, at most {peak_mib(collector):.0f} MiB")
    assert peak_mib(collector) < MEMORY_MIB_MAX
    assert 'label="user"' in (tmp_path / "collector.log").read_text()
