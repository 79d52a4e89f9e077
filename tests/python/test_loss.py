"""The account of loss: what was sent is what came, what the kernel dropped and what was refused, each counted by itself."""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cortex_metrics import MetricsClient
from support import BIN, ROOT, Collector, Process, Script, check_account, until

Start = Callable[..., Collector]

linux_only = pytest.mark.skipif(not Path("/proc/net/udp").exists(), reason="the kernel tells its drops on Linux alone")


def kernels_own(port: int) -> tuple[int, int]:
    """What /proc/net/udp says of the socket of this port: bytes that wait, and drops."""
    for line in Path("/proc/net/udp").read_text().splitlines()[1:]:
        columns = line.split()
        if int(columns[1].rpartition(":")[2], 16) == port:
            return int(columns[4].rpartition(":")[2], 16), int(columns[-1])
    raise AssertionError(f"no socket of port {port}")


class PlainSender:
    """A connected socket whose datagrams are counted, and, one by one, those that the kernel says were refused."""

    IP_RECVERR = 11

    def __init__(self, address: str) -> None:
        host, port = address.split(":")
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect((host, int(port)))
        # The queue of errors: a second refusal that comes before the first was read is not lost.
        self._socket.setsockopt(socket.IPPROTO_IP, self.IP_RECVERR, 1)
        self.sent = self.refused = 0

    def send(self, payload: bytes) -> None:
        try:
            self._socket.send(payload)
        except ConnectionRefusedError:  # of one before: this one was not sent
            pass
        else:
            self.sent += 1
        self.read_refusals()

    def read_refusals(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                payload, _, flags, _ = self._socket.recvmsg(64, 512, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
                assert flags & socket.MSG_ERRQUEUE
                assert payload
                self.refused += 1

    def close(self) -> None:
        self._socket.close()


@linux_only
@pytest.mark.parametrize("threads", [1, 4])
def test_a_socket_at_twice_its_capacity_knows_all_that_the_kernel_dropped(collector_with: Start, threads: int) -> None:
    collector = collector_with("--receive-buffer", "64KiB", "--ingest-threads", str(threads))
    pid, port = collector.process.pid, int(collector.udp.rpartition(":")[2])
    sender = PlainSender(collector.udp)

    def stopped() -> bool:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def burst(datagrams: int) -> None:
        for _ in range(datagrams):
            sender.send(b"flood:1|c")

    def pause() -> None:
        os.kill(pid, signal.SIGSTOP)
        until(stopped)

    # How many fit: as many as are sent until the kernel has dropped one.
    pause()
    while kernels_own(port)[1] == 0:
        burst(1)
    capacity = sender.sent - 1
    assert capacity > 10
    os.kill(pid, signal.SIGCONT)
    for _ in range(20):
        burst(capacity)  # beside one that reads
        until(lambda: kernels_own(port)[0] == 0)
        pause()
        burst(2 * capacity)
        os.kill(pid, signal.SIGCONT)
    # The last drops are known though nothing comes after them.

    def account() -> Any:
        return next(
            each for each in collector.status("ingest")["sockets"] if each["socket"] == f"udp://{collector.udp}"
        )

    until(lambda: account()["datagrams"] + account()["kernelDrops"] == sender.sent)
    drops = kernels_own(port)[1]
    assert drops > 10 * capacity
    assert sender.refused == 0
    assert account() == {
        "socket": f"udp://{collector.udp}",
        "datagrams": sender.sent - drops,
        "truncated": 0,
        "kernelDrops": drops,
        "receiveBufferBytes": 64 << 10,
    }
    # In the metrics a tick later; each datagram held one message.
    own = "cortex_collector_kernel_drops_total"
    until(lambda: collector.query(own) == {f"socket=udp://{collector.udp}": drops})
    until(lambda: collector.query("flood") == {"": sender.sent - drops})
    assert "the kernel dropped datagrams" in collector.text()
    sender.close()


@linux_only
@pytest.mark.parametrize(("pause_seconds", "calls_between"), [(0.0002, 500), (0, 20_000)], ids=["steady", "flood"])
def test_a_restart_under_load_loses_nothing_that_was_not_refused(
    collector: Collector, pause_seconds: float, calls_between: int
) -> None:
    plain = PlainSender(collector.udp)
    client = MetricsClient(collector.url, flush_interval=0.02)
    is_over = threading.Event()
    calls = 0

    def load() -> None:
        nonlocal calls
        while not is_over.wait(pause_seconds):
            plain.send(b"plain:1|c")
            client.increment("calls", 1, {"context": calls % 50})
            calls += 1

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    current = collector

    def called(more: int) -> None:
        wanted = calls + more
        until(lambda: calls >= wanted)

    for _ in range(3):
        called(calls_between)
        current.stop()
        before = plain.refused
        called(calls_between)
        assert plain.refused > before
        current = current.again()
    called(calls_between)
    is_over.set()
    thread.join()
    plain.read_refusals()

    def held() -> int:
        client.flush()
        return client.stats()["held"]

    until(lambda: held() == 0)
    stats = client.stats()
    client.close()
    check_account(stats)
    assert stats["payloads_refused"] > 0
    # The collectors' own counters go on across restarts: what all of them saw, with what they saw when they were stopped.
    sent = plain.sent + client.stats()["payloads_sent"]

    def seen_and_dropped() -> tuple[float, float]:
        seen = current.query("cortex_collector_datagrams_total")[""]
        return seen, current.query("sum(cortex_collector_kernel_drops_total)")[""]

    until(lambda: sum(seen_and_dropped()) == sent - plain.refused)
    dropped = seen_and_dropped()[1]
    assert dropped == 0 or pause_seconds == 0, "a steady sender never fills the buffer"
    plain_lost = plain.sent - plain.refused - current.query("plain")[""]
    assert 0 <= plain_lost <= dropped
    if dropped == 0:
        assert current.query("sum(calls)") == {"": calls}
        assert current.query("cortex_collector_payloads_missing_total") == {"": 0}
    plain.close()
    current.stop()


class LossyProxy:
    """Hands payloads on to the collector, all but every seventh; knows of each client what passed and what did not."""

    def __init__(self, address: str) -> None:
        host, port = address.split(":")
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(0.05)
        self._to = (host, int(port))
        self.url = f"udp://127.0.0.1:{self._socket.getsockname()[1]}"
        self.passed: collections.Counter[str] = collections.Counter()
        self.dropped: collections.Counter[str] = collections.Counter()
        self.is_last_dropped: dict[str, bool] = {}
        self._is_ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        came: collections.Counter[str] = collections.Counter()
        while not self._is_ended.is_set():
            try:
                payload = self._socket.recv(65536)
            except TimeoutError:
                continue
            match = re.match(rb"cortex_client_payload_sequence:\d+\|g\|#client_id:([0-9a-f]{16})", payload)
            assert match, payload
            client = match[1].decode()
            came[client] += 1
            self.is_last_dropped[client] = is_dropped = came[client] % 7 == 0
            if is_dropped:
                self.dropped[client] += 1
            else:
                self.passed[client] += 1
                self._socket.sendto(payload, self._to)

    def close(self) -> None:
        self._is_ended.set()
        self._thread.join()
        self._socket.close()


def test_payloads_that_never_came_are_known_for_each_process(collector: Collector) -> None:
    proxy = LossyProxy(collector.udp)
    script = """
from cortex_metrics import MetricsClient
client = MetricsClient({url!r}, flush_interval=3600)
def flush(line):
    for number in range(int(line)):
        client.increment("calls")
        client.flush()
    return client.stats()["payloads_sent"]
answer(flush)
"""
    processes = [Script(script.format(url=proxy.url)) for _ in range(3)]
    sent = sorted(process.ask(str(count)) for process, count in zip(processes, (20, 50, 111), strict=True))
    until(lambda: sorted((proxy.passed + proxy.dropped).values()) == sent)
    assert not any(proxy.is_last_dropped.values()), "a loss is known when something comes after it"
    assert sorted(proxy.dropped.values()) == [count // 7 for count in sent]

    def clients() -> dict[str, tuple[int, int]]:
        return {c["clientId"]: (c["payloads"], c["payloadsMissing"]) for c in collector.status("clients")}

    wanted = {client: (passed, proxy.dropped[client]) for client, passed in proxy.passed.items()}
    until(lambda: clients() == wanted)
    assert collector.status("ingest")["payloadsMissing"] == proxy.dropped.total()
    until(lambda: collector.query("cortex_collector_payloads_missing_total") == {"": proxy.dropped.total()})
    for process in processes:
        process.end()
    proxy.close()


@linux_only
def test_a_receive_buffer_that_the_kernel_does_not_grant_is_told_with_what_raises_it(tmp_path: Path) -> None:
    limit = int(Path("/proc/sys/net/core/rmem_max").read_text())
    wanted = 512 << 20
    assert limit < wanted
    # Who has this capability gets what is asked for.
    without = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin") if os.geteuid() == 0 else ()
    flags = ("--listen-udp=127.0.0.1:0", "--listen-http=127.0.0.1:0", f"--data-dir={tmp_path / 'data'}")
    program = (BIN / "cortex-collector", *flags, "--receive-buffer=512MiB")
    collector = Process(tmp_path / "log", *without, *program)
    collector.line(f"(taking metrics place=udp://[0-9.:]+ receive_buffer_bytes={limit})\n")
    raised = f"sysctl -w net.core.rmem_max={wanted}"
    collector.line(f"(--receive-buffer: the kernel grants {limit} of {wanted} bytes; to raise that: {raised})\n")
    assert collector.stop() == 0


@linux_only
def test_a_sender_beyond_the_limit_is_counted_and_a_client_beside_it_loses_nothing(collector_with: Start) -> None:
    limit = 200
    collector = collector_with("--source-limit", str(limit))
    address = collector.udp.rpartition(":")
    wild = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    wild.connect((address[0], int(address[2])))
    source = "{}:{}".format(*wild.getsockname())
    sent = 0

    def came(datagrams: int) -> bool:
        return bool(collector.status("ingest")["sockets"][0]["datagrams"] >= datagrams)

    with MetricsClient(collector.url, flush_interval=0.05) as client:
        for _ in range(40):
            for _ in range(100):
                wild.send(b"wild:1|c\nwild:1|c")
            client.increment("tame")
            sent += 100
            until(functools.partial(came, sent))
    shown = collector.status("ingest")
    assert shown["kernelDrops"] == shown["payloadsMissing"] == 0
    [beyond] = shown["sourceLimit"]["beyond"]
    assert (shown["sourceLimit"]["datagramsPerSecond"], beyond["source"]) == (limit, source)
    assert 0 < beyond["datagrams"] <= sent - limit
    assert shown["dropped"]["source_limit"] == {"count": 2 * beyond["datagrams"], "example": "wild:1|c"}
    until(lambda: collector.query("tame") == {"": 40})
    assert collector.query("wild") == {"": 2 * (sent - beyond["datagrams"])}
    until(lambda: collector.query("cortex_collector_dropped_total") == {"reason=source_limit": 2 * beyond["datagrams"]})
    assert collector.text().count(f"sends more than --source-limit {limit} datagrams a second") == 1
    wild.close()


def test_the_page_on_operations_shows_what_there_is(collector: Collector) -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    answers = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL)]
    assert [answer["status"] for answer in answers] == ["success", "success"]
    ingest, clients = (answer["data"] for answer in answers)
    with MetricsClient(collector.url) as client:
        client.gauge("level", float("nan"))
    plain = PlainSender(collector.udp)
    plain.send(b"broken")
    plain.close()
    shown = until(lambda: (shown := collector.status("ingest"))["dropped"] and shown)
    assert set(ingest) <= set(shown)
    assert set(ingest["sockets"][0]) == set(ingest["sockets"][1]) == set(shown["sockets"][0])
    until(lambda: collector.status("clients"))
    assert set(clients[0]) == set(collector.status("clients")[0])
    [questions] = re.findall(r"```promql\n(.*?)```", page, re.DOTALL)
    kernel, missing, refused, dropped = questions.splitlines()
    until(lambda: set(collector.query(refused)) == {"reason=no_name"})
    until(lambda: set(collector.query(dropped)) == {"reason=not_finite"})
    for question in (kernel, missing):
        assert collector.query(question) == {}
        assert collector.query(question.removesuffix(" > 0")) != {}
