"""The mapping file, before Prometheus's statsd_exporter and before the collector: from the same lines come the same series.

No registry has that program, so it is run where it is: `STATSD_EXPORTER=path`, or on the `PATH`."""

from __future__ import annotations

import collections
import os
import random
import re
import shutil
import socket
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import Collector, Process, free_port, until

Series = dict[str, float]

PARTS = ("a", "b", "c", "web-1", "x_y", "Foo9")
# Groups with names and without, and one that may take nothing.
REGEXES = (
    (r"^(a|b)\.(.+)\.c$", 2),
    (r"x_y\.(\w+)", 1),
    (r"^(\w+)\.web-(\d)\.(\w*)", 3),
    (r"(?P<first>[a-z]+)\.(?P<second>Foo9)", 2),
    (r"^Foo9\.(b)?", 1),
)


@pytest.fixture(scope="session")
def statsd_exporter() -> Path:
    names = ("statsd_exporter", "prometheus-statsd-exporter")
    found = os.environ.get("STATSD_EXPORTER") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("statsd_exporter is not on this machine: STATSD_EXPORTER=path says where")
    return Path(found)


class StatsdExporter(Process):
    def __init__(self, program: Path, folder: Path, mapping: Path) -> None:
        log = folder / "statsd_exporter.log"
        log.write_bytes(b"")
        self.udp, self.web = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        super().__init__(
            log,
            program,
            f"--statsd.listen-udp={self.udp}",
            "--statsd.listen-tcp=",
            f"--web.listen-address={self.web}",
            f"--statsd.mapping-config={mapping}",
            # What the collector does not read either.
            "--no-statsd.parse-influxdb-tags",
            "--no-statsd.parse-librato-tags",
            "--no-statsd.parse-signalfx-tags",
        )
        self.line(r"(Accepting Prometheus Requests)")

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self.web}{path}", timeout=10) as response:
            return str(response.read().decode())


def send(address: str, lines: list[str]) -> None:
    host, _, port = address.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect((host, int(port)))
        for at in range(0, len(lines), 20):
            sender.send("\n".join(lines[at : at + 20]).encode())


def series(text: str) -> Series:
    """What was sent: counters, gauges, and sum and count of observers, whose buckets are not the same."""
    own = ("#", "cortex_", "statsd_", "go_", "process_", "promhttp_")
    found = {}
    for line in text.splitlines():
        match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
        if line.startswith(own) or match is None:
            continue
        name, labels, value = match.groups()
        pairs = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels or ""))
        if "le" in pairs or "quantile" in pairs:
            continue
        # A label without a value is the same as none.
        key = ",".join(f"{label}={text}" for label, text in sorted(pairs.items()) if text)
        found[f"{name}{{{key}}}"] = float(value)
    return found


def mapping_file(rng: random.Random, *, is_unordered: bool) -> str:
    """Rules over few parts, so that they overlap. No glob is the beginning of an earlier one, which the original never
    matches, nor the same again, which it takes for a mistake; if the order means nothing, none covers all others, for then it
    takes the others for unreachable."""
    globs: list[tuple[str, ...]] = []
    rules = []
    for at in range(60):
        if rng.random() < 0.25:
            regex, groups = rng.choice(REGEXES)
            rule = [f"- match: '{regex}'", "  match_type: regex"]
        else:
            glob = tuple("*" if rng.random() < 0.4 else rng.choice(PARTS) for _ in range(rng.randint(1, 4)))
            if any(earlier[: len(glob)] == glob for earlier in globs) or (is_unordered and set(glob) == {"*"}):
                continue
            globs.append(glob)
            groups = glob.count("*")
            rule = [f'- match: "{".".join(glob)}"']
        if rng.random() < 0.15:
            rule.append("  action: drop")
        name = rng.choice(("m_N", "mN_total", "m_N_x")).replace("N", str(at % 25))
        if groups and rng.random() < 0.4:
            name += rng.choice(("_${1}", "_$1", f"_${{{groups}}}_n"))
        rule.append(f'  name: "{name}"')
        if rng.random() < 0.7:
            rule += ["  labels:", "    fixed: yes_it_is"]
            rule += [f'    label_{group}: "<${group}>"' for group in range(1, groups + 1) if rng.random() < 0.8]
            if groups and rng.random() < 0.3:
                rule.append('    zone: "of-$1"')
            if rng.random() < 0.3:
                rule.append("  honor_labels: true")
        if rng.random() < 0.2:
            rule.append("  scale: 0.25")
        rules.append("\n".join(rule))
    head = f"defaults:\n  observer_type: histogram\n  glob_disable_ordering: {str(is_unordered).lower()}\nmappings:\n"
    return head + "\n".join(rules) + "\n"


def lines(rng: random.Random) -> list[str]:
    """Each name comes as one type, since what a second one comes to depends on the mapping."""
    made = []
    for _ in range(400):
        name = ".".join(rng.choice((*PARTS, "other")) for _ in range(rng.randint(1, 4)))
        value = rng.choice(("1|c", "3|c|@0.5", "2|c"))
        made.append(f"{name}:{value}{rng.choice(('', '|#zone:eu', '|#zone:eu,label_1:tagged'))}")
    return made


@pytest.fixture
def compare(statsd_exporter: Path, tmp_path: Path) -> Iterator[Callable[[str, list[str]], tuple[Series, Series]]]:
    """Sends lines to both programs with the same file; gives what each made of them."""
    started: list[Process] = []

    def compared(file: str, sent: list[str]) -> tuple[Series, Series]:
        folder = tmp_path / f"{len(started)}"
        folder.mkdir()
        mapping = folder / "mapping.yaml"
        mapping.write_text(file)
        theirs = StatsdExporter(statsd_exporter, folder, mapping)
        started.append(theirs)
        ours = Collector(folder, "127.0.0.1:0", "127.0.0.1:0", "--mapping-config", str(mapping))
        started.append(ours)
        for each in (theirs, ours):
            send(each.udp, [*sent, "that.was.all.of.it:1|g"])
            until(lambda: "\nthat_was_all_of_it 1\n" in each.get("/metrics"))  # noqa: B023
        return series(theirs.get("/metrics")), series(ours.get("/metrics"))

    yield compared
    for each in started:
        each.stop()


Compare = Callable[[str, list[str]], tuple[Series, Series]]


@pytest.mark.parametrize("is_unordered", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_whatever_the_file_the_same_series_come_from_it(compare: Compare, seed: int, *, is_unordered: bool) -> None:
    rng = random.Random(seed)
    file = mapping_file(rng, is_unordered=is_unordered)
    theirs, ours = compare(file, lines(rng))
    assert ours == theirs, file
    # It is a comparison of something: many rules have matched.
    rules = collections.Counter(re.match(r"m_+\d|m\d", name) is not None for name in theirs)
    assert rules[True] > 20, theirs


TYPES = """\
defaults:
  observer_type: histogram
mappings:
- match: "app.*.load"
  match_metric_type: gauge
  name: "load"
  labels: {host: "$1"}
- match: "app.*.load"
  match_metric_type: counter
  name: "loads_total"
  labels: {host: "$1"}
- match: "app.*.time"
  match_metric_type: observer
  name: "time_seconds"
  labels: {host: "$1"}
- match: "app.*.us"
  name: "us_seconds"
  scale: 0.001
- match: "summary.*"
  name: "summarised"
  observer_type: summary
  labels: {what: "$1"}
- match: "app.noise.*"
  action: drop
  name: "noise"
- match: ".+"
  match_type: regex
  match_metric_type: counter
  name: "rest_total"
  labels: {name: "$0"}
"""


def test_each_type_has_its_rules(compare: Compare) -> None:
    sent = [
        "app.one.load:5|g",
        "app.one.load:+2|g",
        "app.two.load:-3|g",
        "app.one.load:4|c|@0.1",
        "app.one.time:250|ms",
        "app.one.time:750|ms|@0.5",
        "app.two.time:0.5|h",
        "app.two.time:2:4|d|#zone:eu",
        "app.one.us:1500|ms",
        "app.one.us:1500|ms",
        "summary.latency:20|ms",
        "summary.size:20|h",
        "app.noise.x:1|c",
        "app.noise.y:7|g",
        "something.else:3|c",
        "something.other:9|g",
        "another:100|ms",
    ]
    theirs, ours = compare(TYPES, sent)
    assert ours == theirs
    assert theirs["load{host=one}"] == 7
    assert theirs["rest_total{name=something.else}"] == 3
    assert not [name for name in theirs if "noise" in name]
