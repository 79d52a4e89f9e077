"""Pictures of each page, in light, dark and narrow, into docs/screenshots: `make screenshots`.

The data are a day of three APIs, the same in each run but for the time of the day: text-generator was deployed anew five hours ago and
is faster since; nine hours ago its backend failed for half an hour.
"""

from __future__ import annotations

import math
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))

from browser import Browser
from cortex_metrics import MetricsClient
from support import ROOT, Collector, until
from workload import SCHEMA, Written

OUT = ROOT / "docs" / "screenshots"
DAY = 24 * 3600
TICK = 20
"""Seconds between two samples: half of what a collector has, as good for a day's pictures."""
AHEAD = 480
"""Written into the future, so that what lives goes on living while the pictures are taken."""
# No higher than the least of what is shown: a picture is as high as its page.
KINDS = {
    "light": {"colorScheme": "light", "viewport": {"width": 1280, "height": 300}},
    "dark": {"colorScheme": "dark", "viewport": {"width": 1280, "height": 300}},
    "narrow": {"colorScheme": "light", "viewport": {"width": 400, "height": 300}, "hasTouch": True},
}
HEIGHT_MAX = {"light": 1960, "dark": 1960, "narrow": 1500}
PAGES: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "overview": ((), {"range": "24h"}),
    "api": (("api", "text-generator"), {"range": "24h"}),
    "custom-metrics": (("metrics",), {"range": "24h"}),
    "metric": (("metrics", "prompt_tokens"), {"range": "24h", "by": "model"}),
    "loss": (("loss",), {"range": "24h"}),
    "explore": (
        ("explore",),
        {"range": "24h", "expr": "sum by (api_name, response_code) (rate(cortex_api_requests_total[5m])) > 0"},
    ),
}


class Shape:
    """Where the values of a distribution fall: shares by bucket."""

    def __init__(self, sigma: float, tail: float = 0.0) -> None:
        seeded = random.Random(1)
        values = [math.exp(seeded.gauss(0, sigma) + (1.4 if seeded.random() < tail else 0)) for _ in range(4000)]
        at = [math.ceil(math.log2(value) * (1 << SCHEMA)) for value in values]
        self.first = min(at)
        self.shares = [0.0] * (max(at) - self.first + 1)
        for one in at:
            self.shares[one - self.first] += 1 / len(values)
        self.mean = sum(values) / len(values)


class Growing:
    """A native histogram to which expected counts are added."""

    def __init__(self) -> None:
        self.counts: dict[int, float] = {}
        self.sum = 0.0

    def add(self, shape: Shape, scale: float, count: float) -> None:
        shift = round(math.log2(scale) * (1 << SCHEMA)) + shape.first
        for at, share in enumerate(shape.shares, shift):
            if share:
                self.counts[at] = self.counts.get(at, 0.0) + share * count
        self.sum += shape.mean * scale * count

    def sample(self) -> dict[str, object]:
        first, last = (min(self.counts), max(self.counts)) if self.counts else (0, -1)
        counts = [self.counts.get(at, 0.0) for at in range(first, last + 1)]
        # The count is that of the buckets, added in their order.
        return {
            "schema": SCHEMA,
            "count": sum(counts),
            "sum": self.sum,
            "zero_count": 0,
            "positive": (first, counts),
            "negative": (0, []),
        }


@dataclass
class Api:
    name: str
    rate: float
    """Requests a second by day."""
    latency: float
    replicas: int
    shape: Shape
    deployed: int | None = None
    """Seconds ago."""
    failed: tuple[int, int] | None = None


APIS = [
    Api("text-generator", 14, 0.32, 3, Shape(0.45, 0.04), deployed=5 * 3600, failed=(9 * 3600, 9 * 3600 - 1800)),
    Api("image-classifier", 38, 0.024, 2, Shape(0.3, 0.02)),
    Api("fraud-scorer", 6, 0.0041, 1, Shape(0.25, 0.01)),
]


def write_api(api: Api, now: int, out: Written) -> None:
    seeded = random.Random(api.name)
    counters: dict[tuple[str, str], float] = {}
    durations: dict[str, list[Growing]] = {}
    cpu: dict[str, float] = {}
    for at in range(now - DAY - 600, now + AHEAD, TICK):
        ago = now - at
        version = "v2" if api.deployed is not None and ago < api.deployed else "v1"
        # The old version's last replica goes a minute after the new one's first came.
        labels = {"api_name": api.name, "api_id": version}
        failed = api.failed is not None and api.failed[1] < ago < api.failed[0]
        day = 1 + 0.55 * math.sin((at - now) / DAY * 2 * math.pi - 1.1) + 0.12 * math.sin((at - now) / 2400)
        requests = max(api.rate * day * TICK * seeded.gauss(1, 0.05), 1)
        shares = {"200": 0.985, "400": 0.009, "404": 0.004, "500": 0.002}
        if failed:
            shares = {"200": 0.86, "400": 0.009, "404": 0.004, "500": 0.03, "503": 0.097}
        for code in ("200", "400", "404", "500", *(["503"] if api.failed else [])):
            key = (version, code)
            # Single requests, not shares of one.
            counters[key] = counters.get(key, 0.0) + math.floor(requests * shares.get(code, 0) + seeded.random())
            out.add(at, "cortex_api_requests_total", {**labels, "response_code": code}, counters[key])
        latency = (
            api.latency
            * (0.66 if version == "v2" else 1)
            * (2.6 if failed else 1)
            * (0.9 + 0.14 * day)
            * seeded.gauss(1, 0.02)
        )
        known = durations.setdefault(version, [Growing(), Growing(), Growing()])
        for growing, name, share in zip(known, ("duration", "first_byte", "queue"), (1.0, 0.4, 0.05), strict=True):
            growing.add(api.shape, latency * share, requests)
            out.add(at, f"cortex_api_request_{name}_seconds", labels, growing.sample())
        busy = requests / TICK * latency
        replicas = api.replicas + (1 if api.deployed is not None and 0 < ago - api.deployed + 120 < 120 else 0)
        for number in range(replicas):
            replica = {**labels, "replica": f"{api.name.split('-')[0]}-{version}-{number}"}
            begun = now - api.deployed if version == "v2" and api.deployed else now - 6 * DAY
            out.add(at, "cortex_api_replica_start_timestamp_seconds", replica, begun + number)
            current = max(round(busy / replicas * seeded.gauss(1, 0.25)), 0)
            process = {**replica, "process": f"p{number}"}
            out.add(at, "cortex_api_in_flight_requests", process, current)
            out.add(at, "cortex_api_in_flight_requests_peak", process, current + seeded.choice((1, 1, 2, 2, 3, 4)))
            cpu[replica["replica"]] = cpu.get(replica["replica"], 0.0) + TICK * min(
                busy / replicas * (0.4 + 0.06 * number) + 0.03, 4
            )
            out.add(at, "cortex_api_process_cpu_seconds_total", replica, cpu[replica["replica"]])
            memory = (900 << 20) + number * (37 << 20) + (at - now + 2 * DAY) % 7200 * 9000
            out.add(at, "cortex_api_process_resident_memory_bytes", process, memory)
        out.add(at, "cortex_api_replicas_requested", labels, api.replicas)
        out.add(at, "cortex_api_info", {**labels, "endpoint": f"http://10.0.0.{len(api.name)}:8080/"}, 1)


def write_custom(now: int, out: Written) -> None:
    seeded = random.Random(7)
    models = {"small": 1.0, "large": 2.6}
    tokens = dict.fromkeys(models, 0.0)
    hits = {"hit": 0.0, "miss": 0.0}
    prompts = {model: Growing() for model in models}
    preprocess = Growing()
    shape, tight = Shape(0.8), Shape(0.35)
    for at in range(now - DAY - 600, now + AHEAD, TICK):
        api = {"api_name": "text-generator"}
        day = 1 + 0.55 * math.sin((at - now) / DAY * 2 * math.pi - 1.1)
        for model, factor in models.items():
            n = 7 * TICK * day / factor
            tokens[model] += n * 180 * factor * seeded.gauss(1, 0.06)
            prompts[model].add(shape, 220 * factor * (1 + 0.1 * day), n)
            out.add(at, "generated_tokens_total", {**api, "model": model}, round(tokens[model]))
            out.add(at, "prompt_tokens", {**api, "model": model}, prompts[model].sample())
        share = 0.72 + 0.15 * math.sin((at - now) / 9000)
        hits["hit"] += 60 * day * share
        hits["miss"] += 60 * day * (1 - share)
        for result, value in hits.items():
            out.add(at, "cache_lookups_total", {**api, "result": result}, round(value))
        preprocess.add(tight, 0.0031, 60 * day)
        out.add(at, "preprocess_seconds", api, preprocess.sample())
        for gpu in ("0", "1"):
            used = (
                (11 << 30) + int(gpu) * (1 << 30) + int((day + 0.1 * math.sin((at - now) / 900 + int(gpu))) * (3 << 30))
            )
            out.add(at, "gpu_memory_bytes", {"gpu": gpu}, used)
        out.add(at, "batch_size", api, max(round(4 * day * seeded.gauss(1, 0.2)), 1))


def write_loss(now: int, out: Written) -> None:
    """What the collector of another machine would have sent."""
    node = {"node": "gpu-2"}
    calls = messages = datagrams = limit = conflict = missing = 0.0
    for at in range(now - DAY - 600, now + AHEAD, TICK):
        ago = now - at
        day = 1 + 0.55 * math.sin((at - now) / DAY * 2 * math.pi - 1.1)
        calls += 2400 * day
        messages += 380 * day
        datagrams += 31 * day
        limit += 40 if 9 * 3600 - 900 < ago < 9 * 3600 else 0
        conflict += 1 if 3 * 3600 < ago < 3 * 3600 + 1200 else 0
        missing += 1 if 9 * 3600 - 60 < ago < 9 * 3600 else 0
        out.add(at, "cortex_client_calls_total", node, round(calls))
        out.add(at, "cortex_client_dropped_total", {**node, "reason": "context_limit"}, limit)
        out.add(at, "cortex_collector_messages_total", node, round(messages))
        out.add(at, "cortex_collector_datagrams_total", node, round(datagrams))
        out.add(at, "cortex_collector_dropped_total", {**node, "reason": "type_conflict"}, conflict)
        out.add(at, "cortex_collector_payloads_missing_total", node, missing)


def live(collector: Collector) -> Iterator[None]:
    """Two processes of this machine, for the tables of sockets and senders."""
    with MetricsClient(collector.url) as one, MetricsClient(collector.url) as other:
        for _ in range(40):
            one.increment("generated_tokens_total", 3, tags={"model": "small", "node": "local"})
            other.increment("cache_lookups_total", tags={"result": "hit", "node": "local"})
        one.flush()
        other.flush()
        yield


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    total = 0
    with tempfile.TemporaryDirectory() as folder:
        collector = Collector(Path(folder), "127.0.0.1:0", "127.0.0.1:0", "--enable-remote-write-receiver")
        browser = Browser()
        try:
            now = int(time.time()) // TICK * TICK
            for write in (*(lambda n, o, a=api: write_api(a, n, o) for api in APIS), write_custom, write_loss):
                out = Written()
                write(now, out)
                out.send(f"http://{collector.web}")
            for _ in live(collector):
                until(lambda: collector.query('cache_lookups_total{node="local"}'))
            for kind, options in KINDS.items():
                page = browser.page(collector.web, **options)
                for name, (path, params) in PAGES.items():
                    page.goto(*path, **params, refresh="off")
                    width = options["viewport"]["width"]
                    file = OUT / f"{name}-{kind}.png"
                    height = 0
                    # Twice: what is drawn alone is as high as the window allows.
                    for _ in range(2):
                        content = page.evaluate(
                            "() => document.querySelector('main').getBoundingClientRect().bottom + scrollY"
                        )
                        height = min(round(content), HEIGHT_MAX[kind])
                        page.call("setViewportSize", {"width": width, "height": height})
                    # What came into the window is drawn too.
                    page.refreshed()
                    page.call("screenshot", {"path": str(file), "animations": "disabled"})
                    page.call("setViewportSize", options["viewport"])
                    total += file.stat().st_size
                    print(f"{file.relative_to(ROOT)}  {width}x{height}  {file.stat().st_size / 1000:.0f} kB")
                page.close()
        finally:
            browser.stop()
            collector.stop()
    print(f"{total / 1e6:.2f} MB in all")


if __name__ == "__main__":
    main()
