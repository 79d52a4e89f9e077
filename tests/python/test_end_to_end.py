"""The whole way, with the real programs: from a call in a predictor to the table of `cortex get`."""

from __future__ import annotations

import http.client
import json
import re
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from cortex_metrics import MetricsClient
from support import CONFIG, PREDICTOR, Collector, Process, Script, post, until

Serve = Callable[..., Process]


def request(address: str, times: int) -> None:
    """Sends so many requests over one connection."""
    host = address.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(host, timeout=30)
    for _ in range(times):
        connection.request("POST", "/predict", b"{}", {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        assert response.status == 200
    connection.close()


def served(serve: Serve, collector: Collector, *more: str) -> str:
    arguments = ("--api-name", "text-generator", "--config", CONFIG, "--collector-url", collector.url, *more)
    return serve(PREDICTOR, *arguments).line(r"serving \S+ at (http://\S+)")


def test_the_three_metrics_of_the_readme_are_in_metrics_and_in_queries(serve: Serve, collector: Collector) -> None:
    address = served(serve, collector)
    assert post(address, b"{}")[0] == 200
    labels = 'api_name="text-generator",model="v1"'
    wanted = [f"my_counter{{{labels}}} 1", f"my_gauge{{{labels}}} 42", f"my_histogram_count{{{labels}}} 1"]
    until(lambda: all(line in collector.get("/metrics") for line in wanted))
    key = "api_name=text-generator,model=v1"
    assert collector.query("my_counter") == {key: 1}
    assert collector.query("my_gauge") == {key: 42}
    assert collector.query("histogram_sum(my_histogram)") == {key: 100}
    assert collector.query("histogram_quantile(0.5, my_histogram)")[key] == pytest.approx(100, rel=0.022)
    assert collector.query("my_histogram_count") == {key: 1}


@pytest.mark.parametrize("count", [1, 7, 1223])
def test_get_says_exactly_how_many_requests_there_were_also_after_restarts(
    serve: Serve, collector: Collector, count: int
) -> None:
    address = served(serve, collector)
    request(address, count)

    def told(running: Collector) -> dict[str, int]:
        return dict(running.rows().get("text-generator", {}).get("responses", {}))

    until(lambda: told(collector) == {"200": count})
    assert collector.stop() == 0
    again = collector.again()
    assert told(again) == {"200": count}, "what was stored is there at once"
    until(lambda: again.rows()["text-generator"]["status"] == "live")
    time.sleep(1.5)  # one tick: what a kill may not take is what was committed
    again.stop(signal.SIGKILL)
    third = again.again()
    assert told(third) == {"200": count}
    request(address, 5)
    until(lambda: told(third) == {"200": count + 5})
    third.stop()


def test_the_average_is_that_of_the_servers_own_log(serve: Serve, collector: Collector, tmp_path: Path) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import time\nclass PythonPredictor:\n    def predict(self, payload):\n        time.sleep(payload)\n        return 'ok'\n"
    )
    process = serve(slow, "--api-name", "slow", "--collector-url", collector.url, "--access-log")
    address = process.line(r"serving \S+ at (http://\S+)")
    for step in range(30):
        assert post(address, json.dumps(0.01 + 0.002 * step).encode())[0] == 200
    until(lambda: collector.rows().get("slow", {}).get("responses") == {"200": 30})
    durations = [float(text) for text in re.findall(r"duration=([\d.]+)", process.text())]
    assert len(durations) == 30
    assert collector.rows()["slow"]["avg_request_seconds"] == pytest.approx(sum(durations) / 30, rel=0.02)


def test_get_shows_the_api_its_endpoint_its_account_and_its_metrics(serve: Serve, collector: Collector) -> None:
    address = served(serve, collector, "--replicas-requested", "1")
    assert post(address, b"{}")[0] == 200
    assert post(address, b"{")[0] == 400
    until(lambda: collector.rows().get("text-generator", {}).get("responses") == {"200": 1, "400": 1})
    row = collector.rows()["text-generator"]
    assert (row["status"], row["up_to_date"], row["requested"], row["stale"]) == ("live", 1, 1, 0)
    table = collector.cortex("get").stdout.splitlines()
    assert table[0].split() == [
        "env",
        "api",
        "status",
        "up-to-date",
        "requested",
        "last",
        "update",
        "avg",
        "request",
        "2XX",
        "4XX",
    ]
    assert table[1].split()[:5] == ["local", "text-generator", "live", "1", "1"]
    assert table[1].split()[-2:] == ["1", "1"]
    until(lambda: "my_histogram" in collector.cortex("get", "text-generator").stdout)
    one = collector.cortex("get", "text-generator").stdout
    assert one.startswith("status   up-to-date")
    assert f"metrics dashboard: http://{collector.web}/#/api/text-generator" in one
    assert f"endpoint: {address}" in one
    assert re.search(r"account of loss: [1-9]\d* calls reported, 0 dropped by the client", one)
    assert re.search(r"my_counter +model=v1 +1\n", one)
    assert re.search(r"my_gauge +model=v1 +42\n", one)
    assert re.search(r"my_histogram +model=v1 +count 1, mean 100\n", one)
    missing = collector.cortex("get", "text-generater")
    assert missing.returncode == 1
    assert 'API "text-generater" not found in env local; did you mean "text-generator"?' in missing.stderr
    assert [row["api"] for row in collector.status("apis")] == ["text-generator"]
    assert "app.js" in collector.get("/")


@pytest.mark.parametrize("sender", ["cortex_metrics", "datadog"])
def test_the_official_datadog_client_gives_the_same_numbers(collector: Collector, sender: str) -> None:
    if sender == "datadog":
        from datadog.dogstatsd.base import DogStatsd

        host, port = collector.udp.split(":")
        client = DogStatsd(host=host, port=int(port))
        for value in range(1, 101):
            client.increment("jobs", 2, tags=["model:v1"])
            client.gauge("depth", value, tags=["model:v1"])
            client.histogram("size", value, tags=["model:v1"])
        client.gauge("cold", -4)
        client.flush()
        client.close_socket()
    else:
        with MetricsClient(collector.url) as ours:
            for value in range(1, 101):
                ours.increment("jobs", 2, {"model": "v1"})
                ours.gauge("depth", value, {"model": "v1"})
                ours.histogram("size", value, {"model": "v1"})
            ours.gauge("cold", -4)
    until(lambda: collector.query("jobs") == {"model=v1": 200})
    assert collector.query("depth") == {"model=v1": 100}
    assert collector.query("cold") == {"": -4}
    assert collector.query("histogram_count(size)") == {"model=v1": 100}
    assert collector.query("histogram_sum(size)")["model=v1"] == pytest.approx(5050, rel=1e-12)
    assert collector.query("histogram_quantile(0.9, size)")["model=v1"] == pytest.approx(90, rel=0.022)


def test_of_two_workers_that_set_one_gauge_the_newer_set_wins(collector: Collector) -> None:
    script = """
from cortex_metrics import MetricsClient
client = MetricsClient({url!r}, flush_interval=3600)
def set_gauge(line):
    name, value = line.split()
    client.gauge(name, float(value))
    client.flush()
    return client.stats()["payloads_sent"]
answer(set_gauge)
"""
    first, second = (Script(script.format(url=collector.url)) for _ in range(2))
    for worker, value in ((first, 1), (second, 2), (first, 3), (first, 4), (second, 5)):
        worker.ask(f"version {value}")
        until(lambda: collector.query("version") == {"": value})  # noqa: B023
    # What the older one says of other things does not bring its value back, nor does its end take the newer one's.
    first.ask("other 7")
    until(lambda: collector.query("other") == {"": 7})
    assert collector.query("version") == {"": 5}
    clients = {client["payloads"] for client in collector.status("clients")}
    assert clients == {4, 2}
    first.end()
    second.ask("more 8")
    until(lambda: collector.query("more") == {"": 8})
    assert collector.query("version") == {"": 5}
    second.end()


def test_everything_that_the_kernel_had_accepted_is_stored_on_sigterm(collector: Collector) -> None:
    client = MetricsClient(collector.url, flush_interval=60)
    for round_ in range(50):
        for context in range(20):
            client.increment("burst", 1, {"context": context})
        client.flush()
        del round_
    collector.stop()
    sent = client.stats()["sent"]
    assert sent == 1000
    again = collector.again()
    assert collector.query("sum(burst)") == {"": 1000}
    again.stop()
    client.close()


def test_a_sigterm_right_after_the_start_loses_nothing_that_was_accepted(collector: Collector) -> None:
    # The handlers used to come after the socket: a signal in between killed the collector with what it had accepted.
    collector.stop()
    times = 10
    for _ in range(times):
        again = collector.again()
        with MetricsClient(again.url, flush_interval=60) as client:
            client.increment("early")
        assert again.stop() == 0
    last = collector.again()
    assert last.query("early") == {"": times}
    last.stop()


def test_what_the_client_held_while_the_collector_was_away_arrives(collector: Collector) -> None:
    client = MetricsClient(collector.url, flush_interval=0.1)
    client.increment("held")
    until(lambda: collector.query("held") == {"": 1})
    collector.stop()
    for _ in range(10):
        client.increment("held")
        client.gauge("level", 3)
        time.sleep(0.05)
    again = collector.again()
    until(lambda: again.query("held") == {"": 11})
    until(lambda: again.query("level") == {"": 3})
    until(lambda: again.query("cortex_collector_payloads_missing_total") == {"": 0})
    again.stop()
    client.close()


def test_a_second_collector_is_told_what_is_taken(collector: Collector, tmp_path: Path) -> None:
    from support import BIN

    def ends(*arguments: str) -> str:
        process = Process(tmp_path / "second.log", BIN / "cortex-collector", *arguments)
        assert process.process.wait(15) == 1
        return process.text()

    other = str(tmp_path / "other")
    free = ("--listen-udp", "127.0.0.1:0", "--listen-http", "127.0.0.1:0")
    assert "cannot listen" in ends("--listen-udp", collector.udp, "--listen-http", "127.0.0.1:0", "--data-dir", other)
    assert "cannot listen" in ends("--listen-udp", "127.0.0.1:0", "--listen-http", collector.web, "--data-dir", other)
    assert "another collector uses it" in ends(*free, "--data-dir", str(tmp_path / "data"))
    assert "cannot write" in ends(*free, "--data-dir", "/proc/nowhere")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="there is no /proc here")
def test_a_quiet_collector_sleeps(collector_with: Callable[..., Collector]) -> None:
    collector = collector_with("--ingest-threads", "2")
    until(lambda: collector.query("cortex_collector_datagrams_total") == {"": 0})

    def switches() -> int:
        """How often its threads have gone to sleep."""
        statuses = [path.read_text() for path in Path(f"/proc/{collector.process.pid}/task").glob("*/status")]
        return sum(int(re.findall(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.M)[0]) for status in statuses)

    def ticks() -> int:
        """Ticks of the processor, a hundred a second, that it had: one that waits without sleeping takes all of them."""
        fields = Path(f"/proc/{collector.process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = switches(), ticks()
    time.sleep(4)
    # Each of the two looks four times a second whether it shall stop; a tick a second takes the rest.
    assert switches() - before[0] < 200
    assert ticks() - before[1] < 40


def test_hostile_datagrams_cost_themselves_only(collector: Collector) -> None:
    import socket

    host, port = collector.udp.split(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for payload in (
            b"\x00" * 9000,
            b"::::|||",
            b"a:1|c|#" + b"x:y," * 9000,
            b"a:1|g\nb:2|c",
            b"<script>:1|c|#<b>:<i>\n",
        ):
            sender.sendto(payload, (host, int(port)))
    until(lambda: collector.query("b") == {"": 2})
    status = json.loads(collector.get("/api/v1/status/ingest"))["data"]
    assert status["datagrams"] == 5
    assert sum(reason["count"] for reason in status["dropped"].values()) >= 3
    assert collector.get("/healthz") == "ok\n"
    assert "_script_" in collector.get("/metrics")


def test_errors_of_the_query_api_are_prometheus_errors(collector: Collector) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        collector.get("/api/v1/query?query=sum(")
    with caught.value as error:
        assert error.code == 400
        answer = json.loads(error.read())
    assert (answer["status"], answer["errorType"]) == ("error", "bad_data")
