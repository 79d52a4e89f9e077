"""The real Prometheus scrapes the real collector: what was sent is what its own API answers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cortex_metrics import MetricsClient
from support import ROOT, Collector, Process, until

VALUES = [0.001 * 1.02**n for n in range(500)]


@pytest.fixture(scope="session")
def prometheus() -> Path:
    """The program of Debian's forky, unpacked beside the system."""
    done = subprocess.run(
        [ROOT / "tests" / "debian-package", "prometheus", "forky"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        assert os.environ.get("CI") != "true", done.stderr
        pytest.skip(f"no Prometheus to be had: {done.stderr.strip()}")
    return Path(done.stdout.strip()) / "usr" / "bin" / "prometheus"


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


class Prometheus(Process):
    """It scrapes one target every second."""

    def __init__(self, program: Path, folder: Path, target: str, *flags: str) -> None:
        folder.mkdir()
        config = {
            "global": {"scrape_interval": "1s"},
            "scrape_configs": [{"job_name": "cortex", "static_configs": [{"targets": [target]}]}],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))
        log = folder / "prometheus.log"
        log.write_bytes(b"")
        self.web = f"127.0.0.1:{free_port()}"
        super().__init__(
            log,
            program,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address={self.web}",
            *flags,
        )
        self.line(r"(Server is ready)")

    def query(self, query: str) -> dict[str, float]:
        """An instant query: each series' labels beside `instance` and `job`, and its value."""
        url = f"http://{self.web}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            result: Any = json.load(answer)["data"]["result"]
        own = ("__name__", "instance", "job")
        return {
            ",".join(f"{key}={text}" for key, text in sorted(one["metric"].items()) if key not in own): float(
                one["value"][1]
            )
            for one in result
        }


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Collector]:
    collector = Collector(tmp_path)
    yield collector
    collector.stop()


def send(collector: Collector) -> None:
    with MetricsClient(f"udp://{collector.udp}", tags={"zone": "a"}) as client:
        client.increment("requests", 3, {"model": "v1"})
        client.increment("requests", 4, {"model": 'v"2\\'})
        client.gauge("temperature", -21.5)
        for value in VALUES:
            client.histogram("latency_seconds", value)
        client.histogram("mixed", -2)
        client.histogram("mixed", 0)


def test_prometheus_reads_counters_gauges_and_both_kinds_of_histograms(
    prometheus: Path, collector: Collector, tmp_path: Path
) -> None:
    send(collector)
    classic = Prometheus(prometheus, tmp_path / "classic", collector.web)
    native = Prometheus(prometheus, tmp_path / "native", collector.web, "--enable-feature=native-histograms")
    try:
        ordered = sorted(VALUES)
        for server in (classic, native):
            until(lambda: server.query("requests") and server.query("up == 1"), 30)  # noqa: B023
            assert server.query("requests") == {"model=v1,zone=a": 3, 'model=v"2\\,zone=a': 4}
            assert server.query("temperature") == {"zone=a": -21.5}
            assert server.query("cortex_client_calls_total")[""] == len(VALUES) + 5
        assert classic.query("latency_seconds_count") == {"zone=a": len(VALUES)}
        assert classic.query("latency_seconds_sum")["zone=a"] == pytest.approx(sum(VALUES), rel=1e-12)
        below = sum(value <= 1 for value in VALUES)
        assert classic.query('latency_seconds_bucket{le="1.0"}') == {"le=1.0,zone=a": below}
        assert native.query("histogram_count(latency_seconds)") == {"zone=a": len(VALUES)}
        assert native.query("histogram_sum(latency_seconds)")["zone=a"] == pytest.approx(sum(VALUES), rel=1e-12)
        assert native.query("histogram_count(mixed)") == {"zone=a": 2}
        assert native.query("histogram_fraction(-3, -1, mixed)") == {"zone=a": 0.5}
        for quantile in (0.5, 0.9, 0.99):
            exact = ordered[int(quantile * len(ordered))]
            got = native.query(f"histogram_quantile({quantile}, latency_seconds)")["zone=a"]
            assert got == pytest.approx(exact, rel=0.022), quantile
    finally:
        classic.stop()
        native.stop()


def test_a_scrape_is_compressed_for_who_asks(collector: Collector) -> None:
    send(collector)

    def scrape(**headers: str) -> tuple[bytes, str | None]:
        request = urllib.request.Request(f"http://{collector.web}/metrics", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read(), answer.headers["Content-Encoding"]

    until(lambda: b"requests{" in scrape()[0])
    plain, encoding = scrape()
    assert encoding is None
    packed, encoding = scrape(**{"Accept-Encoding": "gzip"})
    assert encoding == "gzip"
    assert len(packed) < len(plain) / 4
