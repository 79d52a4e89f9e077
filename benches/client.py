"""What a call of the client costs, beside an empty method and beside the clients that people use today.

All subjects of a table are measured in one run, in turn, round after round; what is shown is the least of the rounds,
since noise only adds. ``make bench-client`` builds and installs what this needs; peers that are not installed are left
out.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import resource
import socket
import subprocess
import sys
import threading
import time
import timeit
from collections.abc import Callable
from itertools import repeat
from typing import Any

import cortex_metrics
import empty_method

CONTEXTS = 10_000
Subjects = dict[str, tuple[str, dict[str, Any]]]


def sink() -> socket.socket:
    """A UDP socket that takes everything and reads nothing: sending to it never fails and never waits."""
    taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    taken.bind(("127.0.0.1", 0))
    return taken


def call(method: str, value: str = "1", tags: str = '{"model": "v1"}') -> str:
    return f'{method}(metric="requests", value={value}, tags={tags})'


class Peers:
    """The clients, all sending to the same sink."""

    def __init__(self, port: int) -> None:
        url = f"udp://127.0.0.1:{port}"
        self.ours = cortex_metrics.MetricsClient(url)
        self.empty = empty_method.Empty()
        self.others: Subjects = {}
        self._datadog(port)
        self._statsd(port)
        self._prometheus()
        self._opentelemetry()

    def _datadog(self, port: int) -> None:
        try:
            from datadog.dogstatsd import DogStatsd
        except ImportError:
            return
        # As Cortex 0.30 configured it, a packet per call; and as its authors recommend it now.
        single = DogStatsd(host="127.0.0.1", port=port, disable_buffering=True, disable_telemetry=True)
        aggregating = DogStatsd(
            host="127.0.0.1", port=port, disable_buffering=False, disable_aggregation=False, disable_telemetry=True
        )
        self.others["datadog, one send a call"] = ('c.increment("requests", 1, tags=["model:v1"])', {"c": single})
        self.others["datadog, buffered, aggregating"] = (
            'c.increment("requests", 1, tags=["model:v1"])',
            {"c": aggregating},
        )
        self.others["datadog, the same, histogram"] = (
            'c.histogram("latency", 0.25, tags=["model:v1"])',
            {"c": aggregating},
        )
        self.aggregating = aggregating

    def _statsd(self, port: int) -> None:
        try:
            import statsd
        except ImportError:
            return
        self.others["statsd"] = ('c.incr("requests.v1", 1)', {"c": statsd.StatsClient("127.0.0.1", port)})

    def _prometheus(self) -> None:
        try:
            import prometheus_client
        except ImportError:
            return
        counter = prometheus_client.Counter("requests", "-", ["model"], registry=None)
        self.others["prometheus_client, labels().inc()"] = ('c.labels(model="v1").inc()', {"c": counter})

    def _opentelemetry(self) -> None:
        try:
            from opentelemetry.sdk.metrics import MeterProvider
            from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        except ImportError:
            return
        provider = MeterProvider(metric_readers=[InMemoryMetricReader()])
        counter = provider.get_meter("bench").create_counter("requests")
        self.others["opentelemetry, counter.add()"] = ('c.add(1, {"model": "v1"})', {"c": counter})


def measure(subjects: Subjects, rounds: int, number: int) -> dict[str, float]:
    """Nanoseconds per execution of each statement, the loop's own cost included."""
    timers = {name: timeit.Timer(text, globals=scope) for name, (text, scope) in subjects.items()}
    best = dict.fromkeys(subjects, float("inf"))
    for _ in range(rounds):
        for name, timer in timers.items():
            best[name] = min(best[name], timer.timeit(number) / number * 1e9)
    return best


class Report:
    """What was measured, for people and, with ``--json``, for programs."""

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}

    def title(self, text: str) -> None:
        print(f"\n{text}\n", flush=True)

    def line(self, name: str, value: float, unit: str, note: str = "") -> None:
        self.figures[name] = value
        print(f"  {name:<46}{value:>12,.1f} {unit:<8}{note}".rstrip(), flush=True)

    def ratio(self, name: str, value: float, wanted: float, at_most: bool = True) -> None:
        self.figures[f"ratio: {name}"] = value
        reached = value <= wanted if at_most else value >= wanted
        bound = f"{'at most' if at_most else 'at least'} {wanted}"
        print(f"  {name:<46}{value:>12.2f} x       wanted: {bound}{'' if reached else '   NOT REACHED'}", flush=True)


def bench_calls(report: Report, peers: Peers, rounds: int, number: int) -> None:
    report.title("One call, nanoseconds over the bare expression of its arguments (the least of the rounds)")
    ours, empty = {"c": peers.ours}, {"c": peers.empty}
    one, four = '{"model": "v1"}', '{"model": "v1", "region": "eu", "tier": "free", "device": "gpu"}'
    anew = '{"model": "v%d" % 1}'
    # Each call, and the bare expression of its arguments, which is taken off.
    calls: dict[str, tuple[str, str, dict[str, Any]]] = {
        "empty method": (call("c.increment"), one, empty),
        "increment": (call("c.increment"), one, ours),
        "gauge": (call("c.gauge"), one, ours),
        "histogram": (call("c.histogram", "0.25"), one, ours),
        "increment, positional": ('c.increment("requests", 1, {"model": "v1"})', one, ours),
        "empty method, no tags": ('c.increment("requests")', "pass", empty),
        "increment, no tags": ('c.increment("requests")', "pass", ours),
        "empty method, four tags": (call("c.increment", tags=four), four, empty),
        "increment, four tags": (call("c.increment", tags=four), four, ours),
        "empty method, text made anew": (call("c.increment", tags=anew), anew, empty),
        "increment, text made anew": (call("c.increment", tags=anew), anew, ours),
        **{
            name: (text, '["model:v1"]' if "model:v1" in text else "pass", scope)
            for name, (text, scope) in peers.others.items()
        },
    }
    subjects: Subjects = {name: (text, scope) for name, (text, _, scope) in calls.items()}
    subjects |= {text: (text, {}) for text in ("pass", one, four, anew, '["model:v1"]')}
    best = measure(subjects, rounds, number)
    net = {name: best[name] - best[bare] for name, (_, bare, _) in calls.items()}
    gross = {name: best[name] - best["pass"] for name in calls}
    for name, value in net.items():
        note = f"{value / net['empty method']:.2f} x the empty method; with its arguments {gross[name]:.0f} ns"
        report.line(name, value, "ns", note)
    print()
    for name, wanted in (("increment", 1.5), ("gauge", 1.6), ("histogram", 1.8), ("increment, four tags", 3.0)):
        report.ratio(f"{name} / empty method", net[name] / net["empty method"], wanted)
    for name in ("increment", "gauge", "histogram"):
        report.line(f"{name} / empty method, with arguments", gross[name] / gross["empty method"], "x")
    if "datadog, buffered, aggregating" in net:
        ratio = net["datadog, buffered, aggregating"] / net["increment"]
        report.ratio("datadog, aggregating / increment", ratio, 10, at_most=False)


def bench_contexts(report: Report, peers: Peers, port: int, rounds: int) -> None:
    report.title(f"{CONTEXTS:,} contexts in turn, nanoseconds a call")
    values = [f"user-{i}" for i in range(CONTEXTS)]
    loop = "for v in values: c.increment(metric='requests', value=1, tags={'user': v})"
    ours = cortex_metrics.MetricsClient(f"udp://127.0.0.1:{port}")  # of its own: as many contexts as it may hold
    subjects: Subjects = {
        "(loop)": ("for v in values: pass", {"values": values}),
        "empty method, in turn": (loop, {"values": values, "c": peers.empty}),
        "increment, in turn": (loop, {"values": values, "c": ours}),
    }
    timeit.Timer(loop, globals={"values": values, "c": ours}).timeit(30)  # to the steady state
    best = measure(subjects, rounds, 5)
    net = {name: (value - best["(loop)"]) / CONTEXTS for name, value in best.items()}
    for name in ("empty method, in turn", "increment, in turn"):
        report.line(name, net[name], "ns")
    ours.close()
    report.ratio("10,000 in turn / empty method", net["increment, in turn"] / net["empty method, in turn"], 4)


def bench_slowest(report: Report, peers: Peers, port: int, calls: int) -> None:
    report.title(f"The slowest of {calls:,} calls while 1,000 contexts are flushed every 10 ms, nanoseconds")
    tags = [{"user": f"user-{i}"} for i in range(1_000)]
    flushing = cortex_metrics.MetricsClient(f"udp://127.0.0.1:{port}", flush_interval=0.01)

    def nothing(tags: dict[str, str]) -> None:
        pass

    def feed(tags: dict[str, str]) -> None:
        flushing.increment("requests", 1, tags)

    # What is timed, and what happens between two of its calls: the flushes cost both the same.
    subjects: dict[str, tuple[Callable[[dict[str, str]], object], Callable[[dict[str, str]], object]]] = {
        "empty method": (lambda tags: peers.empty.increment("requests", 1, tags), nothing),
        "empty method, flushes run": (lambda tags: peers.empty.increment("requests", 1, tags), feed),
        "increment, flushes run": (feed, nothing),
    }
    if hasattr(peers, "aggregating"):
        from datadog.dogstatsd import DogStatsd

        aggregating = DogStatsd(
            host="127.0.0.1", port=port, disable_aggregation=False, flush_interval=0.01, disable_telemetry=True
        )
        lists = {id(tag): [f"user:{tag['user']}"] for tag in tags}
        subjects["datadog, flushes run"] = (
            lambda tags: aggregating.increment("requests", 1, tags=lists[id(tags)]),
            nothing,
        )
    for name, (subject, between) in subjects.items():
        times = []
        clock = time.perf_counter_ns
        for i in range(calls):
            tag = tags[i % 1_000]
            start = clock()
            subject(tag)
            times.append(clock() - start)
            between(tag)
        times.sort()
        for label, at in (("p50", 0.5), ("p99.99", 0.9999)):
            report.line(f"{name}, {label}", times[int(at * (calls - 1))], "ns")
        report.line(f"{name}, slowest", times[-1], "ns")
    flushing.close()


def throughput(method: Callable[..., object], threads: int, number: int) -> float:
    """Calls per second of all threads together."""
    gate = threading.Barrier(threads + 1)

    def work() -> None:
        gate.wait()
        for _ in repeat(None, number):
            method(metric="requests", value=1, tags={"model": "v1"})

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    gate.wait()
    start = time.perf_counter()
    for worker in workers:
        worker.join()
    return threads * number / (time.perf_counter() - start)


def bench_threads(report: Report, peers: Peers, rounds: int, number: int) -> None:
    report.title("Threads, million calls a second, all together (the best of the rounds)")
    for threads in (1, 2, 4):
        best = {"empty method": 0.0, "increment": 0.0}
        for _ in range(rounds):
            best["empty method"] = max(best["empty method"], throughput(peers.empty.increment, threads, number))
            best["increment"] = max(best["increment"], throughput(peers.ours.increment, threads, number))
        for name, value in best.items():
            report.line(f"{name}, {threads} threads", value / 1e6, "M/s")
        if threads > 1:
            report.ratio(
                f"{threads} threads / empty method", best["increment"] / best["empty method"], 0.7, at_most=False
            )


def cost_of_import(module: str) -> tuple[float, float]:
    """Milliseconds and MiB of an interpreter that imports ``module``."""
    code = (
        "import time, resource; s = time.perf_counter(); "
        f"{f'import {module}' if module else 'pass'}; t = time.perf_counter() - s; "
        "print(t * 1e3, int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize() / 2**20)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return float(out[0]), float(out[1])


def bench_import(report: Report, rounds: int) -> None:
    report.title("Import, over a bare interpreter (the least of the rounds)")
    modules = ["", "cortex_metrics"]
    try:
        import datadog  # noqa: F401

        modules.append("datadog")
    except ImportError:
        pass
    best = dict.fromkeys(modules, (float("inf"), float("inf")))
    for _ in range(rounds):
        for module in modules:
            now = cost_of_import(module)
            best[module] = (min(best[module][0], now[0]), min(best[module][1], now[1]))
    for module in modules[1:]:
        wanted = ("wanted: at most 10", "wanted: at most 4") if module == "cortex_metrics" else ("", "")
        report.line(f"import {module}", best[module][0], "ms", wanted[0])
        report.line(f"import {module}, memory", best[module][1] - best[""][1], "MiB", wanted[1])


def bench_flood(report: Report, seconds: float) -> None:
    report.title(f"A million histogram calls a second for {seconds:.0f} s, values over six powers of ten")
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
    server.bind(("127.0.0.1", 0))
    server.settimeout(0.2)
    received = [0, 0]
    done = threading.Event()

    def receive() -> None:
        while True:
            try:
                size = len(server.recv(65536))
            except TimeoutError:
                if done.is_set():
                    return
                continue
            received[0] += 1
            received[1] += size

    receiver = threading.Thread(target=receive)
    receiver.start()
    client = cortex_metrics.MetricsClient(f"udp://127.0.0.1:{server.getsockname()[1]}")
    values = [10 ** (i % 6_000 / 1_000 - 3) for i in range(100_000)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    calls = 0
    record = client.histogram
    tags = {"model": "v1"}
    while (now := time.perf_counter() - start) < seconds:
        if calls > now * 1e6:
            time.sleep(0.001)
            continue
        for value in values[:10_000]:
            record("latency", value, tags)
        calls += 10_000
        values = values[10_000:] + values[:10_000]
    client.close()
    stats = client.stats()
    done.set()
    receiver.join()
    server.close()
    report.line("calls a second", calls / seconds, "")
    report.line(
        "payloads a flush", stats["payloads_sent"] / seconds, "", f"{received[0]} received, {received[1]:,} bytes"
    )
    report.line("growth of memory", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, "MiB")
    report.line("calls not sent", calls - stats["sent"], "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round of everything: does it still run?")
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE, too")
    arguments = parser.parse_args()
    quick = arguments.quick
    rounds = 1 if quick else 25
    taken = sink()
    port = taken.getsockname()[1]
    report = Report()
    print(f"Python {platform.python_version()}, cortex-metrics {cortex_metrics.__version__}, {platform.machine()}")
    peers = Peers(port)
    gc.collect()
    bench_calls(report, peers, rounds, 2_000 if quick else 100_000)
    bench_contexts(report, peers, port, rounds)
    bench_slowest(report, peers, port, 20_000 if quick else 1_000_000)
    bench_threads(report, peers, 1 if quick else 7, 10_000 if quick else 1_000_000)
    bench_import(report, 2 if quick else 20)
    bench_flood(report, 1 if quick else 10)
    peers.ours.close()
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as out:
            json.dump(report.figures, out, indent=1)


if __name__ == "__main__":
    main()
