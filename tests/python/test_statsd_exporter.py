"""The mapping file, before Prometheus's statsd_exporter and before the collector: from the same lines come the same series.

No package registry has that program: what version 0.30 made of each case is recorded in `statsd_exporter.json`. Where the
program is (`STATSD_EXPORTER=path`, or on the `PATH`) it runs beside the collector, and the record is compared with it;
with `RECORD=1` it is written anew."""

from __future__ import annotations

import collections
import hashlib
import json
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


RECORD = Path(__file__).with_name("statsd_exporter.json")
NAMES = ("statsd_exporter", "prometheus-statsd-exporter")


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


def recorded(case: str, file: str, sent: list[str], seen: Series | None) -> Series:
    """What statsd_exporter made of a case, which it was `seen` to make where it is."""
    record = json.loads(RECORD.read_text())
    question = hashlib.sha256("\n".join([file, *sent]).encode()).hexdigest()
    if seen is not None and os.environ.get("RECORD") == "1":
        record[case] = {"question": question, "series": dict(sorted(seen.items()))}
        RECORD.write_text(json.dumps(record, indent=0, sort_keys=True) + "\n")
    assert record[case]["question"] == question, (
        f"{case} has changed: RECORD=1 STATSD_EXPORTER=path writes its record anew"
    )
    theirs: Series = record[case]["series"]
    assert seen in (None, theirs), f"statsd_exporter makes something else of {case} than version 0.30 did"
    return theirs


@pytest.fixture
def compare(
    tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[[str, list[str]], tuple[Series, Series]]]:
    """Sends lines to both programs with the same file; gives what each makes of them."""
    started: list[StatsdExporter | Collector] = []
    program = os.environ.get("STATSD_EXPORTER") or next(filter(None, map(shutil.which, NAMES)), None)

    def compared(file: str, sent: list[str]) -> tuple[Series, Series]:
        mapping = tmp_path / "mapping.yaml"
        mapping.write_text(file)
        if program is not None:
            started.append(StatsdExporter(Path(program), tmp_path, mapping))
        started.append(Collector(tmp_path, "127.0.0.1:0", "127.0.0.1:0", "--mapping-config", str(mapping)))
        for each in started:
            send(each.udp, [*sent, "that.was.all.of.it:1|g"])
            until(lambda: "\nthat_was_all_of_it 1\n" in each.get("/metrics"))  # noqa: B023
        *seen, ours = (series(each.get("/metrics")) for each in started)
        return recorded(request.node.name, file, sent, seen[0] if seen else None), ours

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


CHARACTERS = r"""
mappings:
- match: '^city\.(.)(.*)\.hits$'
  match_type: regex
  name: hits
  labels: {first: $1, city: "$1$2"}
- match: '^u\.([^.]{1,4})([^.]*)$'
  match_type: regex
  name: cut
  labels: {four: $1, rest: $2}
- match: '(?i)^É(\w+)$'
  match_type: regex
  name: school
  labels: {rest: $1}
- match: '^[éè](\w+)$'
  match_type: regex
  name: not_school
  labels: {rest: $1}
- match: '^v\.(\W)(\S)(\D)\b.?$'
  match_type: regex
  name: classes
  labels: {one: $1, two: $2, three: $3}
- match: '^x\.([\wß]+)(?:\.|$)'
  match_type: regex
  name: in_class
  labels: {what: $1}
"""


def test_regexes_take_characters_and_their_classes_are_those_of_ascii(compare: Compare) -> None:
    sent = [
        *(f"city.{name}.hits:1|c" for name in ("örebro", "århus", "oslo", "東京")),
        *(f"u.{name}:1|c" for name in ("äöüß", "日本", "aäöüßx", "plain")),
        *(f"{name}:1|c" for name in ("école", "École", "ÉCOLE", "éléve")),
        *(f"{name}:1|c" for name in ("elan", "èplus", "èré")),
        *(f"v.{name}:1|c" for name in ("éßa", "-_x!", "éé1")),
        *(f"x.{name}:1|c" for name in ("aßb", "aéb", "a_9.more")),
    ]
    theirs, ours = compare(CHARACTERS, sent)
    named = ("hits", "cut", "school", "not_school", "classes", "in_class")
    mapped = {name: value for name, value in theirs.items() if name.startswith(named)}
    assert {name: value for name, value in ours.items() if name.startswith(named)} == mapped
    assert len(mapped) == 15, mapped
    assert mapped["hits{city=örebro,first=ö}"] == mapped["cut{four=äöüß}"] == 1


def test_tags_within_names_are_labels(compare: Compare) -> None:
    """Librato's, InfluxDB's and SignalFX's; rules match the names without them."""
    file = "mappings:\n- match: 'jobs.*'\n  name: jobs_total\n  labels: {queue: $1}\n"
    sent = [
        "jobs.slow#zone=eu,model=v1:2|c",
        "jobs.slow,zone=eu,model=v1:3|c",
        "jobs.[zone=eu,model=v1]slow:4|c",
        "jobs.slow:5|c|#zone:eu,model:v1",
        "depth,zone=eu:7|g",
        "depth[zone=us]:8|g",
        "la-ten.cy#a.b=c-d:250|ms",
        "la-ten.cy[a.b=c-d]:750|ms",
        "odd#a=b=c:1|c",
        "half[a=b:1|c",
    ]
    theirs, ours = compare(file, sent)
    assert ours == theirs
    assert theirs["jobs_total{model=v1,queue=slow,zone=eu}"] == 14
