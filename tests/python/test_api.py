"""The HTTP API beside the real Prometheus: the same samples, the same requests, the same answers; and remote write."""

from __future__ import annotations

import gzip
import itertools
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cortex_metrics import MetricsClient
from promql_judge import (
    LENGTH_MS,
    STALE,
    START_MS,
    OverHttp,
    Prometheus,
    difference,
    encoded_series,
    field,
    questions,
    remote_write,
    samples,
    snappy,
)
from support import BIN, Collector, Process, free_port, of_debian, until
from test_promql import KNOWN

CENTURY = ("--enable-remote-write-receiver", "--retention", "100y")
NOW = START_MS / 1000 + 1200


def request(
    web: str, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers by their names in small letters, and body, whatever the status."""
    asked = urllib.request.Request(f"http://{web}{path}", body, headers, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[Collector, Prometheus]]:
    """A collector and a Prometheus with the same samples."""
    theirs = Prometheus(of_debian("prometheus") / "prometheus", tmp_path / "prometheus")
    ours = Collector(tmp_path, "127.0.0.1:0", "127.0.0.1:0", *CENTURY)
    try:
        series = samples(3)
        remote_write(theirs.url, series)
        remote_write(f"http://{ours.web}", series)
        yield ours, theirs
    finally:
        ours.stop()
        theirs.stop()


def judge(both: tuple[Collector, Prometheus], seed: int, count: int) -> None:
    ours, theirs = OverHttp(f"http://{both[0].web}"), OverHttp(both[1].url)
    wrong = []
    for question in itertools.islice(questions(seed), count):
        found = difference(ours.ask(question), theirs.ask(question))
        if found and not any(known.search(question["query"]) for known in KNOWN):
            wrong.append(f"{json.dumps(question)}\n    {found}")
    assert not wrong, f"{len(wrong)} of {count} differ:\n" + "\n".join(wrong[:20])


def test_what_was_written_to_both_is_answered_alike(both: tuple[Collector, Prometheus]) -> None:
    judge(both, 3, 200)


@pytest.mark.torture
def test_what_was_written_to_both_is_answered_alike_thousands_of_times(both: tuple[Collector, Prometheus]) -> None:
    judge(both, 4, 5_000)


def form(**parameters: Any) -> str:
    return urllib.parse.urlencode(parameters, doseq=True)


def selector(*selectors: str, **parameters: Any) -> str:
    return form(**{"match[]": list(selectors), **parameters})


OURS_TOO = "requests_total|limit|rpc_seconds|temperature"
#: No selectors: ours says so in words of its own.
NO_SELECTORS = [selector("1"), selector("limit[5m]"), selector("sum(")]
#: Path and parameters.
REQUESTS: list[tuple[str, str]] = [
    # Instant queries.
    ("query", form(query="requests_total", time=NOW)),
    ("query", form(query="rpc_seconds", time=NOW)),
    ("query", form(query="requests_total[1m]", time=NOW)),
    ("query", form(query="rpc_seconds[1m]", time=NOW)),
    ("query", form(query="both[5m]", time=NOW)),
    ("query", form(query="1+1", time=4)),
    ("query", form(query="1e-7", time="1970-01-01T00:00:04.250Z")),
    ("query", form(query="'text'", time=4)),
    ("query", form(query="requests_total", time=NOW, limit=1)),
    ("query", form(query="nothing", time=NOW)),
    ("query", form(query="rate(limit[5m])", time=NOW)),
    ("query", form(query="quantile(2, limit)", time=NOW)),
    ("query", form(query="histogram_quantile(0.9, latency_bucket)", time=NOW, stats="")),
    ("query", form(query="limit", time=NOW, timeout="10s")),
    ("query", form(query="limit", time=NOW, lookback_delta="x")),
    ("query", form(query="limit", time=NOW, lookback_delta="1ms")),
    ("query", form(query="limit", time=NOW + 1800, lookback_delta="1h")),
    ("query", form(query="limit", time=NOW + 1800, lookback_delta="0")),
    ("query_range", form(query="limit", start=NOW, end=NOW + 1800, step=300, lookback_delta="20m")),
    ("query", form(query="")),
    ("query", ""),
    ("query", form(query="up +")),
    ("query", form(query="sum(")),
    ("query", form(query="{}")),
    ("query", form(query="no_function(up)")),
    ("query", form(query="limit", time="soon")),
    ("query", form(query="limit", limit=-1)),
    ("query", form(query="limit", limit="x")),
    ("query", form(query="limit", limit="99999999999999999999")),
    ("query", form(query="limit", timeout="soon")),
    ("query", form(query="limit * on (job) limit", time=NOW)),
    ("query", form(query="label_replace(limit, 'instance', '', '', '')", time=NOW)),
    # Ranges.
    ("query_range", form(query="limit", start=NOW, end=NOW + 60, step=15)),
    ("query_range", form(query="rpc_seconds", start=NOW, end=NOW + 60, step="15s")),
    ("query_range", form(query="limit", start="2023-11-14T22:30:00Z", end="2023-11-14T22:31:00.5+00:00", step="1m")),
    ("query_range", form(query="limit", start=NOW, end=NOW + 60, step=15, limit=2)),
    ("query_range", form(query="time()", start=0, end=1, step=0.5)),
    ("query_range", form(query="limit", start=NOW, end=NOW - 1, step=15)),
    ("query_range", form(query="limit", start=NOW, end=NOW + 60, step=0)),
    ("query_range", form(query="limit", start=NOW, end=NOW + 60, step=-1)),
    ("query_range", form(query="limit", start=NOW, end=NOW + 60)),
    ("query_range", form(query="limit", start=NOW, step=1)),
    ("query_range", form(query="limit", start="x", end=NOW, step=1)),
    ("query_range", form(query="limit", start=0, end=11001, step=1)),
    ("query_range", form(query="limit[1m]", start=NOW, end=NOW + 60, step=15)),
    ("query_range", form(query="'text'", start=NOW, end=NOW + 60, step=15)),
    # Browsing.
    ("series", selector("limit", start=NOW, end=NOW + 1)),
    ("series", selector("limit", "requests_total{job='api'}", "limit", start=NOW)),
    ("series", selector("limit", limit=1)),
    ("series", selector("{__name__=~'li.*',instance!='a:1'}")),
    ("series", selector("nothing")),
    ("series", ""),
    ("series", selector("{}")),
    ("series", selector("limit", "{job=~'.*'}")),
    ("series", selector("1")),
    ("series", selector("limit[5m]")),
    ("series", selector("limit{")),
    ("series", selector("limit", start="x")),
    ("labels", selector(f"{{__name__=~'{OURS_TOO}'}}")),
    ("labels", selector("limit", "temperature")),
    ("labels", selector("limit", limit=1)),
    ("labels", selector("nothing")),
    ("labels", selector("limit", start="-292273086-05-16T16:47:06Z", end="292277025-08-18T07:12:54.999999999Z")),
    ("labels", selector("{}")),
    ("labels", selector("sum(")),
    ("labels", selector("limit", end="x")),
    ("label/job/values", ""),
    ("label/instance/values", selector("limit")),
    ("label/__name__/values", selector(f"{{__name__=~'{OURS_TOO}'}}")),
    ("label/__name__/values", selector(f"{{__name__=~'{OURS_TOO}'}}", limit=2)),
    ("label/U__job/values", ""),
    ("label/U__j_6f_b/values", ""),
    ("label/no%20such/values", ""),
    ("label/job/values", selector("1")),
    ("label/job/values", form(limit="x")),
    # What Grafana asks besides.
    ("query_exemplars", form(query="limit", start=NOW, end=NOW + 1)),
    ("query_exemplars", form(query="limit +")),
    ("query_exemplars", form(query="limit", start=2, end=1)),
    ("metadata", form(limit="x")),
    ("metadata", form(limit_per_metric="x")),
    ("metadata", form(metric="no_such_metric", limit=1)),
    ("rules", ""),
    ("alerts", ""),
    ("alertmanagers", ""),
    ("targets", ""),
]
POSTED = ("query", "query_range", "series", "labels", "query_exemplars")


def test_requests_are_answered_alike(both: tuple[Collector, Prometheus]) -> None:
    ours, theirs = both[0].web, both[1].url.removeprefix("http://")
    wrong = []
    for path, parameters in REQUESTS:
        ways: list[tuple[str, bytes | None, str, dict[str, str]]] = [("GET", None, f"?{parameters}", {})]
        if path in POSTED:
            content = {"Content-Type": "application/x-www-form-urlencoded"}
            ways.append(("POST", parameters.encode(), "", content))
        for method, body, query, headers in ways:
            answers = [request(web, method, f"/api/v1/{path}{query}", body, **headers) for web in (ours, theirs)]
            (status, head, text), (want_status, want_head, want_text) = answers
            mine, wanted = json.loads(text), json.loads(want_text)
            if parameters in NO_SELECTORS:
                assert mine.pop("error")
                assert wanted.pop("error")
            if mine.get("data") and wanted.get("data") and path in ("query", "query_range"):
                differ = difference(mine, wanted)
            else:
                # Nobody promises an order of series.
                for one in (mine, wanted) if path == "series" and "limit" not in parameters.split("&")[-1] else ():
                    one["data"] = one.get("data") and sorted(one["data"], key=lambda labels: sorted(labels.items()))
                differ = None if mine == wanted else f"ours {mine}, theirs {wanted}"
            same = (
                status == want_status
                and head["content-type"] == want_head["content-type"]
                and list(mine) == list(wanted)
            )
            if differ or not same:
                wrong.append(
                    f"{method} {path}?{urllib.parse.unquote_plus(parameters)}\n    {status} {want_status} {differ}"
                )
    assert not wrong, f"{len(wrong)} differ:\n" + "\n".join(wrong)


def test_answers_are_compressed_for_who_asks(both: tuple[Collector, Prometheus]) -> None:
    path = f"/api/v1/query_range?{form(query='requests_total', start=NOW, end=NOW + 600, step=5)}"
    for web in (both[0].web, both[1].url.removeprefix("http://")):
        plain = request(web, "GET", path)
        packed = request(web, "GET", path, None, **{"Accept-Encoding": "gzip"})
        assert packed[1]["content-encoding"] == "gzip"
        assert gzip.decompress(packed[2]) == plain[2]
        assert len(packed[2]) < len(plain[2]) / 4
        assert "access-control-allow-origin" not in packed[1]


def test_metadata_says_what_a_name_is(collector: Collector) -> None:
    with MetricsClient(collector.url) as client:
        client.increment("visits")
        client.gauge("level", 1)
        client.histogram("size", 1)
    until(lambda: collector.query("visits"))
    data = json.loads(collector.get("/api/v1/metadata"))["data"]
    kinds = {name: data[name] for name in ("visits", "level", "size")}
    assert kinds == {
        name: [{"type": kind, "help": "", "unit": ""}]
        for name, kind in {"visits": "counter", "level": "gauge", "size": "histogram"}.items()
    }
    assert data["cortex_collector_datagrams_total"][0]["help"] == "Datagrams received."
    assert list(json.loads(collector.get("/api/v1/metadata?metric=level"))["data"]) == ["level"]
    assert len(json.loads(collector.get("/api/v1/metadata?limit=2"))["data"]) == 2


def test_bounds_of_queries_are_flags(collector_with: Callable[..., Collector]) -> None:
    collector = collector_with("--query-max-samples", "1000", "--query-max-concurrency", "1")
    path = "/api/v1/query?" + form(query="sum_over_time(vector(1)[1h:1s])")
    status, _, body = request(collector.web, "GET", path)
    assert (status, json.loads(body)) == (
        422,
        {
            "status": "error",
            "errorType": "execution",
            "error": "query processing would load too many samples into memory in query execution",
        },
    )
    status, _, body = request(collector.web, "GET", "/api/v1/query?query=up&timeout=0.000001")
    assert (status, json.loads(body)["errorType"]) == (503, "timeout")


def test_pages_of_one_origin_may_ask_if_it_is_named(collector_with: Callable[..., Collector]) -> None:
    collector = collector_with("--cors-origin", "https://grafana.example")
    asking = {"Origin": "https://grafana.example"}
    path = "/api/v1/query?query=1"
    assert request(collector.web, "GET", path, None, **asking)[1]["access-control-allow-origin"] == asking["Origin"]
    other = request(collector.web, "GET", path, None, Origin="https://other.example")
    assert other[1].get("access-control-allow-origin") in (None, "https://grafana.example")
    before = {**asking, "Access-Control-Request-Method": "POST"}
    status, headers, _ = request(collector.web, "OPTIONS", path, None, **before)
    assert (status, "POST" in headers["access-control-allow-methods"]) == (200, True)
    assert "access-control-allow-origin" not in request(collector.web, "GET", "/metrics", None, **asking)[1]


# Remote write ------------------------------------------------------------------------------------------------------

WRITE = {"Content-Encoding": "snappy", "Content-Type": "application/x-protobuf"}


def write(web: str, *series: dict[str, Any], **headers: str) -> tuple[int, str]:
    body = snappy(b"".join(field(1, encoded_series(one)) for one in series))
    status, _, text = request(web, "POST", "/api/v1/write", body, **{**WRITE, **headers})
    return status, text.decode()


def one(name: str, *points: tuple[float, Any], **labels: str) -> dict[str, Any]:
    return {"labels": {"__name__": name, **labels}, "samples": [(int(at * 1000), value) for at, value in points]}


def test_without_the_flag_there_is_no_receiver(collector: Collector) -> None:
    status, text = write(collector.web, one("x", (time.time(), "1")))
    assert (status, text) == (
        404,
        "remote write receiver needs to be enabled with --enable-remote-write-receiver\n",
    )


def test_samples_are_refused_as_prometheus_refuses_them(both: tuple[Collector, Prometheus]) -> None:
    ours, theirs = both[0].web, both[1].url.removeprefix("http://")
    at = START_MS / 1000 + LENGTH_MS / 1000
    cases = [
        ("taken", one("x", (at, "1")), 204, ""),
        ("the same again", one("x", (at, "1")), 204, ""),
        ("another value", one("x", (at, "2")), 400, "duplicate sample for timestamp"),
        ("earlier", one("x", (at - 1, "1")), 400, "out of order sample"),
        ("in ten minutes and more", one("x", (time.time() + 700, "1")), 400, "out of bounds"),
        ("an end", one("x", (at + 1, STALE)), 204, ""),
    ]
    for what, series, status, words in cases:
        for web in (ours, theirs):
            got, text = write(web, series)
            assert (got, words in text) == (status, True), (what, web, got, text)
    for headers in [
        {"Content-Type": "application/x-protobuf;proto=io.prometheus.write.v2.Request2"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-protobuf;proto"},
    ]:
        statuses = {write(web, one("x", (at + 2, "1")), **headers)[0] for web in (ours, theirs)}
        assert statuses == {415}, headers
    # Prometheus takes 2.0 too.
    second = {"Content-Type": "application/x-protobuf;proto=io.prometheus.write.v2.Request"}
    status, text = write(ours, one("x", (at + 2, "1")), **second)
    assert (status, "not accepted by this server; accepted prometheus.WriteRequest" in text) == (415, True)
    for body in (b"", b"nonsense", snappy(b"\x0a\x7f")):
        assert {request(web, "POST", "/api/v1/write", body, **WRITE)[0] for web in (ours, theirs)} == {400}, body
    bomb = b"\xff\xff\xff\x7f" + b"\x00" * 10
    status, _, body = request(ours, "POST", "/api/v1/write", bomb, **WRITE)
    assert (status, b"want at most 33554432" in body) == (400, True)


def test_of_a_body_what_can_be_kept_is_stored_and_the_rest_is_counted(collector_with: Callable[..., Collector]) -> None:
    collector = collector_with("--enable-remote-write-receiver")
    now = time.time()
    custom = {"schema": -53, "zero_count": 0, "count": 0, "sum": 0, "positive": [0, []], "negative": [0, []]}
    status, text = write(
        collector.web,
        one("good", (now - 20, "1"), (now - 10, "2")),
        one("custom", (now, custom)),
        one("", (now, "1")),
        one("old", (now - 15 * 86_400, "1")),
        one("good", (now - 15, "1.5"), (now - 5, "3")),
    )
    assert status == 400
    assert "custom buckets (schema -53) are not supported" in text
    assert "(4 samples refused, 3 stored)" in text
    assert collector.query("good") == {"": 3}
    assert collector.query("count_over_time(good[1m])") == {"": 3}
    refused = {"reason=invalid_histogram": 1, "reason=invalid_labels": 1, "reason=out_of_bounds": 1, "reason=order": 1}
    until(lambda: collector.query("cortex_collector_remote_write_refused_total") == refused)
    assert collector.query("cortex_collector_remote_write_samples_total") == {"": 3}
    # What was written is there after a restart, and ticks go on beside it.
    collector.stop()
    again = collector.again()
    try:
        assert again.query("good") == {"": 3}
        assert write(again.web, one("good", (time.time(), "4")))[0] == 204
        with MetricsClient(again.url) as client:
            client.increment("visits", 7)
        until(lambda: again.query("visits") == {"": 7})
        assert again.query("good") == {"": 4}
    finally:
        again.stop()


class Forwarding(Process):
    """A Prometheus that scrapes a collector each second and writes what it has to another."""

    def __init__(self, folder: Path, scraped: str, written: str) -> None:
        folder.mkdir()
        config = {
            "global": {"scrape_interval": "1s"},
            "scrape_configs": [{"job_name": "cortex", "static_configs": [{"targets": [scraped]}]}],
            "remote_write": [
                {
                    "url": f"http://{written}/api/v1/write",
                    "send_native_histograms": True,
                    "queue_config": {"batch_send_deadline": "200ms", "min_backoff": "30ms"},
                }
            ],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))
        (folder / "log").write_bytes(b"")
        self.web = f"127.0.0.1:{free_port()}"
        super().__init__(
            folder / "log",
            of_debian("prometheus") / "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address={self.web}",
            "--enable-feature=native-histograms",
        )
        self.line(r"(Server is ready)")


def test_what_a_prometheus_scrapes_and_writes_on_is_answered_equally_by_both(
    tmp_path: Path, collector: Collector
) -> None:
    (tmp_path / "second").mkdir()
    second = Collector(tmp_path / "second", "127.0.0.1:0", "127.0.0.1:0", "--enable-remote-write-receiver")
    prometheus = Forwarding(tmp_path / "prometheus", collector.web, second.web)
    ours, theirs = OverHttp(f"http://{second.web}"), OverHttp(f"http://{prometheus.web}")
    try:
        until(lambda: theirs.ask({"query": "up == 1", "time": time.time() * 1000})["data"]["result"], 30)
        with MetricsClient(collector.url, tags={"zone": "a"}, flush_interval=0.1) as client:
            for step in range(6):
                client.increment("requests", 3, {"model": f"v{step % 2}"})
                client.gauge("temperature", -21.5 + step)
                for n in range(40):
                    client.histogram("latency_seconds", 0.001 * 1.3**n)
                client.histogram("mixed", -2.5)
                client.histogram("mixed", 0)
                time.sleep(0.7)  # some scrapes apart
        until(lambda: theirs.ask({"query": "sum(requests) == 18", "time": time.time() * 1000})["data"]["result"], 30)
        now_ms = int(time.time() * 1000)
        names = ["requests", "temperature", "latency_seconds", "mixed", "up", "scrape_samples_scraped"]
        # What was scraped until now has arrived when the last sample of it has.
        last = {"query": f"timestamp(up @ {now_ms / 1000})", "time": now_ms}

        def arrived() -> bool:
            mine, wanted = (side.ask(last)["data"]["result"] for side in (ours, theirs))
            return bool(mine and wanted and mine[0]["value"] == wanted[0]["value"])

        until(arrived, 20)
        expressions = [f"{name}[1m]" for name in names] + [
            "rate(requests[20s])",
            "sum by (model) (increase(requests[1m]))",
            "histogram_quantile(0.9, rate(latency_seconds[20s]))",
            "histogram_count(mixed)",
            "histogram_fraction(-3, 0, mixed)",
            "sum(latency_seconds)",
        ]
        for expression in expressions:
            question = {"query": expression, "time": now_ms}
            answer = theirs.ask(question)
            assert answer["data"]["result"], expression
            assert difference(ours.ask(question), answer) is None, expression
        # The collector is stopped: the end of its series arrives too.
        collector.stop()
        gone = {"query": "requests", "time": 0}

        def is_gone() -> bool:
            gone["time"] = int(time.time() * 1000)
            return not theirs.ask(gone)["data"]["result"] and not ours.ask(gone)["data"]["result"]

        until(is_gone, 20)
        status = json.loads(request(second.web, "GET", "/api/v1/query?query=requests[1m]")[2])
        assert status["data"]["result"], "what was before the end is still there"
        refused = second.query("cortex_collector_remote_write_refused_total")
        assert sum(refused.values()) == 0, (refused, prometheus.text())
    finally:
        prometheus.stop()
        second.stop()


# The command line --------------------------------------------------------------------------------------------------


def test_cortex_query_prints_a_table_csv_and_json(collector: Collector) -> None:
    with MetricsClient(collector.url) as client:
        client.increment("visits", 7, {"page": 'a"b'})
        client.histogram("size", 2)
    until(lambda: collector.query("visits"))
    table = collector.cortex("query", "visits")
    assert (table.returncode, table.stderr) == (0, "")
    header, row = table.stdout.splitlines()
    assert header.split() == ["__name__", "page", "value"]
    assert row.split() == ["visits", 'a"b', "7"]
    csv = collector.cortex("query", "visits * 2", "-o", "csv")
    assert csv.stdout == 'page,value\n"a""b",14\n'
    answer = json.loads(collector.cortex("query", "visits", "-o", "json", "--env", "local").stdout)
    assert answer["data"]["resultType"] == "vector"
    histogram = collector.cortex("query", "size", "-o", "csv").stdout.splitlines()
    assert histogram == ["__name__,count,sum", "size,1,2"]
    ranged = collector.cortex("query", "visits", "--start", "-5s", "--step", "1s", "-o", "csv").stdout.splitlines()
    assert ranged[0] == "__name__,page,time,value"
    assert all(line.startswith('visits,"a""b",20') and line.endswith(("Z,7", "Z,0")) for line in ranged[1:])
    assert len(ranged) > 1
    noted = collector.cortex("query", "rate(visits[1m])")
    assert noted.stderr.startswith("cortex: info: PromQL info: metric might not be a counter")
    none = collector.cortex("query", "nothing")
    assert (none.returncode, none.stdout, none.stderr) == (
        0,
        "",
        "cortex: no series matches, or none has a sample then\n",
    )
    wrong = collector.cortex("query", "sum(")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith('cortex: env local: bad_data: invalid parameter "query": 1:5: parse error')
    assert collector.cortex("query", "visits", "--step", "1s").returncode == 2
    assert collector.cortex("query", "visits", "--start", "yesterday").returncode == 2
    assert collector.cortex("query", "visits", "--start", "-1s", "--end", "-1h").returncode == 1
    assert collector.cortex("query", "visits", "--env", "nowhere").returncode == 1
    collector.stop()
    gone = collector.cortex("query", "visits")
    assert gone.returncode == 1
    assert "env local" in gone.stderr


def test_a_backup_of_a_busy_collector_is_a_store(tmp_path: Path, collector: Collector) -> None:
    with MetricsClient(collector.url, flush_interval=0.05) as client:
        client.increment("before", 5)
        until(lambda: collector.query("before") == {"": 5})
        sent = 0
        for n in range(3):
            copy = tmp_path / f"copy{n}" / "data"
            command = (BIN / "cortex-collector", "backup", copy, "--data-dir", tmp_path / "data")
            backup = Process(tmp_path / "backup.log", *command)
            while backup.process.poll() is None:
                sent += 100
                client.increment("during", 100)
                for series in range(100):
                    client.increment("series", tags={"n": sent + series})
                time.sleep(0.001)
            assert backup.process.returncode == 0, backup.text()
            second = Collector(copy.parent)
            try:
                assert second.query("before") == {"": 5}
                assert sum(second.query("during").values()) <= sent
                assert second.query("resets(before[1h])") == {"": 0}
                assert "damaged" not in second.text()
            finally:
                second.stop()
    lines = backup.text().splitlines()
    assert lines[0].startswith(str(tmp_path / "data" / "head.db")), lines
    assert lines[-1].startswith(str(copy)), lines
    again = Process(tmp_path / "again.log", *command)
    assert again.process.wait(15) == 1
    assert "cortex-collector: cannot copy" in again.text()
    assert "not empty" in again.text()
    nothing = (BIN / "cortex-collector", "backup", tmp_path / "other", "--data-dir", tmp_path / "nowhere")
    missing = Process(tmp_path / "missing.log", *nothing)
    assert missing.process.wait(15) == 1
    assert str(tmp_path / "nowhere" / "head.db") in missing.text()
    assert not (tmp_path / "other").exists()
