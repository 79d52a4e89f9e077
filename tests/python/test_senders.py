"""Senders that others wrote, as they come from their registries: what they were told is in the collector's query API."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from support import ROOT, Collector, until

Start = Callable[..., Collector]

SHARE = 0.3
HOT_SHOTS = ROOT / "tests" / "hot-shots"


def address(collector: Collector) -> tuple[str, int]:
    host, port = collector.udp.split(":")
    return host, int(port)


def check_values(collector: Collector, metric: str, tags: str, unit: float = 1.0) -> None:
    """The values 1 to 100, in a unit."""
    assert collector.query(f"histogram_count({metric})") == {tags: 100}, metric
    assert collector.query(f"histogram_sum({metric})")[tags] == pytest.approx(5050 * unit, rel=1e-12)
    assert collector.query(f"histogram_quantile(0.9, {metric})")[tags] == pytest.approx(90 * unit, rel=0.022)


def check_sampled(collector: Collector, metric: str, tags: str) -> None:
    """Of 100 calls some were sent, and each stands for all that it was chosen from: 3 and a third, not 3."""
    sent = collector.query(metric)[tags] * SHARE
    assert 0 < sent < 100
    assert sent == pytest.approx(round(sent), rel=1e-9)


def check_refused(collector: Collector, metric: str, is_aggregated: bool = False) -> None:
    """Nothing but the decrements, of which one was sent for each call or for all: a counter of Prometheus cannot go back."""
    assert collector.query(metric) == {}
    status = collector.status("ingest")
    assert set(status["dropped"]) == {"negative_counter"}
    count = status["dropped"]["negative_counter"]["count"]
    assert 1 <= count < 100 if is_aggregated else count == 100
    assert (status["tagsDropped"], status["unknownFields"]["count"], status["repeatedFields"]) == (0, 0, 0)


def set_together(collector: Collector, metric: str, wanted: dict[str, float], send: Callable[[], None]) -> None:
    """Until both of its values came within one tick: a set is counted anew in each."""

    def known() -> bool:
        send()
        return collector.query(f"max_over_time({metric}[10m])") == wanted

    until(known)


@pytest.mark.parametrize("transport", ["udp", "unix"])
@pytest.mark.parametrize("is_aggregated", [False, True])
@pytest.mark.parametrize("is_buffered", [False, True])
def test_datadog(collector_with: Start, tmp_path: Path, transport: str, is_aggregated: bool, is_buffered: bool) -> None:
    from datadog.dogstatsd.base import DogStatsd

    collector = collector_with("--listen-unix", str(tmp_path / "m.sock"))
    host, port = address(collector)
    client = DogStatsd(
        **({"host": host, "port": port} if transport == "udp" else {"socket_path": str(tmp_path / "m.sock")}),
        disable_aggregation=not is_aggregated,
        disable_buffering=not is_buffered,
        constant_tags=["service:shop"],
        cardinality="low",
        socket_timeout=10,  # it would drop what a Unix socket does not take at once
    )
    tags = ["model:v1", "path:/a", "flag"]
    key = "flag=true,model=v1,path=/a,service=shop"
    for value in range(1, 101):
        client.increment("dd.jobs", 2, tags=tags)
        client.decrement("dd.credit", tags=tags)
        client.gauge("dd.depth", value, tags=tags)
        client.timing("dd.latency", value, tags=tags)
        client.histogram("dd.size", value, tags=tags)
        client.distribution("dd.spread", value, tags=tags)
        if not is_aggregated:  # which does without rates
            client.increment("dd.sampled", sample_rate=SHARE)
    client.gauge("dd.cold", -4)
    client.event("deployed", "with\nlines", alert_type="info", tags=["version:2"])
    client.service_check("database", client.WARNING, message="slow", tags=["shard:1"])
    client.count_with_timestamp("dd.stamped", 4, 1_700_000_000)
    client.flush()

    def sets() -> None:
        for visitor in ("ann", "bob", "ann"):
            client.set("dd.visitors", visitor, tags=tags)
        client.flush()

    set_together(collector, "dd_visitors", {key: 2}, sets)
    assert collector.query("dd_jobs") == {key: 200}
    assert collector.query("dd_depth") == {key: 100}
    assert collector.query("dd_cold") == {"service=shop": -4}
    assert collector.query("dd_stamped") == {"service=shop": 4}
    check_values(collector, "dd_latency", key, 0.001)
    check_values(collector, "dd_size", key)
    check_values(collector, "dd_spread", key)
    if not is_aggregated:
        check_sampled(collector, "dd_sampled", "service=shop")
    status = collector.status("ingest")
    assert (status["events"], status["serviceChecks"], status["timestamps"]) == (1, 1, 1)
    check_refused(collector, "dd_credit", is_aggregated)
    client.stop()
    client.close_socket()


@pytest.mark.parametrize("is_pipelined", [False, True])
def test_statsd(collector: Collector, is_pipelined: bool) -> None:
    from statsd import StatsClient

    host, port = address(collector)
    client = StatsClient(host, port, prefix="app")
    to = client.pipeline() if is_pipelined else client
    for value in range(1, 101):
        to.incr("jobs", 2)
        to.decr("credit")
        to.gauge("depth", value)
        to.timing("latency", value)
        to.incr("sampled", rate=SHARE)
    to.timing("span", timedelta(seconds=2))
    with to.timer("block"):
        pass
    to.gauge("cold", -4)
    to.gauge("level", 10)
    to.gauge("level", 5, delta=True)
    to.gauge("level", -2, delta=True)
    if is_pipelined:
        to.send()

    def sets() -> None:
        for visitor in ("ann", "bob", "ann"):
            to.set("visitors", visitor)
        if is_pipelined:
            to.send()

    set_together(collector, "app_visitors", {"": 2}, sets)
    assert collector.query("app_jobs") == {"": 200}
    assert collector.query("app_depth") == {"": 100}
    assert collector.query("app_cold") == {"": -4}
    assert collector.query("app_level") == {"": 13}
    assert collector.query("histogram_sum(app_span)") == {"": 2}
    assert collector.query("histogram_count(app_block)") == {"": 1}
    check_values(collector, "app_latency", "", 0.001)
    check_sampled(collector, "app_sampled", "")
    check_refused(collector, "app_credit")
    client.close()


def test_aiodogstatsd(collector: Collector) -> None:
    from aiodogstatsd import Client

    async def send() -> None:
        host, port = address(collector)
        async with Client(host=host, port=port, namespace="aio", constant_tags={"service": "shop"}) as client:
            tags = {"model": "v1", "path": "a b"}
            for value in range(1, 101):
                client.increment("jobs", value=2, tags=tags)
                client.decrement("credit", tags=tags)
                client.gauge("depth", value=value, tags=tags)
                client.timing("latency", value=value, tags=tags)
                client.histogram("size", value=value, tags=tags)
                client.distribution("spread", value=value, tags=tags)
                client.increment("sampled", sample_rate=SHARE)
            # It always has a tag, so this is a value and no change.
            client.gauge("cold", value=4)
            client.gauge("cold", value=-4)
            with client.timeit("block"):
                await asyncio.sleep(0)

    asyncio.run(send())
    key = "model=v1,path=a b,service=shop"
    until(lambda: collector.query("histogram_count(aio_block)") == {"service=shop": 1})
    assert collector.query("aio_jobs") == {key: 200}
    assert collector.query("aio_depth") == {key: 100}
    assert collector.query("aio_cold") == {"service=shop": -4}
    check_values(collector, "aio_latency", key, 0.001)
    check_values(collector, "aio_size", key)
    check_values(collector, "aio_spread", key)
    check_sampled(collector, "aio_sampled", "service=shop")
    check_refused(collector, "aio_credit")


@pytest.fixture(scope="session")
def node() -> str:
    """The program, with hot-shots beside the script; `make test` has seen to that where it could."""
    program = shutil.which("node")
    if program is None or not (HOT_SHOTS / "node_modules" / "hot-shots").exists():
        reason = "Node.js is missing: make node" if program is None else "hot-shots is missing: make npm"
        assert os.environ.get("CI") != "true", reason
        pytest.skip(reason)
    return program


@pytest.mark.parametrize("aggregates", ["OFF", "ON"])
@pytest.mark.parametrize(("gauge_minus", "level"), [("auto", -2), ("delta", 13)])
def test_hot_shots(collector_with: Start, node: str, aggregates: str, gauge_minus: str, level: float) -> None:
    # Its tags make -2 a value, as DogStatsD has it; its gaugeDelta means a change, which the flag settles.
    collector = collector_with("--gauge-minus", gauge_minus)
    host, port = address(collector)
    done = subprocess.run(
        [node, HOT_SHOTS / "send.js", host, str(port), aggregates],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    key, own = "model=v1,path=a b,service=shop", "service=shop"
    # A set falls back to 0 after its tick; what was set together came in one datagram.
    until(lambda: collector.query("max_over_time(hot_visitors[10m])") == {key: 2})
    until(lambda: collector.query("hot_stamped") == {own: 4})
    assert collector.query("hot_jobs") == {key: 200}
    assert collector.query("hot_depth") == {key: 100}
    assert collector.query("hot_cold") == {own: -4}
    assert collector.query("hot_level") == {own: level}
    assert (collector.query("hot_both"), collector.query("hot_two")) == ({own: 3}, {own: 3})
    assert 5 <= collector.query("histogram_sum(hot_since)")[own] < 10
    check_values(collector, "hot_latency", key, 0.001)
    check_values(collector, "hot_size", key)
    check_values(collector, "hot_spread", key)
    check_sampled(collector, "hot_sampled", "model=v1,service=shop")
    status = collector.status("ingest")
    assert (status["events"], status["serviceChecks"], status["timestamps"]) == (2, 1, 1)
    check_refused(collector, "hot_credit", aggregates == "ON")
