"""What is in grafana/: dashboards whose every expression a collector and a real Prometheus answer with the truth, rules, and
what Grafana, Prometheus and Docker read."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import statistics
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cortex_metrics import MetricsClient
from promql_judge import Prometheus as Receiver
from promql_judge import Sample, Series, floats, histogram, remote_write
from support import ROOT, Collector, Process, free_port, of_debian, until

GRAFANA = ROOT / "grafana"
SCHEMA = ROOT / "tests" / "grafana-schema"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}
REALTIME, CUSTOM = DASHBOARDS["realtime-api"], DASHBOARDS["custom-metrics"]
#: Names of which one is the other's regular expression, unless that is escaped.
DOT, DASH = "shop.v2", "shop-v2"


# Grafana, as far as a question needs it ------------------------------------------------------------------------------


def escaped(value: str) -> str:
    """A value of a variable with several, as Grafana's Prometheus data source puts it into a regular expression."""
    return re.sub(r"[$^*{}\[\]+?.()|]", r"\\\\\g<0>", value.replace("\\", "\\\\\\\\"))


def replaced(text: str, variables: dict[str, str]) -> str:
    """`$name` and `${name}` by their values; what is no variable stays."""
    return re.sub(r"\$(\w+)|\$\{(\w+)\}", lambda m: variables.get(m[1] or m[2], m[0]), text)


def chosen(dashboard: dict[str, Any], **values: list[str] | str | None) -> dict[str, str]:
    """The variables as they stand in an expression: one value, several that were chosen, or `None` for All."""
    found = {}
    for variable in dashboard["templating"]["list"]:
        if variable["name"] not in values:
            continue
        value = values[variable["name"]]
        if value is None:
            found[variable["name"]] = variable["allValue"]
        elif isinstance(value, list):
            parts = [escaped(one) for one in value]
            found[variable["name"]] = parts[0] if len(parts) == 1 else f"({'|'.join(parts)})"
        else:
            found[variable["name"]] = value
    return found


def intervals(
    panel: dict[str, Any], range_s: int, points: int = 1000, scrape_s: int = 15
) -> tuple[int, dict[str, str]]:
    """The step, and the variables that go with it: as Grafana makes them of the panel's and the data source's interval."""
    least = int(panel["interval"].removesuffix("s"))
    step = max(least, math.ceil(range_s / points))
    rate = max(step + scrape_s, 4 * scrape_s)
    return step, {"__interval": f"{step}s", "__rate_interval": f"{rate}s", "__range": f"{range_s}s"}


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def ask(web: str, path: str, **parameters: Any) -> Any:
    """What the API answers; errors and warnings fail."""
    form = urllib.parse.urlencode(parameters, doseq=True).encode()
    data = None if path.startswith("label/") else form
    url = f"http://{web}/api/v1/{path}" + ("" if data else f"?{form.decode()}")
    with urllib.request.urlopen(url, data, timeout=60) as answer:
        found = json.load(answer)
    assert not found.get("warnings"), (parameters, found["warnings"])
    return found["data"]


Drawn = dict[str, dict[float, Any]]


def draw(web: str, target: dict[str, Any], variables: dict[str, str], start: float, end: float, step: int) -> Drawn:
    """What a panel draws of a query: by legend, the values by time; of native histograms count, sum and buckets."""
    expression = replaced(target["expr"], variables)
    drawn: Drawn = {}
    for series in ask(web, "query_range", query=expression, start=start, end=end, step=step)["result"]:
        labels = series["metric"]
        legend = replaced(target["legendFormat"], variables)
        for label in re.findall(r"\{\{(\w+)\}\}", legend):
            legend = legend.replace(f"{{{{{label}}}}}", labels.get(label, ""))
        assert legend not in drawn, f"two series are drawn as {legend!r}: {expression}"
        drawn[legend] = {at: float(value) for at, value in series.get("values", [])}
        drawn[legend] |= dict(series.get("histograms", []))
    return drawn


def options(web: str, dashboard: dict[str, Any], name: str, variables: dict[str, str], end: float) -> list[str]:
    """What a variable offers, as Grafana finds it."""
    variable = next(one for one in dashboard["templating"]["list"] if one["name"] == name)
    call, _, rest = replaced(variable["query"]["query"], variables).partition("(")
    argument = rest.removesuffix(")")
    assert variable["query"]["qryType"] == {"label_names": 0, "label_values": 1, "query_result": 3}[call]
    if call == "label_values":
        metric, label = argument.split(", ")
        return sorted(ask(web, f"label/{label}/values", **{"match[]": metric, "start": end - 900, "end": end}))
    if call == "label_names":
        return sorted(ask(web, "labels", start=end - 900, end=end))
    found = []
    for series in ask(web, "query", query=argument, time=end)["result"]:
        match = re.search(variable["regex"].strip("/"), ",".join(f'{k}="{v}"' for k, v in series["metric"].items()))
        assert match, series
        found.append(match[1])
    return sorted(found)


# The workloads -------------------------------------------------------------------------------------------------------


def nearest_rank(q: float, values: list[float]) -> float:
    ordered = sorted(values)
    return ordered[math.ceil(q * len(ordered)) - 1]


WIDTH = 2 ** (1 / 32) - 1  # of a bucket of schema 5: 2.2 %


#: 61 and 57 latencies: few enough for one payload, so that no scrape sees a part of them, and no quantile lies at an edge.
LOGNORMAL = [
    round(math.exp(math.log(0.08) + 0.8 * statistics.NormalDist().inv_cdf((n + 0.5) / 61)), 6) for n in range(61)
]
BIMODAL = [round(0.010 + 0.0001 * n, 6) for n in range(40)] + [round(2 + 0.05 * n, 6) for n in range(17)]
CODES = {DOT: {"200": 50, "201": 4, "404": 4, "500": 2, "503": 1}, DASH: {"200": 57, "400": 0, "500": 0}}
LATENCIES = {DOT: LOGNORMAL, DASH: BIMODAL}


class Live(threading.Thread):
    """Sends the same every second, through a real client, to a real collector, which two Prometheuses and a VictoriaMetrics
    scrape every 15 s."""

    SECONDS = 82

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        prometheus = of_debian("prometheus") / "prometheus"
        victoria = of_debian("victoria-metrics") / "victoria-metrics"
        self.ended = threading.Event()
        self.servers: dict[str, Process] = {}
        self.collector = Collector(folder)
        self.client = MetricsClient(self.collector.url, flush_interval=3600)
        self.webs = {"collector": self.collector.web}
        try:
            self.scrape(folder, prometheus, victoria)
        except BaseException:
            self.stop()
            raise
        self.start_s = time.time()
        self.start()

    def scrape(self, folder: Path, prometheus: Path, victoria: Path) -> None:
        features = "--enable-feature=native-histograms,created-timestamp-zero-ingestion"
        for name, flags in (("native", [features]), ("classic", [])):
            path = folder / name
            path.mkdir()
            config = yaml.safe_load((GRAFANA / "prometheus.yml").read_text())
            # Alerts are looked at often: once a minute, the only time may come before what the rules record.
            config["global"] |= {"scrape_interval": "15s", "evaluation_interval": "5s"}
            config["scrape_configs"][0]["static_configs"] = [{"targets": [self.collector.web]}]
            config["rule_files"] = [str(GRAFANA / "rules" / "*.yaml")]
            (path / "prometheus.yml").write_text(json.dumps(config))
            (path / "log").write_bytes(b"")
            self.webs[name] = f"127.0.0.1:{free_port()}"
            self.servers[name] = Process(
                path / "log",
                prometheus,
                f"--config.file={path / 'prometheus.yml'}",
                f"--storage.tsdb.path={path / 'tsdb'}",
                f"--web.listen-address={self.webs[name]}",
                *flags,
            )
            self.servers[name].line(r"(Server is ready)")
        self.webs["victoria"] = f"127.0.0.1:{free_port()}"
        (folder / "victoria.log").write_bytes(b"")
        scrape = {"scrape_configs": config["scrape_configs"], "global": {"scrape_interval": "15s"}}
        (folder / "victoria.yml").write_text(json.dumps(scrape))
        self.servers["victoria"] = Process(
            folder / "victoria.log",
            victoria,
            f"-promscrape.config={folder / 'victoria.yml'}",
            f"-storageDataPath={folder / 'victoria'}",
            f"-httpListenAddr={self.webs['victoria']}",
            "-search.latencyOffset=0s",
        )

    def run(self) -> None:
        sent = 0
        while not self.ended.wait(max(0.0, self.start_s + sent - time.time())):
            self.send(sent)
            sent += 1

    def send(self, number: int) -> None:
        own = self.client._system
        for api, codes in CODES.items():
            tags = {"api_name": api, "api_id": "v2"}
            for code, count in codes.items():
                own.increment("cortex_api_requests_total", count, {**tags, "response_code": code})
            for latency in LATENCIES[api]:
                own.histogram("cortex_api_request_duration_seconds", latency, tags)
        # Two versions: of the old one more replicas were requested; it started earlier, and one of it is still there.
        for api_id, started, requested, replicas in (("v1", 1000, 7, ["old"]), ("v2", 2000, 3, ["r1", "r2"])):
            tags = {"api_name": DOT, "api_id": api_id}
            own.gauge("cortex_api_replicas_requested", requested, tags)
            for replica in replicas:
                own.gauge("cortex_api_replica_start_timestamp_seconds", started, {**tags, "replica": replica})
                for process, in_flight in (("p1", 3), ("p2", 2)):
                    labels = {**tags, "replica": replica, "process": process}
                    own.gauge("cortex_api_in_flight_requests", in_flight, labels)
                    own.gauge("cortex_api_in_flight_requests_peak", in_flight + 2, labels)
        for model, count in (("small", 5), ("large", 2)):
            self.client.increment("orders", count, {"api_name": DOT, "model": model})
            self.client.gauge("queue_depth", 10 * count, {"api_name": DOT, "model": model})
            for latency in LOGNORMAL if model == "small" else BIMODAL:
                self.client.histogram("prompt_tokens", 1000 * latency, {"api_name": DOT, "model": model})
        self.client.gauge("temperature", 90 - number)  # what falls is no counter
        if number == 0:
            self.client.increment("starts_total", 4)
        self.client.flush()

    def stop(self) -> None:
        self.ended.set()
        if self.is_alive():
            self.join(30)
        self.client.close()
        for server in self.servers.values():
            server.stop()
        self.collector.stop()


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """It runs while the other tests of this file do theirs; whoever asks for values waits for its end."""
    started = Live(tmp_path_factory.mktemp("live"))
    yield started
    started.stop()


# The files -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def promtool() -> Path:
    return of_debian("promtool") / "promtool"


def run(*command: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **more)


def test_the_panels_are_those_of_the_page_in_its_order(live: Live) -> None:
    assert live.is_alive()
    assert [panel["title"] for panel in REALTIME["panels"]] == [
        "Request Rate",
        "In Flight Request",
        "Active Replicas",
        "2XX Responses",
        "4XX Responses",
        "5XX Responses",
        "p99 Latency",
        "p90 Latency",
        "p50 Latency",
        "Average Latency",
    ]
    variable = next(one for one in REALTIME["templating"]["list"] if one["name"] == "api_name")
    assert variable["multi"]
    assert variable["includeAll"]
    assert REALTIME["title"] == "RealtimeAPI"
    assert REALTIME["uid"] == "cortex-realtime-api"  # stands in people's environments.toml
    assert CUSTOM["title"] == "Custom metrics"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_is_complete_and_nothing_overlaps(name: str) -> None:
    dashboard = DASHBOARDS[name]
    # A place that is laid out as a reader goes: left to right, top to bottom.
    cells: set[tuple[int, int]] = set()
    places = []
    for panel in dashboard["panels"]:
        x, y, w, h = (panel["gridPos"][key] for key in "xywh")
        covered = {(x + dx, y + dy) for dx in range(w) for dy in range(h)}
        assert not covered & cells, panel["title"]
        assert x + w <= 24, panel["title"]
        cells |= covered
        places.append((y, x))
    assert places == sorted(places)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    known = {variable["name"] for variable in dashboard["templating"]["list"]}
    known |= {"__rate_interval", "__interval", "__range"}
    assert dashboard["graphTooltip"] == 1, "one crosshair over all panels"
    assert dashboard["refresh"] == "10s"
    for panel in panels(dashboard):
        assert panel["description"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        # Below 46 s, so that $__rate_interval is a minute as long as the step is not longer.
        assert panel["interval"] in ("10s", "15s"), panel["title"]
        for target in panel["targets"]:
            # A minimum step of a query's own would be its step over two weeks, too.
            assert "interval" not in target, panel["title"]
            assert target["datasource"] == panel["datasource"], panel["title"]
            assert target["legendFormat"], panel["title"]
            used = {a or b for a, b in re.findall(r"\$(\w+)|\$\{(\w+)\}", target["expr"])}
            assert used <= known, panel["title"]
        if panel["type"] == "timeseries":
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


@pytest.fixture(scope="module")
def tsc(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str | Path], Path]:
    """The compiler with Grafana's types, and a folder beside them; `make test` has seen to that where it could."""
    program, compiler = shutil.which("node"), SCHEMA / "node_modules" / "typescript" / "bin" / "tsc"
    if program is None or not compiler.exists():
        reason = "Node.js is missing: make node" if program is None else "@grafana/schema is missing: make npm"
        assert os.environ.get("CI") != "true", reason
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("schema")
    for name in ("schema.ts", "tsconfig.json", "package.json"):
        shutil.copy(SCHEMA / name, folder)
    (folder / "node_modules").symlink_to(SCHEMA / "node_modules")
    return [program, compiler, "-p", folder], folder


def literal(text: str) -> str:
    return f"import type {{ DashboardJson }} from './schema.js';\nexport const dashboard: DashboardJson = {text};\n"


#: What Grafana's types refuse, so that the test of the dashboards may pass for a reason: place, and what is written there.
WRONG = {
    "a-number-that-is-no-member": ('"graphTooltip": 1', '"graphTooltip": 7'),
    "text-for-a-number": ('"schemaVersion": 42', '"schemaVersion": "42"'),
    "a-number-for-text": ('"unit": "s"', '"unit": 5'),
    "a-field-that-is-not": ('"editable"', '"editible"'),
    "a-panel-that-is-not": ('"type": "timeseries"', '"type": "timeserie"'),
    "an-option-of-a-panel": ('"lineInterpolation": "linear"', '"lineInterpolation": "curved"'),
    "a-place": ('"w": 8', '"width": 8'),
    "a-query": ('"legendFormat"', '"legend"'),
    "a-variable": ('"includeAll": true', '"includeAll": "yes"'),
    "a-variables-refresh": ('"refresh": 2', '"refresh": 9'),
    "a-title-that-is-missing": ('"title": "Request Rate"', '"name": "Request Rate"'),
}


def test_the_dashboards_are_of_grafanas_own_types(tsc: tuple[list[str | Path], Path]) -> None:
    command, folder = tsc
    text = (GRAFANA / "dashboards" / "realtime-api.json").read_text()
    for name in DASHBOARDS:
        (folder / f"{name}.ts").write_text(literal((GRAFANA / "dashboards" / f"{name}.json").read_text()))
    for name, (right, wrong) in WRONG.items():
        assert right in text, name
        (folder / f"wrong-{name}.ts").write_text(literal(text.replace(right, wrong, 1)))
    done = run(*command, cwd=folder)
    refused = set(re.findall(r"^wrong-([\w-]+)\.ts\(", done.stdout, re.MULTILINE))
    assert [line for line in done.stdout.splitlines() if not line.startswith(("wrong-", " "))] == [], done.stderr
    assert refused == set(WRONG), done.stderr


def test_the_rules_do_what_their_tests_say(promtool: Path) -> None:
    rules = sorted((GRAFANA / "rules").glob("*.yaml"))
    done = run(promtool, "check", "rules", "--lint=all", "--lint-fatal", *rules)
    assert done.returncode == 0, done.stdout + done.stderr
    tests = sorted((GRAFANA / "rules" / "tests").glob("*.yaml"))
    assert tests
    done = run(promtool, "test", "rules", *tests)
    assert done.returncode == 0, done.stdout + done.stderr
    # Each alert is seen to fire in one of the tests, and says what to do.
    told = "".join(path.read_text() for path in tests)
    alerts = [
        rule
        for group in yaml.safe_load((GRAFANA / "rules" / "alerts.yaml").read_text())["groups"]
        for rule in group["rules"]
    ]
    for alert in alerts:
        assert alert["alert"] in told, alert["alert"]
        assert len(alert["annotations"]["description"]) > 80, alert["alert"]
        assert alert["labels"]["severity"] in ("critical", "warning"), alert["alert"]


def test_prometheus_and_docker_compose_take_their_files(promtool: Path) -> None:
    done = run(promtool, "check", "config", GRAFANA / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    plugin = of_debian("docker-compose").parents[1] / "usr/libexec/docker/cli-plugins/docker-compose"
    command: list[str | Path] = [plugin, "-f", GRAFANA / "compose.yaml", "config", "--format", "json"]
    env = {key: value for key, value in os.environ.items() if key != "GRAFANA_ADMIN_PASSWORD"}
    refused = run(*command, env=env)
    assert refused.returncode != 0, "the password has no default"
    assert "GRAFANA_ADMIN_PASSWORD" in refused.stderr
    done = run(*command, env={**env, "GRAFANA_ADMIN_PASSWORD": "s3cret"})
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]
    assert set(services) == {"collector", "predictor", "prometheus", "grafana"}
    for name, service in services.items():
        assert [port["host_ip"] for port in service["ports"]] == ["127.0.0.1"], name
        for volume in service["volumes"]:
            assert volume["type"] == "volume" or Path(volume["source"]).exists(), (name, volume)
        if "build" in service:
            assert (Path(service["build"]["context"]) / service["build"]["dockerfile"]).exists(), name
    # One path for the socket, and one user on both sides of it: its mode is 0660.
    socket = services["predictor"]["environment"]["CORTEX_METRICS_URL"].removeprefix("unix://")
    assert socket in services["collector"]["command"]
    for name in ("collector", "predictor"):
        assert str(Path(socket).parent) in [volume["target"] for volume in services[name]["volumes"]], name
        containerfile = (ROOT / services[name]["build"]["dockerfile"]).read_text()
        assert "--uid 999" in containerfile, name
        assert re.search(rf"chown collector .*{Path(socket).parent}", containerfile), name
    # What Grafana is told in its environment is what its files ask for.
    environment = services["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ENABLED"] == "false"
    sources = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "cortex-metrics.yaml").read_text())
    for source in sources["datasources"]:
        assert source["type"] == "prometheus"
        assert environment[source["url"].removeprefix("$")].startswith("http://")
        assert source["jsonData"]["timeInterval"] == "15s"
    provider = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "cortex-metrics.yaml").read_text())[
        "providers"
    ][0]
    assert provider["options"]["path"] in [volume["target"] for volume in services["grafana"]["volumes"]]


# History whose every sample is known ---------------------------------------------------------------------------------


class History:
    """Twenty minutes of two APIs, two scrapers and 15 s between samples, with new latencies in each of them."""

    STEP_S = 15
    COUNT = 80

    def __init__(self, end_s: int) -> None:
        rng = random.Random(7)
        self.start_s = end_s - (self.COUNT - 1) * self.STEP_S
        self.end_s = end_s
        times = [1000 * (self.start_s + at * self.STEP_S) for at in range(self.COUNT)]
        self.series: list[Series] = []
        #: What came with each sample, by API.
        self.latencies: dict[str, list[list[float]]] = {DOT: [], DASH: []}

        def add(name: str, samples: list[Sample], **labels: str) -> None:
            self.series.append({"labels": {"__name__": name, "job": "cortex", **labels}, "samples": samples})

        for api in (DOT, DASH):
            for instance in ("a:9102", "b:9102"):
                where = {"instance": instance, "api_name": api, "api_id": "v1"}
                values: list[float] = []
                samples: list[Sample] = []
                for at, ms in enumerate(times):
                    new = [self.latency(rng, api) for _ in range(101 if at else 0)]
                    values += new
                    if len(self.latencies[api]) <= at:
                        self.latencies[api].append([])
                    self.latencies[api][at] += new
                    samples.append((ms, histogram(values, 5)))
                add("cortex_api_request_duration_seconds", samples, **where)
                for code, each in (("200", 90), ("302", 0), ("404", 6), ("500", 3), ("503", 2)):
                    counts: list[float | str] = [float(each * at) for at in range(self.COUNT)]
                    add("cortex_api_requests_total", floats(times, counts), response_code=code, **where)
                # The second replica is scraped by two jobs. The peak stands out in one sample of each process.
                for job in ("cortex", "again") if instance == "b:9102" else ("cortex",):
                    replica = {**where, "replica": f"r-{instance[0]}", "job": job}
                    ones: list[float | str] = [1.0] * self.COUNT
                    add("cortex_api_replica_start_timestamp_seconds", floats(times, ones), **replica)
                    for process in ("p1", "p2"):
                        one = {**replica, "process": process}
                        add("cortex_api_in_flight_requests", floats(times, ones), **one)
                        peaks: list[float | str] = [9.0 if at == self.COUNT - 3 else 2.0 for at in range(self.COUNT)]
                        add("cortex_api_in_flight_requests_peak", floats(times, peaks), **one)
                add("cortex_api_replicas_requested", floats(times, [4.0] * self.COUNT), **where)

    @staticmethod
    def latency(rng: random.Random, api: str) -> float:
        if api == DOT:
            return rng.lognormvariate(math.log(0.08), 1)
        return rng.uniform(0.01, 0.02) if rng.random() < 0.7 else rng.gauss(3, 0.2)

    def within(self, api: str, end_s: int, window_s: int) -> list[float]:
        """The latencies between the first and the last sample of a window that is open at its left end."""
        last = (end_s - self.start_s) // self.STEP_S
        first = (end_s - window_s - self.start_s) // self.STEP_S + 1
        return [latency for at in range(first + 1, last + 1) for latency in self.latencies[api][at]]


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[History, dict[str, str]]]:
    """The same samples in a collector and in a Prometheus."""
    folder = tmp_path_factory.mktemp("history")
    made = History(int(time.time()) // 300 * 300)
    collector = Collector(folder, "127.0.0.1:0", "127.0.0.1:0", "--enable-remote-write-receiver")
    receiver = Receiver(of_debian("prometheus") / "prometheus", folder / "prometheus")
    try:
        for url in (f"http://{collector.web}", receiver.url):
            remote_write(url, made.series)
        yield made, {"collector": collector.web, "native": receiver.url.removeprefix("http://")}
    finally:
        receiver.stop()
        collector.stop()


#: Over an hour, where the window is a minute, and over times whose step is longer.
@pytest.mark.parametrize("range_s", [3600, 60_000, 300_000])
@pytest.mark.parametrize("apis", [None, [DOT], [DOT, DASH]], ids=["all", "one", "both"])
def test_what_is_drawn_of_a_known_history_is_exact(
    history: tuple[History, dict[str, str]], range_s: int, apis: list[str] | None
) -> None:
    made, webs = history
    names = apis or [DOT, DASH]
    seen = 0
    for panel in panels(REALTIME):
        step, variables = intervals(panel, range_s)
        variables |= chosen(REALTIME, api_name=apis)
        window_s = int(variables["__rate_interval"].removesuffix("s"))
        assert window_s == max(60, step + 15)
        latencies = {api: made.within(api, made.end_s, window_s) for api in names}
        rates: dict[str, dict[str, float]] = {
            "Request Rate A": {"": 2 * 101 / 15},
            "In Flight Request A": {"": 4},
            # Four processes; the sample before the last but one is within a step of 60 s, not within one of 10 s.
            "In Flight Request B": {" peak": 36 if step > 30 else 8},
            "Active Replicas A": {"": 2},
            "Active Replicas B": {" requested": 4},
            "2XX Responses A": {"": 2 * 90 / 15},
            "2XX Responses B": {" 200": 2 * 90 / 15},
            "4XX Responses A": {"": 2 * 6 / 15},
            "4XX Responses B": {" 404": 2 * 6 / 15},
            "5XX Responses A": {"": 2 * 5 / 15},
            "5XX Responses B": {" 500": 2 * 3 / 15, " 503": 2 * 2 / 15},
        }
        for target in panel["targets"]:
            key = f"{panel['title']} {target['refId']}"
            for web in webs.values():
                drawn = draw(web, target, variables, made.end_s - 2 * step, made.end_s, step)
                got = {legend: values[made.end_s] for legend, values in drawn.items()}
                quantile = re.fullmatch(r"p(\d+) Latency A", key)
                if quantile:
                    want = {api: nearest_rank(int(quantile[1]) / 100, latencies[api]) for api in names}
                    assert got == pytest.approx(want, rel=WIDTH), (key, web)
                elif key == "Average Latency A":
                    want = {api: statistics.fmean(latencies[api]) for api in names}
                    assert got == pytest.approx(want, rel=1e-9), (key, web)
                else:
                    want = {api + legend: value for api in names for legend, value in rates[key].items()}
                    assert got == pytest.approx(want, rel=1e-9), (key, web)
                seen += 1
    assert seen == 2 * 15


# What was sent by a client, scraped every 15 s -----------------------------------------------------------------------


def wait(live: Live) -> int:
    """The time of which is asked: the minute before it, and the scrape before that, have the workload."""
    end_s = int(live.start_s + live.SECONDS)
    until(lambda: time.time() > end_s + 3, live.SECONDS + 60)
    return end_s


@pytest.mark.parametrize("engine", ["collector", "native", "classic", "victoria"])
def test_what_is_drawn_of_a_live_workload_is_what_was_sent(live: Live, engine: str) -> None:
    end_s = wait(live)
    web = live.webs[engine]
    assert options(web, REALTIME, "api_name", {}, end_s) == [DASH, DOT]
    expected: dict[str, dict[str, float]] = {
        "Request Rate A": {DOT: 61, DASH: 57},
        "In Flight Request A": {DOT: 15},
        "In Flight Request B": {f"{DOT} peak": 27},
        "Active Replicas A": {DOT: 3, DASH: 0},
        "Active Replicas B": {f"{DOT} requested": 3},
        "2XX Responses A": {DOT: 54, DASH: 57},
        "2XX Responses B": {f"{DOT} 200": 50, f"{DOT} 201": 4, f"{DASH} 200": 57},
        "4XX Responses A": {DOT: 4, DASH: 0},
        "4XX Responses B": {f"{DOT} 404": 4, f"{DASH} 400": 0},
        "5XX Responses A": {DOT: 3, DASH: 0},
        "5XX Responses B": {f"{DOT} 500": 2, f"{DOT} 503": 1, f"{DASH} 500": 0},
        "Average Latency A": {api: statistics.fmean(latencies) for api, latencies in LATENCIES.items()},
    }
    for q in (99, 90, 50):
        latencies = LATENCIES.items()
        expected[f"p{q} Latency A"] = {api: nearest_rank(q / 100, values) for api, values in latencies}
    seen = set()
    for panel in panels(REALTIME):
        step, variables = intervals(panel, 900)
        variables |= chosen(REALTIME, api_name=None)
        for target in panel["targets"]:
            key = f"{panel['title']} {target['refId']}"
            drawn = draw(web, target, variables, end_s - step, end_s, step)
            got = {legend: values[end_s] for legend, values in drawn.items()}
            want = expected[key]
            if key.startswith("p") and engine in ("classic", "victoria"):
                # Within the bucket, which is a power of two.
                assert {api: math.ceil(math.log2(value)) for api, value in got.items()} == {
                    api: math.ceil(math.log2(value)) for api, value in want.items()
                }, key
            else:
                tolerance = 1e-9
                if key.startswith("p"):
                    tolerance = WIDTH
                elif panel["title"].endswith(("Rate", "Responses")):
                    tolerance = 0.1  # what a machine that is late a second or two makes of a rate
                assert got == pytest.approx(want, rel=tolerance), key
            seen.add(key)
    assert seen == set(expected)


@pytest.mark.parametrize("engine", ["native", "classic"])
def test_the_rules_record_what_was_sent_and_alert_of_what_is_wrong(live: Live, engine: str) -> None:
    end_s = wait(live)

    def recorded(name: str) -> dict[str, float]:
        found = ask(live.webs[engine], "query", query=name, time=end_s)["result"]
        return {series["metric"]["api_name"]: float(series["value"][1]) for series in found}

    ratio = recorded("api_name:cortex_api_requests_5xx:ratio_rate5m")
    assert ratio == pytest.approx({DOT: 3 / 61, DASH: 0}, rel=1e-6)
    p90 = recorded("api_name:cortex_api_request_duration_seconds:p90_5m")
    want = {api: nearest_rank(0.9, latencies) for api, latencies in LATENCIES.items()}
    assert p90 == pytest.approx(want, rel=WIDTH if engine == "native" else 1)
    assert recorded("api_name_api_id:cortex_api_replicas:count{api_id='v2'}") == {DOT: 2}
    assert recorded("api_name_api_id:cortex_api_replicas_requested:newest") == {DOT: 3}
    # One replica too few, and a p99 above a second; both have to last for minutes before they fire.
    alerts = ask(live.webs[engine], "query", query="ALERTS", time=end_s)["result"]
    found = {(one["metric"]["alertname"], one["metric"]["alertstate"]) for one in alerts}
    assert found == {("CortexApiReplicasMissing", "pending"), ("CortexApiSlow", "pending")}


@pytest.mark.parametrize("engine", ["collector", "native", "classic"])
def test_custom_metrics_are_found_by_what_they_are_and_drawn(live: Live, engine: str) -> None:
    end_s = wait(live)
    web = live.webs[engine]
    jobs = options(web, CUSTOM, "job", {}, end_s)
    assert jobs == ([] if engine == "collector" else ["cortex"])
    variables = chosen(CUSTOM, job=jobs or "()", api_name=None)
    variables["__range"] = "900s"
    is_classic = engine == "classic"
    parts = ["prompt_tokens_count", "prompt_tokens_sum"] if is_classic else []
    assert options(web, CUSTOM, "counter", variables, end_s) == sorted(["orders", "starts_total", *parts])
    assert options(web, CUSTOM, "gauge", variables, end_s) == ["queue_depth", "temperature"]
    assert options(web, CUSTOM, "histogram", variables, end_s) == ["prompt_tokens"]
    assert "model" in options(web, CUSTOM, "by", variables, end_s)
    tokens = {"small": [1000 * value for value in LOGNORMAL], "large": [1000 * value for value in BIMODAL]}
    kinds = {"$counter": "orders", "$gauge": "queue_depth", "$histogram": "prompt_tokens"}
    for by in ("model", "__name__"):
        for panel in panels(CUSTOM):
            step, more = intervals(panel, 900)
            name = panel["title"].partition(":")[0]
            more |= variables | {name[1:]: kinds[name], "by": by, "of": "avg"}
            for target in panel["targets"]:
                drawn = draw(web, target, more, end_s - step, end_s, step)
                got = {legend: values[end_s] for legend, values in drawn.items()}
                if panel["type"] == "heatmap":
                    rate = len(tokens["small"]) + len(tokens["large"])
                    if is_classic:
                        assert got["+Inf"] == pytest.approx(rate, rel=0.1)
                        below = [got[le] for le in sorted(got, key=float)]
                        assert below == sorted(below), "cumulative, as Grafana takes them"
                    else:
                        ((_, found),) = got.items()
                        assert float(found["count"]) == pytest.approx(rate, rel=0.1)
                        slow = sum(float(count) for _, low, _, count in found["buckets"] if float(low) > 1500)
                        assert slow / float(found["count"]) == pytest.approx(17 / rate, rel=0.01)
                elif name == "$counter":
                    rates = {"orders small": 5, "orders large": 2} if by == "model" else {"orders ": 7}
                    assert got == pytest.approx(rates, rel=0.1)
                elif name == "$gauge":
                    # The name is a label of gauges, if they are split by it.
                    lines = {"queue_depth small": 50.0, "queue_depth large": 20.0}
                    assert got == (lines if by == "model" else {"queue_depth queue_depth": 35.0})
                else:
                    q = {"A": 0.99, "B": 0.9, "C": 0.5}[target["refId"]]
                    p = f"p{q:.2g}".replace("0.", "").ljust(3, "0")
                    if q == 0.5 and by == "__name__":
                        continue  # of 118 values it lies between two
                    groups = tokens if by == "model" else {"": tokens["small"] + tokens["large"]}
                    want = {f"{p} {model}": nearest_rank(q, values) for model, values in groups.items()}
                    assert got == pytest.approx(want, rel=1 if is_classic else WIDTH), target["expr"]


def test_a_metric_that_is_not_there_is_no_error(live: Live) -> None:
    """Before there is a first counter, gauge or histogram, its panel says so."""
    end_s = int(time.time())
    for engine in ("collector", "native", "classic"):
        for panel in panels(CUSTOM):
            step, variables = intervals(panel, 900)
            variables |= chosen(CUSTOM, job="()", api_name=None)
            variables |= {"counter": "", "gauge": "", "histogram": "", "by": "__name__", "of": "avg"}
            for target in panel["targets"]:
                assert draw(live.webs[engine], target, variables, end_s - step, end_s, step) == {}
