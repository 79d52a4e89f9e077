"""What the judge of PromQL needs: samples, a Prometheus that has them, and expressions over them.

Run alone it asks both sides and prints what differs: `promql_judge.py SECONDS-OR-COUNT [SEED]`.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import struct
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from support import ROOT, Process, free_port, of_debian

START_MS = 1_700_000_000_000
LENGTH_MS = 50 * 60_000
STALE = "stale"
#: The bits of the stale marker.
STALE_BYTES = struct.pack("<Q", 0x7FF0_0000_0000_0002)
ZERO_THRESHOLD = 2.938735877055719e-39

Sample = tuple[int, Any]
Series = dict[str, Any]


# Samples -----------------------------------------------------------------------------------------------------------


def floats(times: list[int], values: list[float | str]) -> list[Sample]:
    return [(ms, value if isinstance(value, str) else repr(value)) for ms, value in zip(times, values, strict=True)]


def histogram(values: list[float], schema: int) -> dict[str, Any]:
    """A native histogram of values."""
    sides: dict[bool, dict[int, int]] = {True: {}, False: {}}
    zero = 0
    for value in values:
        if abs(value) <= ZERO_THRESHOLD:
            zero += 1
            continue
        index = math.ceil(math.log2(abs(value)) * 2.0**schema)
        side = sides[value > 0]
        side[index] = side.get(index, 0) + 1

    def span(side: dict[int, int]) -> list[Any]:
        if not side:
            return [0, []]
        first = min(side)
        return [first, [side.get(index, 0) for index in range(first, max(side) + 1)]]

    return {
        "schema": schema,
        "zero_count": zero,
        "count": len(values),
        "sum": sum(values),
        "positive": span(sides[True]),
        "negative": span(sides[False]),
    }


def samples(seed: int) -> list[Series]:
    """Counters with resets, gauges with NaN and infinities, gaps, ends, both kinds of histograms, and mixtures."""
    rng = random.Random(seed)
    found: list[Series] = []

    def add(name: str, labels: dict[str, str], values: list[Sample]) -> None:
        found.append({"labels": {"__name__": name, **labels}, "samples": values})

    def grid(every_ms: int, jitter_ms: int = 0, start_ms: int = 0, end_ms: int = LENGTH_MS) -> list[int]:
        return [
            START_MS + ms + (rng.randrange(jitter_ms) if jitter_ms else 0) for ms in range(start_ms, end_ms, every_ms)
        ]

    def counter(count: int, resets: float) -> list[float | str]:
        total, values = 0.0, []
        for _ in range(count):
            total = 0.0 if rng.random() < resets else total + rng.choice([0, 1, 2, 5, 0.5])
            values.append(total)
        return values  # type: ignore[return-value]

    for job, code, jitter, resets in [
        ("api", "200", 0, 0.0),
        ("api", "500", 0, 0.03),
        ("web", "200", 3000, 0.01),
        ("web", "404", 3000, 0.05),
    ]:
        for instance in ("a:1", "b:2"):
            times = grid(15_000, jitter)
            add(
                "requests_total",
                {"job": job, "instance": instance, "code": code},
                floats(times, counter(len(times), resets)),
            )
    for job in ("api", "web"):
        for instance in ("a:1", "b:2"):
            times = grid(10_000)
            add(
                "limit",
                {"job": job, "instance": instance},
                floats(times, [float(rng.choice([50, 100, 100, 200])) for _ in times]),
            )
    for host in ("h1", "h2", "h10"):
        times = grid(10_000)
        add("temperature", {"host": host, "zone": "z" + host[-1]}, floats(times, [rng.gauss(10, 20) for _ in times]))
    times = grid(30_000)
    strange: list[float | str] = [rng.choice([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e300, -1.5, 3]) for _ in times]
    add("strange", {"host": "h1"}, floats(times, strange))
    add("strange", {"host": "h2"}, floats(times, [rng.choice([1.0, 2.0, 2.0, math.nan]) for _ in times]))
    times = grid(240_000)
    add("sparse", {"host": "h1"}, floats(times, [float(at) for at in range(len(times))]))
    times = grid(20_000, 0, 300_000, 1_500_000)
    add("ending", {"host": "h1"}, floats(times, [*[float(at % 7) for at in range(len(times) - 1)], STALE]))
    times = grid(20_000)
    add(
        "ending",
        {"host": "h2"},
        floats(times, [STALE if rng.random() < 0.2 else float(at) for at in range(len(times))]),
    )
    for job, version in (("api", "1"), ("web", "2")):
        for instance in ("a:1", "b:2"):
            add(
                "target_info",
                {"job": job, "instance": instance, "version": version, "zone": instance[0]},
                floats(grid(60_000), [1.0] * len(grid(60_000))),
            )
    for job in ("api", "web"):
        times = grid(15_000)
        bounds, counts = ["0.1", "0.5", "1.0", "+Inf"], [0.0] * 4
        columns: dict[str, list[float | str]] = {le: [] for le in bounds}
        for _ in times:
            for _ in range(rng.randrange(5)):
                value = rng.expovariate(2)
                counts = [count + (value <= float(le)) for le, count in zip(bounds, counts, strict=True)]
            for le, count in zip(bounds, counts, strict=True):
                columns[le].append(count)
        for le in bounds:
            add("latency_bucket", {"job": job, "le": le}, floats(times, columns[le]))
        add("latency_count", {"job": job}, floats(times, columns["+Inf"]))
        add("latency_sum", {"job": job}, floats(times, [float(count) / 3 for count in columns["+Inf"]]))
    for job, instance, schema, resets in [
        ("api", "a:1", 3, 0.0),
        ("api", "b:2", 3, 0.02),
        ("web", "a:1", 5, 0.0),
        ("web", "b:2", 0, 0.02),
    ]:
        values: list[float] = []
        histograms: list[Sample] = []
        for ms in grid(15_000):
            if rng.random() < resets:
                values = []
            for _ in range(rng.randrange(4)):
                values.append(rng.choice([rng.expovariate(0.5), rng.expovariate(20), 0.0]))
            histograms.append((ms, histogram(values, schema)))
        add("rpc_seconds", {"job": job, "instance": instance}, histograms)
    signed: list[float] = []
    histograms = []
    for ms in grid(20_000):
        signed.extend(rng.gauss(0, 3) for _ in range(rng.randrange(3)))
        histograms.append((ms, histogram(signed, 2)))
    add("signed", {"job": "api"}, histograms)
    both: list[Sample] = []
    values = []
    for at, ms in enumerate(grid(20_000)):
        values.append(rng.expovariate(1))
        both.append((ms, histogram(values, 3) if at // 40 % 2 else repr(float(at))))
    add("both", {"job": "api"}, both)
    add("both", {"job": "web"}, floats(grid(20_000), [float(at) for at in range(len(grid(20_000)))]))
    found.sort(key=lambda one: sorted(one["labels"].items()))
    return found


# Prometheus --------------------------------------------------------------------------------------------------------


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def double(number: int, value: float | bytes) -> bytes:
    return varint(number << 3 | 1) + (value if isinstance(value, bytes) else struct.pack("<d", value))


def integer(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value & (1 << 64) - 1)


def zigzag(number: int, value: int) -> bytes:
    return integer(number, value << 1 if value >= 0 else -(value << 1) - 1)


def encoded_histogram(ms: int, h: dict[str, Any]) -> bytes:
    """`prompb.Histogram` with counts as floats."""
    out = double(2, float(h["count"])) + double(3, float(h["sum"])) + zigzag(4, h["schema"])
    out += double(5, ZERO_THRESHOLD) + double(7, float(h["zero_count"]))
    for side, span_number, counts_number in (("negative", 8, 10), ("positive", 11, 13)):
        offset, counts = h[side]
        if counts:
            out += field(span_number, zigzag(1, offset) + integer(2, len(counts)))
            out += field(counts_number, b"".join(struct.pack("<d", count) for count in counts))
    return out + integer(15, ms)


def encoded_series(one: Series) -> bytes:
    """`prompb.TimeSeries`."""
    out = b""
    for name, value in sorted(one["labels"].items()):
        out += field(1, field(1, name.encode()) + field(2, value.encode()))
    for ms, value in one["samples"]:
        if isinstance(value, dict):
            out += field(4, encoded_histogram(ms, value))
        else:
            out += field(2, double(1, STALE_BYTES if value == STALE else float(value)) + integer(2, ms))
    return out


def snappy(data: bytes) -> bytes:
    """Valid snappy of nothing but literals."""
    out = varint(len(data))
    for at in range(0, len(data), 1 << 16):
        chunk = data[at : at + (1 << 16)]
        out += bytes([61 << 2]) + struct.pack("<H", len(chunk) - 1) + chunk
    return out


def remote_write(url: str, series: list[Series]) -> None:
    """Sends samples by remote write 1.0."""
    # A series that turns from floats to histograms and back goes in runs: in one message the floats would be first.
    runs = (
        {"labels": one["labels"], "samples": list(run)}
        for one in series
        for _, run in itertools.groupby(one["samples"], lambda sample: isinstance(sample[1], dict))
    )
    for run in runs:
        body = snappy(field(1, encoded_series(run)))
        headers = {
            "Content-Encoding": "snappy",
            "Content-Type": "application/x-protobuf",
            "X-Prometheus-Remote-Write-Version": "0.1.0",
        }
        request = urllib.request.Request(f"{url}/api/v1/write", body, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.status == 204, answer.status


class Prometheus(Process):
    """A Prometheus that scrapes nothing and takes remote write."""

    def __init__(self, program: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "prometheus.yml").write_text("{}")
        (folder / "log").write_bytes(b"")
        web = f"127.0.0.1:{free_port()}"
        self.url = f"http://{web}"
        super().__init__(
            folder / "log",
            program,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            "--storage.tsdb.retention.time=100y",
            f"--web.listen-address={web}",
            "--web.enable-remote-write-receiver",
            "--enable-feature=native-histograms,promql-experimental-functions",
        )
        self.line(r"(Server is ready)")


# Two that answer ---------------------------------------------------------------------------------------------------


class OverHttp:
    """Asks Prometheus's API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        seconds = {key: value if key == "query" else f"{value / 1000:.3f}" for key, value in question.items()}
        path = "query" if "time" in question else "query_range"
        data = urllib.parse.urlencode(seconds).encode()
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}", data, timeout=60) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            with error:
                answer = dict(json.load(error))
            answer["error"] = answer["error"].removeprefix('invalid parameter "query": ')
            return answer


class OverPipe:
    """Asks our engine over samples in a file, without a collector (tests/promql/answers.rs)."""

    def __init__(self, file: Path) -> None:
        cargo = ["cargo", "run", "--quiet", "--locked", "--example", "promql-answers", "--", str(file)]
        self.process = subprocess.Popen(cargo, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"our engine ended at {question}"
        return dict(json.loads(line))

    def stop(self) -> None:
        self.process.communicate(timeout=15)


# Expressions -------------------------------------------------------------------------------------------------------


FLOATS = [
    "requests_total",
    'requests_total{job="api"}',
    'requests_total{code=~"2..|5.."}',
    'requests_total{job!="web"}',
    "limit",
    'limit{instance="a:1"}',
    "temperature",
    'temperature{host=~"h1.*"}',
    "strange",
    "sparse",
    "ending",
    "latency_bucket",
    "latency_count",
    "target_info",
    "nothing",
    '{job="web",__name__=~"l.*"}',
    'temperature{host!~"h1"}',
]
HISTOGRAMS = ["rpc_seconds", 'rpc_seconds{job="api"}', 'rpc_seconds{job="web"}', "signed", "both", "signed or both"]
RANGES = ["1m", "5m", "37s", "10m", "90", "15s", "1s"]
WINDOWS = """
    rate increase delta irate idelta resets changes deriv avg_over_time min_over_time max_over_time
    sum_over_time count_over_time stddev_over_time stdvar_over_time last_over_time present_over_time
    absent_over_time mad_over_time ts_of_max_over_time ts_of_min_over_time ts_of_last_over_time
""".split()  # noqa: SIM905
MAPS = """
    abs ceil floor exp ln log2 log10 sqrt sgn sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh deg
    rad round timestamp absent sort sort_desc hour minute month year day_of_month day_of_week day_of_year
    days_in_month histogram_count histogram_sum histogram_avg histogram_stddev histogram_stdvar - +
""".split()  # noqa: SIM905
AGGREGATIONS = ["sum", "avg", "min", "max", "count", "group", "stddev", "stdvar"]
LABELS = ["job", "instance", "code", "host", "zone", "le", "missing", "__name__"]


class Grammar:
    """Expressions that Prometheus 3.5 knows, mostly right, sometimes wrong."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def pick(self, *choices: str) -> str:
        return self.rng.choice(choices)

    def chance(self, part: float) -> bool:
        return self.rng.random() < part

    def labels(self) -> str:
        return ", ".join(self.rng.sample(LABELS, self.rng.randrange(4)))

    def shift(self) -> str:
        text = ""
        if self.chance(0.15):
            text += self.pick(" offset 1m", " offset -90s", " offset 17s", " offset 5")
        if self.chance(0.1):
            text += self.pick(
                " @ start()", " @ end()", f" @ {START_MS / 1000 + 777:.1f}", f" @ {START_MS / 1000 + 1500}"
            )
        return text

    def selector(self) -> str:
        return self.rng.choice(FLOATS if self.chance(0.75) else HISTOGRAMS[:5]) + self.shift()

    def matrix(self, depth: int) -> str:
        window = self.rng.choice(RANGES)
        if depth > 0 and self.chance(0.25):
            step = self.pick("", "1m", "13s", "30s", "2m")
            return f"({self.vector(depth - 1)})[{self.pick('5m', '10m', '3m')}:{step}]" + self.shift()
        name = self.rng.choice(FLOATS if self.chance(0.7) else HISTOGRAMS[:5])
        return f"{name}[{window}]" + self.shift()

    def scalar(self, depth: int) -> str:
        if depth > 0 and self.chance(0.3):
            return self.pick(
                f"scalar({self.vector(depth - 1)})",
                f"({self.scalar(depth - 1)} {self.arithmetic()} {self.scalar(depth - 1)})",
                f"({self.scalar(depth - 1)} {self.comparison()} bool {self.scalar(depth - 1)})",
                f"-{self.scalar(depth - 1)}",
            )
        return self.pick("0", "1", "2", "0.5", "-1.5", "1e3", "NaN", "Inf", "-Inf", "time()", "pi()", "5m", "0x1F", "3")

    def arithmetic(self) -> str:
        return self.pick("+", "-", "*", "/", "%", "^", "atan2")

    def comparison(self) -> str:
        return self.pick("==", "!=", "<", "<=", ">", ">=")

    def matching(self) -> str:
        if self.chance(0.35):
            return ""
        match = f"{self.pick('on', 'ignoring')} ({self.labels()})"
        if self.chance(0.4):
            match += (
                f" {self.pick('group_left', 'group_right')} ({self.pick('', 'code', 'host', 'missing', 'version')})"
            )
        return match + " "

    def joined(self) -> str:
        """Joins that mostly match."""
        return self.pick(
            "requests_total / on (job, instance) group_left limit",
            "limit * on (job, instance) group_right requests_total",
            "requests_total * on (job, instance) group_left (version, zone) target_info",
            "limit - on (job, instance) requests_total{code=~'2..'}",
            "requests_total{code='200'} > bool limit",
            "sum by (job) (requests_total) / sum by (job) (limit)",
            "limit == on (job, instance) group_right () (requests_total > 5)",
            "rpc_seconds - rpc_seconds offset 1m",
            "rpc_seconds + on (job) group_left () signed",
            "rpc_seconds == rpc_seconds offset 15s",
            "rpc_seconds != rpc_seconds offset 15s",
            "rpc_seconds + limit",
            "rpc_seconds * limit",
            "limit * rpc_seconds",
            "rpc_seconds / limit",
            "both + both",
            "both == both",
            "requests_total and on (job) limit > 100",
            "requests_total unless on (job, instance) (limit > 60)",
            "limit or requests_total",
        )

    def aggregation(self, depth: int) -> str:
        inner = self.vector(depth - 1)
        by = f" {self.pick('by', 'without')} ({self.labels()}) " if self.chance(0.7) else " "
        op = self.rng.randrange(10)
        if op < 6:
            return f"{self.rng.choice(AGGREGATIONS)}{by}({inner})"
        if op == 6:
            return f"quantile{by}({self.pick('0', '0.5', '0.9', '1', '-1', '2', 'NaN', self.scalar(0))}, {inner})"
        if op == 7:
            return f"count_values{by}('{self.pick('value', 'job', 'x')}', {self.rng.choice(FLOATS)}{self.shift()})"
        if op == 8:
            return f"{self.pick('topk', 'bottomk')}{by}({self.pick('1', '2', '3', '0', '-1', '1.9')}, {inner})"
        return f"limit_ratio{by}({self.pick('0.5', '-0.5', '0.3', '1', '-2', '1.1', '0')}, {self.selector()})"

    def call(self, depth: int) -> str:
        def inner() -> str:
            return self.vector(depth - 1)

        def matrix() -> str:
            return self.matrix(depth - 1)

        def number() -> str:
            return self.scalar(depth - 1)

        quantile = self.pick("0", "0.5", "0.9", "0.99", "1", "-0.1", "1.1", "NaN")
        kind = self.rng.randrange(20)
        simple: list[Callable[[], str]] = [
            lambda: f"clamp({inner()}, {number()}, {number()})",
            lambda: f"{self.pick('clamp_min', 'clamp_max')}({inner()}, {number()})",
            lambda: f"round({inner()}, {number()})",
            lambda: f"vector({number()})",
            lambda: f"quantile_over_time({quantile}, {matrix()})",
            lambda: f"predict_linear({matrix()}, {number()})",
            lambda: (
                f"double_exponential_smoothing({matrix()}, {self.pick('0.3', '0.9', '0.01')}, {self.pick('0.1', '0.8')})"
            ),
            lambda: f"histogram_quantile({quantile}, {self.histogram(depth - 1)})",
            lambda: (
                f"histogram_fraction({self.pick('0', '0.1', '-1', '-Inf')}, {self.pick('0.5', '1', '3', '+Inf')}, "
                f"{self.histogram(depth - 1)})"
            ),
            lambda: (
                f'label_replace({inner()}, "{self.pick("new", "job", "host")}", "{self.pick("$1-x", "", "y")}", '
                f'"{self.pick("job", "instance", "host", "missing")}", "{self.pick("(.).*", "(.*):(.*)", "api", "")}")'
            ),
            lambda: (
                f'label_join({inner()}, "{self.pick("new", "job")}", "-", "job", "{self.pick("host", "instance")}")'
            ),
            lambda: (
                f"{self.pick('sort_by_label', 'sort_by_label_desc')}({inner()}, '{self.pick('host', 'job', 'code')}')"
            ),
            lambda: "info(" + self.rng.choice(FLOATS) + self.pick("", ", {version=~'.+'}", ", {zone='a'}") + ")",
            lambda: f"{self.pick('hour', 'minute', 'day_of_week', 'day_of_month', 'month', 'year', 'days_in_month')}()",
        ]
        if kind < len(simple):
            return simple[kind]()
        if kind < 17:
            name = self.rng.choice(MAPS)
            return f"{name}({inner()})" if name not in "+-" else f"{name}{inner()}"
        return f"{self.rng.choice(WINDOWS)}({matrix()})"

    def histogram(self, depth: int) -> str:
        return self.pick(
            "latency_bucket",
            "rate(latency_bucket[5m])",
            "sum by (le) (rate(latency_bucket[5m]))",
            "rpc_seconds",
            "rate(rpc_seconds[5m])",
            "sum by (job) (rate(rpc_seconds[3m]))",
            "sum(increase(rpc_seconds[10m]))",
            "signed",
            "signed - signed offset 5m",
            "avg by (job) (rpc_seconds)",
            "avg_over_time(rpc_seconds[2m])",
            "both",
            "limit",
            self.vector(depth) if depth > 0 else "rpc_seconds * 2",
        )

    def vector(self, depth: int) -> str:
        if depth <= 0:
            return self.selector()
        kind = self.rng.random()
        if kind < 0.08:
            return f"({self.joined()})"
        if kind < 0.26:
            sides = [self.vector(depth - 1), self.vector(depth - 1)]
            op = self.pick(self.arithmetic(), self.comparison(), self.comparison() + " bool")
            if self.chance(0.5):
                sides[self.rng.randrange(2)] = self.scalar(depth - 1)
                return f"({sides[0]} {op} {sides[1]})"
            if self.chance(0.4):
                return f"({sides[0]} {self.pick('and', 'or', 'unless')} {self.pick('', f'on ({self.labels()}) ')}{sides[1]})"
            return f"({sides[0]} {op} {self.matching()}{sides[1]})"
        if kind < 0.48:
            return self.aggregation(depth)
        if kind < 0.85:
            return self.call(depth)
        return self.selector()

    def broken(self) -> str:
        """Text that is mostly no expression."""
        text = self.vector(2)
        at = self.rng.randrange(len(text))
        how = self.rng.randrange(4)
        if how == 0:
            return text[:at]
        if how == 1:
            return text[:at] + text[at + 1 :]
        if how == 2:
            return (
                text[:at] + self.pick("(", ")", "{", "[", "by", " 1 ", "@", "offset", "~", ",", '"', "bool") + text[at:]
            )
        return text + self.pick(
            " +", " )", "[5m]", "[5m:]", " offset 5m", " @ 3", " foo", " by (a)", "{}", " == bool 1"
        )


def questions(seed: int) -> Iterator[dict[str, Any]]:
    """Questions without an end, instant and range, on and off the grid of the samples."""
    rng = random.Random(seed)
    grammar = Grammar(rng)
    while True:
        query = grammar.broken() if rng.random() < 0.12 else grammar.vector(rng.choice([1, 1, 2, 2, 3]))
        if rng.random() < 0.04:
            query = rng.choice([grammar.matrix(1), grammar.scalar(3), '"a string"'])
        start = START_MS + rng.randrange(-120_000, LENGTH_MS + 300_000)
        if rng.random() < 0.4:
            start -= start % 10_000
        if rng.random() < 0.6:
            yield {"query": query, "time": start}
        else:
            step = rng.choice([10_000, 15_000, 37_000, 60_000, 1_000, 300_000])
            yield {"query": query, "start": start, "end": start + step * rng.randrange(0, 12), "step": step}


# Comparison --------------------------------------------------------------------------------------------------------

RELATIVE = 1e-9
#: What is left of sums that cancel out.
ABSOLUTE = 1e-11


def is_close(left: str, right: str) -> bool:
    a, b = float(left), float(right)
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    return a == b or (abs(a - b) <= max(RELATIVE * max(abs(a), abs(b)), ABSOLUTE) and not math.isinf(a - b))


def same_value(left: Any, right: Any) -> bool:
    if isinstance(left, str) or isinstance(right, str):
        return isinstance(left, str) and isinstance(right, str) and is_close(left, right)
    if not is_close(left["count"], right["count"]) or not is_close(left["sum"], right["sum"]):
        return False

    def buckets(one: Any) -> list[Any]:
        # What is empty may be there or not; so may what was empty and was multiplied by NaN or infinity.
        return [
            bucket[1:]
            for bucket in one.get("buckets", [])
            if not abs(float(bucket[3])) < ABSOLUTE and math.isfinite(float(bucket[3]))
        ]

    lefts, rights = buckets(left), buckets(right)
    return len(lefts) == len(rights) and all(
        all(map(is_close, one, other)) for one, other in zip(lefts, rights, strict=True)
    )


def by_labels(data: dict[str, Any]) -> dict[tuple[tuple[str, str], ...], list[Any]]:
    found: dict[tuple[tuple[str, str], ...], list[Any]] = {}
    for one in data["result"]:
        points = one.get("values", []) + one.get("histograms", [])
        points += [one[key] for key in ("value", "histogram") if key in one]
        found[tuple(sorted(one["metric"].items()))] = sorted(points, key=lambda point: float(point[0]))
    return found


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """What is not the same in two answers, `None` if nothing."""
    if ours["status"] != theirs["status"]:
        return f"ours {ours.get('error', 'an answer')!r}, theirs {theirs.get('error', 'an answer')!r}"
    if theirs["status"] == "error":
        if ours["errorType"] != theirs["errorType"]:
            return f"ours {ours['errorType']} {ours['error']!r}, theirs {theirs['errorType']} {theirs['error']!r}"
        return None
    for kind in ("warnings", "infos"):
        left, right = sorted(ours.get(kind) or []), sorted(theirs.get(kind) or [])
        if left != right and len(right) <= 10:
            return f"{kind}: ours {left}, theirs {right}"
    left, right = ours["data"], theirs["data"]
    if left["resultType"] != right["resultType"]:
        return f"ours a {left['resultType']}, theirs a {right['resultType']}"
    if left["resultType"] in ("scalar", "string"):
        one, other = left["result"][1], right["result"][1]
        same = one == other if left["resultType"] == "string" else is_close(one, other)
        return None if same else f"ours {one}, theirs {other}"
    mine, yours = by_labels(left), by_labels(right)
    if mine.keys() != yours.keys():
        return (
            f"only ours {sorted(mine.keys() - yours.keys())[:3]}, only theirs {sorted(yours.keys() - mine.keys())[:3]}"
        )
    for key, points in yours.items():
        times = [float(point[0]) for point in points], [float(point[0]) for point in mine[key]]
        if times[0] != times[1]:
            return f"{dict(key)}: ours at {times[1]}, theirs at {times[0]}"
        for point, own in zip(points, mine[key], strict=True):
            if not same_value(own[1], point[1]):
                return f"{dict(key)} at {point[0]}: ours {own[1]}, theirs {point[1]}"
    return None


def message_difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """Where both are errors, but in other words."""
    if ours["status"] == theirs["status"] == "error" and ours["error"] != theirs["error"]:
        return f"ours {ours['error']!r}, theirs {theirs['error']!r}"
    return None


def main() -> None:
    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        series = samples(seed)
        (folder / "samples.json").write_text(json.dumps(series))
        server = Prometheus(of_debian("prometheus") / "prometheus", folder / "prometheus")
        pipe = OverPipe(folder / "samples.json")
        try:
            remote_write(server.url, series)
            theirs = OverHttp(server.url)
            wrong = worded = errors = empty = 0
            for _, question in zip(range(count), questions(seed), strict=False):
                ours, their = pipe.ask(question), theirs.ask(question)
                errors += their["status"] == "error"
                empty += their["status"] != "error" and not their["data"]["result"]
                found = difference(ours, their)
                if found:
                    wrong += 1
                    print(f"{json.dumps(question)}\n    {found}")
                elif words := message_difference(ours, their):
                    worded += 1
                    print(f"WORDS {json.dumps(question)}\n    {words}")
            print(f"{count} asked, {wrong} differ, {worded} errors in other words, {errors} errors, {empty} empty")
        finally:
            pipe.stop()
            server.stop()


if __name__ == "__main__":
    main()
