"""A workload of which every number is known: what a collector has to show of it is worked out here from what was done,
without PromQL. It is written into the past by remote write."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from promql_judge import remote_write

TICK = 10
"""Seconds between two samples, as the collector has them."""
MINUTE = 60
SCHEMA = 5
"""The collector's: a bucket is 2.2 % wide."""
WIDTH = 0.022
"""How far a percentile may be from the exact one."""


@dataclass(frozen=True)
class Stretch:
    """A time in which each tick is like the others."""

    seconds: int
    codes: dict[str, int] = field(default_factory=dict)
    """How many requests with which code end in each tick; with none of them the collector was down."""
    latency: float = 0.1
    """The median, in seconds."""
    replicas: int = 2
    requested: int = 2

    @property
    def requests(self) -> int:
        return sum(self.codes.values())

    def values(self, median: float) -> list[float]:
        """What the requests of each tick took: as many as they are, spread over two decades."""
        seeded = random.Random(self.requests)
        return sorted(median * math.exp(seeded.gauss(0, 0.8)) for _ in range(self.requests))


FIRST_BYTE = 0.25
"""Of the latency, this share to the first byte; of that again, in the queue."""
PROCESSES = 2
MODELS = {"v1": 3, "v2": 8, "v3": 1}
"""What the custom metrics of a model are multiples of."""
CPU = {"r1": 0.42, "r2": 0.1, "r3": 0.25}
MEMORY = {"r1": 300 << 20, "r2": 450 << 20, "r3": 200 << 20}


def exact(values: Iterable[float], q: float) -> float:
    """The percentile by the nearest rank."""
    ordered = sorted(values)
    return ordered[math.ceil(q * len(ordered)) - 1]


def in_flight(time: int, replica: int, process: int) -> int:
    """Of one process; it changes from tick to tick."""
    return replica + process + (time // TICK) % 3


def peak(time: int, replica: int, process: int) -> int:
    return in_flight(time, replica, process) + 2 + (time // TICK) % 5


class Histogram:
    """A native histogram that counts on."""

    def __init__(self) -> None:
        self.buckets: Counter[int] = Counter()
        self.count = 0
        self.sum = 0.0

    def record(self, values: Iterable[float]) -> None:
        for value in values:
            # Bucket i holds what is above 2^((i - 1) / 32) and at most 2^(i / 32).
            self.buckets[math.ceil(math.log2(value) * (1 << SCHEMA))] += 1
            self.count += 1
            self.sum += value

    def sample(self) -> dict[str, Any]:
        first = min(self.buckets, default=0)
        counts = [self.buckets[at] for at in range(first, max(self.buckets, default=-1) + 1)]
        return {
            "schema": SCHEMA,
            "count": self.count,
            "sum": self.sum,
            "zero_count": 0,
            "positive": (first, counts),
            "negative": (0, []),
        }


class Written:
    """Series for remote write, by their labels."""

    def __init__(self) -> None:
        self._series: dict[tuple[tuple[str, str], ...], list[tuple[int, Any]]] = {}

    def add(self, time: int, name: str, labels: dict[str, str], value: Any) -> None:
        key = tuple(sorted({"__name__": name, **labels}.items()))
        self._series.setdefault(key, []).append((time * 1000, value))

    def send(self, url: str) -> None:
        for key, samples in self._series.items():
            for at in range(0, len(samples), 500):
                remote_write(url, [{"labels": dict(key), "samples": samples[at : at + 500]}])


class Workload:
    """Stretches one after the other, beginning at `start`."""

    def __init__(self, api: str, start: int, stretches: list[Stretch]) -> None:
        self.api = api
        self.start = start
        self.stretches: list[tuple[int, Stretch]] = []
        for stretch in stretches:
            self.stretches.append((start, stretch))
            start += stretch.seconds
        self.end = start

    def stretch_at(self, time: int, over: int = MINUTE) -> Stretch | None:
        """The stretch in which the whole of the time before `time` is, if it is in one."""
        for start, stretch in self.stretches:
            if start + over <= time <= start + stretch.seconds and stretch.codes:
                return stretch
        return None

    def is_down(self, time: int, over: int = MINUTE) -> bool:
        """Whether nothing is known of all of the time before `time`."""
        return any(
            start + over <= time < start + stretch.seconds + TICK
            for start, stretch in self.stretches
            if not stretch.codes
        )

    @property
    def requests(self) -> Counter[str]:
        """All that there were, by code."""
        total: Counter[str] = Counter()
        for _, stretch in self.stretches:
            for code, count in stretch.codes.items():
                total[code] += count * (stretch.seconds // TICK)
        return total

    def write(self, url: str) -> None:
        out = Written()
        api = {"api_name": self.api, "api_id": "v1"}
        counters: Counter[str] = Counter({code: 0 for _, one in self.stretches for code in one.codes})
        cpu: Counter[str] = Counter()
        tokens: Counter[str] = Counter()
        durations, first_bytes, queued = Histogram(), Histogram(), Histogram()
        sizes = {model: Histogram() for model in MODELS}
        for start, stretch in [(self.start - TICK, Stretch(TICK, {"": 0})), *self.stretches]:
            for time in range(start + TICK, start + stretch.seconds + TICK, TICK):
                if not stretch.codes:
                    continue
                for code, count in stretch.codes.items():
                    counters[code] += count
                values = stretch.values(stretch.latency)
                durations.record(values)
                first_bytes.record(value * FIRST_BYTE for value in values)
                queued.record(value * FIRST_BYTE * FIRST_BYTE for value in values)
                for code, total in counters.items():
                    if code:
                        out.add(time, "cortex_api_requests_total", {**api, "response_code": code}, total)
                out.add(time, "cortex_api_request_duration_seconds", api, durations.sample())
                out.add(time, "cortex_api_request_first_byte_seconds", api, first_bytes.sample())
                out.add(time, "cortex_api_request_queue_seconds", api, queued.sample())
                for number in range(stretch.replicas):
                    replica = {**api, "replica": f"r{number + 1}"}
                    out.add(time, "cortex_api_replica_start_timestamp_seconds", replica, self.start)
                    cpu[replica["replica"]] += CPU[replica["replica"]] * TICK  # type: ignore[assignment]
                    out.add(time, "cortex_api_process_cpu_seconds_total", replica, cpu[replica["replica"]])
                    for process in range(PROCESSES):
                        of = {**replica, "process": f"p{process}"}
                        out.add(time, "cortex_api_in_flight_requests", of, in_flight(time, number, process))
                        out.add(time, "cortex_api_in_flight_requests_peak", of, peak(time, number, process))
                        memory = MEMORY[replica["replica"]] / PROCESSES
                        out.add(time, "cortex_api_process_resident_memory_bytes", of, memory)
                out.add(time, "cortex_api_replicas_requested", api, stretch.requested)
                for model, share in MODELS.items():
                    tokens[model] += share * stretch.requests
                    of = {**api, "model": model}
                    out.add(time, "tokens_total", of, tokens[model])
                    out.add(time, "cache_entries", of, share * 100 + (time // TICK) % 4)
                    sizes[model].record(value * share for value in values)
                    out.add(time, "prompt_seconds", of, sizes[model].sample())
        out.send(url)
