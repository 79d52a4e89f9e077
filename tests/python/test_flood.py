"""Tags that never repeat: memory stays bounded, totals stay exact, and the series that were there are left alone."""

from __future__ import annotations

import contextlib
import functools
import http.client
import itertools
import random
import socket
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Collector, until

# What docs/operations.md states, for the default limits: with one thread, where tags are short and where they are long, and for each further one.
MEMORY_MIB_MAX = 240
LONG_TAGS_MIB_MAX = 288
# What counters, gauges and few histograms take of it.
COUNTERS_MIB_MAX = 128
THREAD_MIB_MAX = 40
PROTOBUF = "application/vnd.google.protobuf;encoding=delimited"
HISTOGRAMS = ("h0", "h1")
NAMES = (*(f"c{number}" for number in range(16)), "g0", "g1", *HISTOGRAMS)
LINES_A_DATAGRAM = 60


def peak_mib(collector: Collector) -> float:
    """The most memory that the process has held."""
    status = Path(f"/proc/{collector.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


@pytest.mark.parametrize("threads", [1, 4])
def test_spellings_and_giant_datagrams_cost_bounded_memory_and_no_total(
    tmp_path: Path, collector_with: Callable[..., Collector], threads: int
) -> None:
    """One histogram in a hundred thousand orders of its tags, then datagrams of 64,000 bytes full of junk, of gauges and of
    series that are new."""
    path = tmp_path / "metrics.sock"
    collector = collector_with("--listen-unix", str(path), "--ingest-threads", str(threads))
    spellings = 96_000 * threads
    orders = itertools.permutations(
        [f"a_rather_long_key_{number}:a_rather_long_value_{number}" for number in range(10)]
    )
    giants = {
        "junk": b"a\n" * 32_000,
        "gauges": b"g:1|g\n" * 10_000,
        "overflow": b"".join(b"o:1|c|#i:%d\n" % number for number in range(4000)),
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(str(path))
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
        for batch in range(spellings // LINES_A_DATAGRAM):
            lines = (",".join(order) for order in itertools.islice(orders, LINES_A_DATAGRAM))
            sender.send("\n".join(f"h:0.001:60|h|#{tags},n:{batch % 3}" for tags in lines).encode())
            if batch % 1000 == 999:  # known spellings too, all in one batch
                sender.send(b"h:0.001:60|h\n" * 4000)
        for giant in giants.values():
            for _ in range(200):
                sender.send(giant)
    known = spellings // LINES_A_DATAGRAM // 1000 * 4000
    messages = spellings + known + 200 * (32_000 + 10_000 + 4000)
    until(lambda: collector.status("ingest")["messages"] == messages, 120)
    until(lambda: collector.query("sum(histogram_count(h))") == {"": 2 * (spellings + known)}, 30)
    until(lambda: collector.query("sum(o)") == {"": 200 * 4000}, 30)
    status = collector.status("ingest")
    assert {reason: dropped["count"] for reason, dropped in status["dropped"].items()} == {"no_name": 200 * 32_000}
    print(f"{threads} threads: at most {peak_mib(collector):.0f} MiB")
    assert peak_mib(collector) < COUNTERS_MIB_MAX + (threads - 1) * THREAD_MIB_MAX


@pytest.mark.parametrize(
    ("lines", "threads", "padding", "mib_max"),
    [
        pytest.param(600_000, 1, 0, COUNTERS_MIB_MAX, id="short"),
        pytest.param(600_000, 4, 0, COUNTERS_MIB_MAX + 3 * THREAD_MIB_MAX, id="four threads"),
        pytest.param(300_000, 1, 464, LONG_TAGS_MIB_MAX, id="long tags"),
        pytest.param(60_000, 1, 1900, LONG_TAGS_MIB_MAX, id="very long tags"),
        pytest.param(10_000_000, 1, 0, COUNTERS_MIB_MAX, id="long", marks=pytest.mark.torture),
    ],
)
def test_tags_that_never_repeat_cost_bounded_memory_and_no_total(
    tmp_path: Path, collector_with: Callable[..., Collector], lines: int, threads: int, padding: int, mib_max: int
) -> None:
    path = tmp_path / "metrics.sock"
    batch = min(LINES_A_DATAGRAM, 60_000 // (padding + 100))  # no datagram is longer than the collector's buffer
    rng = random.Random(7)
    sent = dict.fromkeys(NAMES, 0)
    collector = collector_with("--listen-unix", str(path), "--ingest-threads", str(threads))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(str(path))
        sender.send(b"kept:1|c|#zone:eu")
        until(lambda: collector.query("kept") == {"zone=eu": 1})
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
        for _ in range(lines // batch):
            datagram = ["kept:1|c|#zone:eu"]
            for _ in range(batch):
                name = rng.choice(NAMES)
                sent[name] += 1
                value = f"{rng.random() * 100:.6f}" if name in HISTOGRAMS else "1"
                datagram.append(f"{name}:{value}|{name[0]}|#user:{'x' * padding}{rng.getrandbits(64):x}")
            sender.send("\n".join(datagram).encode())
    datagrams = lines // batch
    until(lambda: collector.query("kept") == {"zone=eu": 1 + datagrams}, 60)
    for name in NAMES:
        if name in HISTOGRAMS:
            assert collector.query(f"sum(histogram_count({name}))") == {"": sent[name]}
        elif name[0] == "c":
            assert collector.query(f"sum({name})") == {"": sent[name]}
    status = collector.status("ingest")
    assert status["messages"] == 1 + datagrams * (1 + batch)
    assert (status["dropped"], status["kernelDrops"]) == ({}, 0)
    overflows = {overflow["name"]: overflow for overflow in status["overflows"]}
    assert set(overflows) == set(NAMES) or padding
    assert {overflow["label"] for overflow in overflows.values()} == {"user"}
    limits = {overflow["limit"] for overflow in overflows.values()}
    assert limits == {"label_bytes"} if padding > 512 else limits <= {"series", "series_per_metric"}
    assert status["series"] < 101_000
    print(f"{lines:,} lines, {status['series']:,} series, at most {peak_mib(collector):.0f} MiB")
    assert peak_mib(collector) < mib_max
    assert 'label="user"' in (tmp_path / "collector.log").read_text()


@pytest.mark.parametrize(("padding", "mib_max"), [(0, MEMORY_MIB_MAX), (420, LONG_TAGS_MIB_MAX)])
def test_as_many_histograms_as_may_be_in_two_spellings_also_after_a_restart(
    tmp_path: Path, collector_with: Callable[..., Collector], padding: int, mib_max: int
) -> None:
    """What takes the most of all that is bounded by the number of series: each has a name, a histogram, and two ways to it. Scrapes come
    meanwhile, at every tick, and some that read nothing."""
    path = tmp_path / "metrics.sock"
    collector = collector_with("--listen-unix", str(path))
    slow = []
    is_over = threading.Event()

    def scrape_again_and_again() -> None:
        while not is_over.wait(0.5):
            for headers in ({"Accept-Encoding": "gzip"}, {"Accept": PROTOBUF}):
                with contextlib.suppress(OSError, http.client.HTTPException):  # it is being started again
                    request = urllib.request.Request(f"http://{collector.web}/metrics", headers=headers)
                    with urllib.request.urlopen(request, timeout=10) as response:
                        response.read()

    scraper = threading.Thread(target=scrape_again_and_again)
    scraper.start()

    def send(tags: str) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(str(path))
            for first in range(0, 100_000, 50):
                lines = (f"svc.endpoint.{number:06d}.latency:1|h|#{tags}" for number in range(first, first + 50))
                sender.send("\n".join(lines).encode())

    def is_stored(name: str, count: int) -> bool:
        return list(collector.query(name).values()) == [count]

    def scrape() -> None:
        host, _, port = collector.web.rpartition(":")
        for accept in ("text/plain", PROTOBUF) * 4:
            slow.append(socket.create_connection((host, int(port))))
            slow[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow[-1].sendall(f"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n".encode())

    for life in range(1, 3):
        for spelling in range(2):
            model = "model:v1" + "x" * padding
            send(f"zone:eu,{model}" if spelling == 0 else f"{model},zone:eu")
            for number in ("000000", "050000", "099999"):
                until(functools.partial(is_stored, f"svc_endpoint_{number}_latency_count", 2 * life - 1 + spelling), 60)
        scrape()
        status = collector.status("ingest")
        assert (status["dropped"], status["kernelDrops"], status["overflows"]) == ({}, 0, [])
        print(f"life {life}: {status['series']:,} series, at most {peak_mib(collector):.0f} MiB")
        assert peak_mib(collector) < mib_max
        for connection in slow:
            connection.close()
        slow.clear()
        if life == 1:
            collector.stop()
            collector = collector.again()
    is_over.set()
    scraper.join()
    collector.stop()
