"""Runs the published tests of PromQL (`promql/promqltest/testdata` of Prometheus) against our engine: `promql_corpus.py FOLDER`.

It prints what fails and how many cases pass. What cannot be loaded (custom buckets, other zero buckets) fails with its cases.
"""

from __future__ import annotations

import collections
import json
import math
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from promql_judge import STALE, ZERO_THRESHOLD, OverPipe

UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000, "y": 31_536_000_000}
EPSILON = 1e-6


class UnsupportedError(Exception):
    """Samples that our model does not have."""


def duration_ms(text: str) -> int:
    if re.fullmatch(r"-?[\d.]+", text):
        return round(float(text) * 1000)
    sign = -1 if text.startswith("-") else 1
    parts = re.findall(r"(\d+)(ms|[smhdwy])", text)
    return sign * sum(int(count) * UNITS[unit] for count, unit in parts)


def metric(text: str) -> tuple[dict[str, str], str]:
    """The labels at the start of a line, and the rest of it."""
    name = re.match(r"[a-zA-Z_:][\w:]*", text)
    labels = {"__name__": name[0]} if name else {}
    rest = text[name.end() :] if name else text
    if rest.startswith("{") and not rest.startswith("{{"):
        at = 1
        while rest[at] != "}":
            pair = re.match(
                r'\s*(?:([a-zA-Z_]\w*)|"((?:[^"\\]|\\.)*)")\s*(=\s*("(?:[^"\\]|\\.)*"|\'[^\']*\'|`[^`]*`))?\s*,?\s*',
                rest[at:],
            )
            assert pair, rest
            if pair[4]:
                value = json.loads(pair[4]) if pair[4].startswith('"') else pair[4][1:-1]
                labels[pair[1] or pair[2]] = value
            else:
                labels["__name__"] = pair[2]
            at += pair.end()
        rest = rest[at + 1 :]
    return labels, rest.strip()


def parse_histogram(text: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in re.findall(r"(\w+):(\[[^\]]*\]|\S+)", text):
        if value.startswith("["):
            fields[key] = [float(one) for one in value[1:-1].split()]
        else:
            fields[key] = value

    def number(key: str) -> float:
        return float(fields.get(key, 0))

    return {
        "schema": int(number("schema")),
        "count": number("count"),
        "sum": number("sum"),
        "zero_count": number("z_bucket"),
        "width": number("z_bucket_w"),
        "positive": [int(number("offset")), fields.get("buckets", [])],
        "negative": [int(number("n_offset")), fields.get("n_buckets", [])],
    }


def plus(a: dict[str, Any], b: dict[str, Any], times: float) -> dict[str, Any]:
    if a["schema"] != b["schema"]:
        raise UnsupportedError

    def side(left: list[Any], right: list[Any]) -> list[Any]:
        counts: dict[int, float] = collections.defaultdict(float)
        for (offset, values), factor in ((left, 1), (right, times)):
            for at, value in enumerate(values):
                counts[offset + at] += value * factor
        if not counts:
            return [0, []]
        return [min(counts), [counts[at] for at in range(min(counts), max(counts) + 1)]]

    total = {key: a[key] + b[key] * times for key in ("count", "sum", "zero_count")}
    return {**a, **total, **{key: side(a[key], b[key]) for key in ("positive", "negative")}}


def sequence(text: str) -> list[Any]:
    """Values, `None` where there is none."""
    found: list[Any] = []
    text = re.sub(r"\s+st@\S+", "", text)
    while text := text.strip():
        if match := re.match(r"\{\{(.*?)\}\}(?:([+-])\{\{(.*?)\}\})?(?:x(\d+))?", text):
            first = parse_histogram(match[1])
            for at in range(int(match[4] or 0) + 1):
                sign = -1 if match[2] == "-" else 1
                found.append(plus(first, parse_histogram(match[3]), sign * at) if match[3] else first)
        elif match := re.match(r"_(?:x(\d+))?", text):
            found += [None] * int(match[1] or 1)
        elif match := re.match(r"stale(?:x(\d+))?", text):
            found += [STALE] * (int(match[1] or 0) + 1)
        else:
            number = r"[+-]?(?:[\d.]+(?:[eE][+-]?\d+)?|[iI]nf|[nN]a[nN])"
            match = re.match(rf"({number})([+-](?:[\d.]+(?:[eE][+-]?\d+)?|Inf|NaN))?(?:x(\d+))?", text)
            assert match, text
            value, step = float(match[1]), float(match[2] or 0)
            count = int(match[3]) + 1 if match[3] else 1
            for at in range(count):
                found.append(repr(value + (step * at if step else 0)))
        text = text[match.end() :]
    return found


def is_loadable(value: Any) -> bool:
    if not isinstance(value, dict):
        return True
    has_our_zero = not value["zero_count"] or value["width"] <= ZERO_THRESHOLD
    counts = [value["count"], *value["positive"][1], *value["negative"][1]]
    return -4 <= value["schema"] <= 8 and has_our_zero and all(map(math.isfinite, counts))


def close(a: float, b: float) -> bool:
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    # Zero buckets of the width 0 are of our one width.
    return a == b or abs(a - b) <= max(EPSILON * max(abs(a), abs(b)), 2 * ZERO_THRESHOLD)


def buckets(h: dict[str, Any]) -> list[list[float]]:
    base = 2.0 ** (2.0 ** -h["schema"])
    found = []
    for sign, (offset, counts) in ((-1, h["negative"]), (1, h["positive"])):
        for at, count in enumerate(counts):
            bounds = sorted([sign * base ** (offset + at - 1), sign * base ** (offset + at)])
            found.append([*bounds, count])
    if h["zero_count"] > 0:
        found.append([-h["width"], h["width"], h["zero_count"]])
    return sorted(one for one in found if one[2])


def same(ours: Any, want: Any) -> bool:
    if isinstance(want, dict) != isinstance(ours, dict):
        return False
    if not isinstance(want, dict):
        return close(float(ours), float(want))
    mine = sorted([float(part) for part in bucket[1:]] for bucket in ours["buckets"])
    wanted = buckets(want)
    return (
        close(float(ours["count"]), want["count"])
        and close(float(ours["sum"]), want["sum"])
        and len(mine) == len(wanted)
        and all(close(a, b) for left, right in zip(mine, wanted, strict=True) for a, b in zip(left, right, strict=True))
    )


class Case:
    def __init__(self, place: str, command: str) -> None:
        self.place = place
        self.command = command
        self.expects: list[str] = []
        self.series: list[str] = []

    def question(self) -> dict[str, Any]:
        if match := re.match(r"eval(?:_\w+)?\s+instant\s+at\s+(\S+)\s+(.*)", self.command, re.S):
            return {"query": match[2], "time": duration_ms(match[1])}
        match = re.match(r"eval(?:_\w+)?\s+range\s+from\s+(\S+)\s+to\s+(\S+)\s+step\s+(\S+)\s+(.*)", self.command, re.S)
        assert match, self.command
        return {
            "query": match[4],
            "start": duration_ms(match[1]),
            "end": duration_ms(match[2]),
            "step": duration_ms(match[3]),
        }

    def wrong(self, answer: dict[str, Any]) -> str | None:
        fail = [one for one in self.expects if one.startswith("expect fail")] or self.command.startswith("eval_fail")
        if fail or answer["status"] == "error":
            return (
                None if fail and answer["status"] == "error" else answer.get("error", "an answer where none is wanted")
            )
        for kind in ("warn", "info"):
            said = answer["warnings" if kind == "warn" else "infos"]
            if f"expect no_{kind}" in self.expects and said:
                return f"{kind}: {said}"
            for one in self.expects:
                if not re.match(rf"expect {kind}\b", one):
                    continue
                if not said:
                    return f"no {kind}"
                if match := re.match(rf"expect {kind}\s+(msg|regex):\s*(.*)", one):
                    if match[1] == "msg" and not any(
                        text.startswith(re.sub(r" \(\d+:\d+\)$", "", match[2])) for text in said
                    ):
                        return f"{kind} {said}, want {match[2]}"
                    if match[1] == "regex" and not any(re.search(match[2], text) for text in said):
                        return f"{kind} {said}, want {match[2]}"
        data = answer["data"]
        if data["resultType"] == "string":
            return None
        if data["resultType"] == "scalar":
            return None if same(data["result"][1], sequence(self.series[0])[0]) else f"{data['result'][1]}"
        return self.wrong_series(data)

    def wrong_series(self, data: dict[str, Any]) -> str | None:
        question = self.question()
        start, step = question.get("start", 0), question.get("step", 0)
        for one in self.expects:
            if match := re.match(r"expect range vector from (\S+) to (\S+) step (\S+)", one):
                start, step = duration_ms(match[1]), duration_ms(match[3])
        want: dict[tuple[tuple[str, str], ...], list[Any]] = {}
        for line in self.series:
            labels, values = metric(line)
            points = sequence(values)
            key = tuple(sorted((name, value) for name, value in labels.items() if value))
            want[key] = [(start + at * step, value) for at, value in enumerate(points) if value is not None]
        got: dict[tuple[tuple[str, str], ...], list[Any]] = {}
        for one in data["result"]:
            points = one.get("values", []) + one.get("histograms", [])
            is_one = not points
            points += [one[key] for key in ("value", "histogram") if key in one]
            key = tuple(sorted(one["metric"].items()))
            got[key] = sorted(((0 if is_one else round(p[0] * 1000)), p[1]) for p in points)
        want = {key: points for key, points in want.items() if points}
        if got.keys() != want.keys():
            return f"got {list(got)[:4]}, want {list(want)[:4]}"
        for key, points in want.items():
            mine = got[key]
            if data["resultType"] == "vector":
                points = [(0, value) for _, value in points]  # noqa: PLW2901
            if [p[0] for p in mine] != [p[0] for p in points]:
                return f"{key}: at {[p[0] for p in mine][:8]}, want {[p[0] for p in points][:8]}"
            for own, other in zip(mine, points, strict=True):
                if not same(own[1], other[1]):
                    return f"{key} at {own[0]}: {own[1]}, want {other[1]}"
        if "expect ordered" in self.expects and list(got) != list(want):
            return f"in the order {list(got)}"
        return None


def run(pipe: OverPipe, path: Path) -> tuple[int, list[str]]:
    loaded: dict[str, dict[str, Any]] = {}
    passed, failures = 0, []
    lines = path.read_text().splitlines()
    case: Case | None = None
    every = 0

    def finish() -> None:
        nonlocal case, passed
        if not case:
            return
        try:
            samples = [one for one in loaded.values() if one["samples"]]
            for one in samples:
                for _, value in one["samples"]:
                    if isinstance(value, dict):
                        value["sum"] = repr(value["sum"]) if isinstance(value["sum"], float) else value["sum"]
            pipe.ask({"samples": samples})
            wrong = case.wrong(pipe.ask(case.question()))
        except (AssertionError, KeyError, IndexError, ValueError, UnsupportedError) as error:
            wrong = repr(error)
        if wrong:
            failures.append(f"{case.place}: {case.command}\n    {wrong[:400]}")
        else:
            passed += 1
        case = None

    for number, raw in enumerate(lines, 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            if not line:
                finish()
                every = 0
            continue
        if line == "clear":
            finish()
            loaded.clear()
        elif match := re.match(r"load(_with_nhcb)?\s+(\S+)", line):
            finish()
            every = duration_ms(match[2])
        elif re.match(r"eval(_\w+)?\s", line):
            finish()
            every = 0
            case = Case(f"{path.name}:{number}", line)
        elif case and re.match(r"expect(ed_fail\w*)?\b", line):
            case.expects.append(line.rstrip())
        elif case:
            case.series.append(line)
        elif every:
            try:
                labels, values = metric(line)
                points = [(at * every, value) for at, value in enumerate(sequence(values)) if value is not None]
            except (AssertionError, UnsupportedError):
                continue
            if all(is_loadable(value) for _, value in points):
                one = loaded.setdefault(json.dumps(labels, sort_keys=True), {"labels": labels, "samples": []})
                one["samples"] = sorted([*one["samples"], *points], key=lambda point: point[0])
    finish()
    return passed, failures


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "samples.json"
        empty.write_text("[]")
        pipe = OverPipe(empty)
        total = collections.Counter[str]()
        for path in sorted(Path(sys.argv[1]).glob("*.test")):
            passed, failures = run(pipe, path)
            print(f"{path.name}: {passed} of {passed + len(failures)}")
            total["passed"] += passed
            total["all"] += passed + len(failures)
            for failure in failures if "-v" in sys.argv else []:
                print("  " + failure)
        print(f"{total['passed']} of {total['all']}")
        pipe.stop()


if __name__ == "__main__":
    main()
