"""`cortex doctor` with real collectors: it tells where the probe ended, and what to do next."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from cortex_metrics import MetricsClient
from support import BIN, Collector, Udp, free_port, until
from test_get import Prometheus, scraping
from test_store import OnSmallDisk


def doctor(folder: Path, web: str, *arguments: str, **env: str) -> tuple[int, list[str]]:
    """Exit code and lines."""
    config = folder / "doctor"
    config.mkdir(exist_ok=True)
    (config / "environments.toml").write_text(f'[environment.local]\nurl = "http://{web}"\n')
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("CORTEX_", "DD_"))}
    done = subprocess.run(
        [BIN / "cortex", "doctor", *arguments],
        env={**clean, "CORTEX_CONFIG_DIR": str(config), **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def test_a_probe_is_followed_to_the_query_that_finds_it(collector: Collector, tmp_path: Path) -> None:
    host, port = collector.udp.split(":")
    for name, env in (
        ("CORTEX_METRICS_URL", {"CORTEX_METRICS_URL": collector.url}),
        ("DD_AGENT_HOST and DD_DOGSTATSD_PORT", {"DD_AGENT_HOST": host, "DD_DOGSTATSD_PORT": port}),
    ):
        code, lines = doctor(tmp_path, collector.web, **env)
        assert code == 0, lines
        assert lines[0] == f"ok    a client sends to {collector.url} (from {name})"
        steps = [line.split()[1].rstrip(":") for line in lines if line.startswith("ok ")]
        assert steps == ["a", "sent", "received", "not", "answered"]
        assert f"all is well: what is sent to {collector.url} is stored, and env local shows it" in lines
    assert collector.query("cortex_doctor_probes_total") == {"": 2}


def test_it_says_where_the_probe_ended_and_what_to_do_next(collector: Collector, udp: Udp, tmp_path: Path) -> None:
    nobody = f"udp://127.0.0.1:{free_port()}"
    listens = f"next: the collector of env local listens at {collector.url}: set CORTEX_METRICS_URL to that"

    def failing(*arguments: str, **env: str) -> tuple[str, str]:
        code, lines = doctor(tmp_path, collector.web, *arguments, **env)
        assert code == 1, lines
        (bad,) = [line for line in lines if line.startswith("no ")]
        return bad, lines[-1]

    bad, further = failing(CORTEX_METRICS_URL="nonsense")
    assert 'CORTEX_METRICS_URL: got "nonsense", want udp://host:port' in bad
    assert further == "next: set CORTEX_METRICS_URL to udp://host:port or unix:///path, or unset it"
    bad, further = failing("--url", nobody)
    assert f"{nobody} does not take metrics (Connection refused" in bad
    assert further == listens
    bad, further = failing("--url", f"unix://{tmp_path}/none.sock")
    assert "No such file or directory" in bad
    assert further == listens
    # Somebody listens there who is no collector.
    bad, further = failing("--url", udp.url)
    assert bad.startswith("no    not received: the collector of env local")
    assert f"it listens at {collector.url}: is {udp.url} one of these" in further


def test_a_query_url_where_nobody_answers_is_told(collector: Collector, tmp_path: Path) -> None:
    code, lines = doctor(tmp_path, f"127.0.0.1:{free_port()}", "--url", collector.url)
    assert code == 1
    assert lines[-3].startswith("no    env local does not answer: http://127.0.0.1:"), lines
    assert lines[-1].startswith("next: start cortex-collector, or give the environment its URL: `cortex env add local")


def test_what_a_mapping_file_drops_is_named(collector_with: Callable[..., Collector], tmp_path: Path) -> None:
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text("mappings:\n- match: '.*'\n  match_type: regex\n  action: drop\n  name: dropped\n")
    collector = collector_with("--mapping-config", str(mapping))
    code, lines = doctor(tmp_path, collector.web, "--url", collector.url)
    assert code == 1
    assert lines[-3].startswith('no    dropped: mapped_drop, "cortex_doctor_probes_total:1|c'), lines
    assert lines[-1] == "next: the collector's --mapping-config drops it: give it a rule for what it is to keep"


def test_a_disk_that_is_full_is_named(tmp_path: Path) -> None:
    collector = OnSmallDisk(tmp_path)
    try:
        until(collector.is_healthy, 30)
        collector.fill(0)
        code, lines = doctor(tmp_path, collector.web, "--url", collector.url)
        assert code == 1
        assert lines[-3].startswith("no    not committed: the store takes no ticks: "), lines
        assert "disk is full" in lines[-3]
        assert lines[-1] == f"next: mend that: http://{collector.web}/healthz tells when it is well"
    finally:
        collector.stop()


def test_a_prometheus_that_scrapes_finds_it_later_and_one_that_does_not_never(
    collector: Collector, tmp_path: Path
) -> None:
    for name, config, timeout in (("scrapes", scraping(collector), "60s"), ("idle", {}, "2s")):
        prometheus = Prometheus(tmp_path / name, config)
        try:
            code, lines = doctor(tmp_path, prometheus.web, "--url", collector.url, "--timeout", timeout)
        finally:
            prometheus.stop()
        why = f"env local (http://{prometheus.web}) is no collector: what it received and dropped is asked of the collector"
        assert lines[2].strip().startswith(why), lines
        assert lines[3].strip() == "waiting until it is scraped …"
        if name == "scrapes":
            assert code == 0, lines
            assert lines[4].startswith("ok    answered: a query finds it"), lines
        else:
            assert code == 1, lines
            assert lines[-3].startswith("no    not to be found by a query after"), lines
            assert lines[-1] == f"next: let http://{prometheus.web} scrape the collector, at its /metrics"


def test_a_metric_that_is_missed_is_looked_for(collector: Collector, tmp_path: Path) -> None:
    def look(name: str) -> tuple[int, str]:
        code, lines = doctor(tmp_path, collector.web, name, "--url", collector.url)
        return code, "\n".join(lines)

    with MetricsClient(collector.url) as client:
        client.increment("model.hits", 3, {"model": "v1"})
    until(lambda: collector.query("model_hits"))
    code, text = look("model.hits")
    assert code == 0, text
    assert '"model.hits" is model_hits here: what Prometheus does not allow in a name becomes _' in text
    assert "ok    model_hits has 1 series now" in text
    code, text = look("model_hit")
    assert code == 1
    assert "no    no series of the name model_hit within 14d; did you mean model_hits?" in text
    # It is a counter: whoever sets it as a gauge is refused.
    with MetricsClient(collector.url) as client:
        client.histogram("wrong", 1)
        client.flush()
        client.gauge("wrong_sum", 1)
    until(lambda: "type_conflict" in str(collector.status("ingest")["dropped"]))
    code, text = look("wrong_sum")
    assert "ok    wrong_sum has 1 series now" in text, "it is the histogram's"
    assert "messages of it that were dropped, since they came as a gauge and wrong is a histogram: 1" in text
    code, text = look("cortex_api_mine")
    assert code == 1
    assert "names that begin with cortex_api_ are ours: a client drops them as reserved_name" in text
