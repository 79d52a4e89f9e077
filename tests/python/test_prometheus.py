"""The real Prometheus scrapes the real collector: what was sent is what its own API answers."""

from __future__ import annotations

import json
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cortex_metrics import MetricsClient
from support import Collector, Process, free_port, of_debian, until

VALUES = [0.001 * 1.02**n for n in range(500)]


@pytest.fixture(scope="session")
def prometheus() -> Path:
    return of_debian("prometheus") / "prometheus"


@pytest.fixture(scope="session")
def promtool() -> Path:
    return of_debian("promtool") / "promtool"


class Prometheus(Process):
    """It scrapes one target every second."""

    def __init__(self, program: Path, folder: Path, target: str, *flags: str, **scrape: Any) -> None:
        folder.mkdir()
        config = {
            "global": {"scrape_interval": "1s"},
            "scrape_configs": [{"job_name": "cortex", "static_configs": [{"targets": [target]}], **scrape}],
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

    def samples(self, selector: str) -> list[tuple[float, float]]:
        """The samples of one series of the last minutes: time, and the value or a native histogram's count."""
        return samples(self.web, selector)


def samples(web: str, selector: str) -> list[tuple[float, float]]:
    url = f"http://{web}/api/v1/query?{urllib.parse.urlencode({'query': selector + '[5m]'})}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        result: Any = json.load(answer)["data"]["result"]
    if not result:
        return []
    assert len(result) == 1, result
    found = [(time, float(value)) for time, value in result[0].get("values", [])]
    return found + [(time, float(histogram["count"])) for time, histogram in result[0].get("histograms", [])]


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


def test_a_series_begins_with_a_zero_at_its_start_and_a_restart_is_no_reset(
    prometheus: Path, collector: Collector, tmp_path: Path
) -> None:
    """Start timestamps: with `created-timestamp-zero-ingestion`, Prometheus writes a zero where the collector says."""
    feature = "created-timestamp-zero-ingestion"
    # It asks for protobuf then, and passes over the native histograms in it, which it may not take.
    both_kinds = {"always_scrape_classic_histograms": True}
    classic = Prometheus(prometheus, tmp_path / "classic", collector.web, f"--enable-feature={feature}", **both_kinds)
    both = f"--enable-feature={feature},native-histograms"
    native = Prometheus(prometheus, tmp_path / "native", collector.web, both)
    servers = (classic, native)
    again = collector
    try:
        for server in servers:
            until(lambda: server.query("up == 1"), 30)  # noqa: B023
        send(collector)
        counter, gauge = 'requests{model="v1"}', "temperature"
        looked_at = [
            (classic, counter, counter),
            (native, counter, counter),
            (classic, "latency_seconds_count", "latency_seconds"),
            (classic, 'latency_seconds_bucket{le="1.0"}', "latency_seconds"),
            (native, "latency_seconds", "latency_seconds"),
        ]
        until(lambda: all(len(server.samples(selector)) >= 3 for server, selector, _ in looked_at), 30)
        # 1 for native histograms: Prometheus takes the zero that it wrote for one.
        resets = [server.query(f"resets({selector}[5m])") for server, selector, _ in looked_at]
        collector.stop()
        again = collector.again()
        with MetricsClient(f"udp://{again.udp}", tags={"zone": "a"}) as client:
            client.increment("requests", 5, {"model": "v1"})
        until(lambda: all(server.query(counter) == {"model=v1,zone=a": 8} for server in servers), 30)
        for server, selector, own in looked_at:
            first, *later = server.samples(selector)
            began, zero = samples(again.web, own)[0]
            assert (first[1], zero) == (0, 0), selector
            assert first[0] == pytest.approx(began, abs=0.001), selector
            assert later[0][1] > 0, selector
            counts = [count for _, count in later]
            assert counts == sorted(counts), selector
        assert resets == [server.query(f"resets({selector}[5m])") for server, selector, _ in looked_at]
        assert resets[0] == {"model=v1,zone=a": 0}
        assert all(value == -21.5 for _, value in classic.samples(gauge))
    finally:
        for server in servers:
            server.stop()
        again.stop()


def test_other_classic_buckets_are_the_same_for_prometheus_and_for_queries(prometheus: Path, tmp_path: Path) -> None:
    bounds = [-1.5, 0, 0.005, 0.25, 10]
    collector = Collector(tmp_path, "127.0.0.1:0", "127.0.0.1:0", "--classic-buckets", ",".join(map(str, bounds)))
    server = Prometheus(prometheus, tmp_path / "classic", collector.web)
    try:
        send(collector)
        until(lambda: server.query("latency_seconds_bucket") and server.query("mixed_bucket"), 30)
        latency, mixed = server.query("latency_seconds_bucket"), server.query("mixed_bucket")
        assert latency == collector.query("latency_seconds_bucket")
        labels = [f"le={le},zone=a" for le in ("-1.5", "0.0", "0.005", "0.25", "10.0", "+Inf")]
        assert mixed == dict(zip(labels, [1, 2, 2, 2, 2, 2], strict=True))
        assert set(latency) == set(labels)
        for bound, label in zip(bounds, labels, strict=False):
            # Some values for each bucket of the histogram, which are 2.2 % wide.
            assert latency[label] == pytest.approx(sum(value <= bound for value in VALUES), abs=2), label
        assert latency[labels[3]] == sum(value <= 0.25 for value in VALUES)
        assert latency[labels[5]] == len(VALUES)
    finally:
        server.stop()
        collector.stop()


OWN = """cortex_api_requests_total:1|c|#api_name:a,api_id:1,response_code:200
cortex_api_request_duration_seconds:0.1|h|#api_name:a,api_id:1
cortex_api_request_first_byte_seconds:0.1|h|#api_name:a,api_id:1
cortex_api_request_queue_seconds:0.1|h|#api_name:a,api_id:1
cortex_api_in_flight_requests:1|g|#api_name:a,api_id:1,replica:r,process:p
cortex_api_in_flight_requests_peak:1|g|#api_name:a,api_id:1,replica:r,process:p
cortex_api_replica_start_timestamp_seconds:1|g|#api_name:a,api_id:1,replica:r
cortex_api_replicas_requested:1|g|#api_name:a,api_id:1
cortex_api_info:1|g|#api_name:a,api_id:1,endpoint:e
cortex_api_process_cpu_seconds_total:1|c|#api_name:a,api_id:1,replica:r
cortex_api_process_resident_memory_bytes:1|g|#api_name:a,api_id:1,replica:r,process:p
cortex_client_dropped_total:1|c|#reason:queue_full
refused:-1|c
last:1|c"""


def test_promtool_has_nothing_to_say_about_our_own_series(promtool: Path, collector: Collector) -> None:
    send(collector)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(OWN.encode(), ("127.0.0.1", int(collector.udp.rpartition(":")[2])))
    until(lambda: "\nlast 1\n" in collector.get("/metrics"))

    def names(text: str) -> set[str]:
        return {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}

    def check(text: str) -> list[str]:
        done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 3), done.stderr
        return [*done.stdout.splitlines(), *done.stderr.splitlines()]

    everything, own = collector.get("/metrics"), collector.get("/metrics/self")
    ours = ("cortex_api_", "cortex_client_", "cortex_collector_")
    complaints = check(everything)
    # It does look: the names of others have no help.
    assert any(line.startswith("requests ") for line in complaints)
    assert [line for line in complaints if line.startswith(ours)] == []
    assert {line.split(":")[0] for line in OWN.splitlines() if line.startswith("cortex_")} <= names(everything)
    assert check(own) == []
    of_collector = {name for name in names(everything) if name.startswith("cortex_collector_")}
    figures = {"cpu_seconds_total", "open_fds", "resident_memory_bytes", "start_time_seconds", "virtual_memory_bytes"}
    assert names(own) == of_collector | {f"process_{figure}" for figure in figures}
    assert 'cortex_collector_dropped_total{reason="negative_counter"} 1' in own.splitlines()


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
