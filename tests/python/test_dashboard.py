"""The collector's page in a real browser: what it draws is compared with what was done, and it is used as people use it."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote

import pytest
from browser import Browser, Page
from cortex_metrics import MetricsClient
from support import Collector, until
from workload import (
    CPU,
    FIRST_BYTE,
    MEMORY,
    MODELS,
    PROCESSES,
    TICK,
    WIDTH,
    Stretch,
    Workload,
    Written,
    exact,
    in_flight,
    peak,
)

API = "text-generator"
TITLES = [
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
    "Time to First Byte",
    "Queue Time",
    "Latency Heatmap",
    "CPU per Replica",
    "Memory per Replica",
]
# Counts of requests of which no percentile falls between two values.
STRETCHES = [
    Stretch(300, {"200": 30, "201": 4, "404": 3}, latency=0.08),
    Stretch(300, {"200": 40, "400": 5, "404": 4, "500": 7, "503": 5}, latency=0.4, replicas=3, requested=3),
    Stretch(180),
    Stretch(300, {"200": 43}, latency=0.03, replicas=1, requested=2),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    started = Browser()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    """With the workload in it; nothing is changed in it, so all tests have the same."""
    folder = tmp_path_factory.mktemp("dashboard")
    started = Collector(folder, "127.0.0.1:0", "127.0.0.1:0", "--enable-remote-write-receiver")
    yield started
    started.stop()


@pytest.fixture(scope="module")
def load(collector: Collector) -> Workload:
    made = Workload(API, int(time.time()) // 600 * 600 - 1800, STRETCHES)
    made.write(f"http://{collector.web}")
    return made


@pytest.fixture
def page(browser: Browser, collector: Collector) -> Iterator[Page]:
    """A page in which nothing may go wrong."""
    opened = browser.page(collector.web)
    yield opened
    opened.close()


def span(load: Workload, before: int = 0) -> dict[str, int]:
    """The time of the workload as the address has it."""
    return {"from_": load.start - before, "to": load.end}


def check(line: dict[int, float], truth: Callable[[int], float | None], times: list[int], within: float = 1e-9) -> None:
    """Of all times of which the truth is known: the drawn value is it."""
    known = {time: value for time in times if (value := truth(time)) is not None}
    assert len(known) > 4
    for at, value in known.items():
        assert at in line, f"nothing is drawn at {at}, want {value}"
        assert line[at] == pytest.approx(value, rel=within, abs=1e-12), at


class Truth:
    """What the panels of the API have to show, worked out from the workload."""

    def __init__(self, load: Workload, over: int = 60) -> None:
        self.load = load
        self.over = over

    def of(self, value: Callable[[Stretch], float | None]) -> Callable[[int], float | None]:
        def at(time: int) -> float | None:
            stretch = self.load.stretch_at(time, self.over)
            return None if stretch is None else value(stretch)

        return at

    def rate(self, prefix: str) -> Callable[[int], float | None]:
        return self.of(lambda one: sum(n for code, n in one.codes.items() if code.startswith(prefix)) / TICK)

    def percentile(self, q: float, share: float = 1.0) -> Callable[[int], float | None]:
        return self.of(lambda one: exact(one.values(one.latency), q) * share)


def test_each_panel_draws_what_was_done(page: Page, load: Workload) -> None:
    page.goto("api", API, **span(load))
    assert list(page.panels()) == TITLES
    assert set(page.panels().values()) == {"drawn"}
    times = page.times("Request Rate")
    assert times == list(range(load.start, load.end + 1, TICK))
    truth = Truth(load)
    check(page.drawn("Request Rate")["requests"], truth.rate(""), times)
    for klass in "245":
        drawn = page.drawn(f"{klass}XX Responses")
        codes = {code for code in load.requests if code.startswith(klass)}
        assert drawn.keys() == {f"{klass}XX", *codes}
        check(drawn[f"{klass}XX"], truth.rate(klass), times)
        for code in codes:
            check(drawn[code], truth.rate(code), times)
    for q in (0.5, 0.9, 0.99):
        name = f"p{round(q * 100)}"
        check(page.drawn(f"{name} Latency")[name], truth.percentile(q), times, WIDTH)
        check(page.drawn("Time to First Byte")[name], truth.percentile(q, FIRST_BYTE), times, WIDTH)
        check(page.drawn("Queue Time")[name], truth.percentile(q, FIRST_BYTE**2), times, WIDTH)
        assert "2.2 %" in page.text(f'section[data-panel="{name} Latency"] .note')
    mean = truth.of(lambda one: sum(one.values(one.latency)) / one.requests)
    check(page.drawn("Average Latency")["average"], mean, times, 1e-6)
    cpu, memory = page.drawn("CPU per Replica"), page.drawn("Memory per Replica")
    assert cpu.keys() == memory.keys() == {"r1", "r2", "r3"}
    for number, replica in enumerate(CPU):
        check(cpu[replica], truth.of(lambda one: CPU[replica] if one.replicas > number else None), times)  # noqa: B023
        check(memory[replica], truth.of(lambda one: MEMORY[replica] if one.replicas > number else None), times)  # noqa: B023


def total_of(what: Callable[[int, int, int], int], time: int, one: Stretch) -> int:
    """Of all processes of all replicas."""
    return sum(what(time, replica, process) for replica in range(one.replicas) for process in range(PROCESSES))


def test_in_flight_and_replicas_are_those_of_each_tick(page: Page, load: Workload) -> None:
    page.goto("api", API, **span(load))

    def total(what: Callable[[int, int, int], int]) -> Callable[[int], float | None]:
        def at(time: int) -> float | None:
            one = load.stretch_at(time, 40)  # a gauge that ended is seen for less
            return None if one is None else total_of(what, time, one)

        return at

    times = page.times("In Flight Request")
    drawn = page.drawn("In Flight Request")
    check(drawn["in flight"], total(in_flight), times)
    check(drawn["peak"], total(peak), times)
    replicas = page.drawn("Active Replicas")
    truth = Truth(load, 40)
    check(replicas["up"], truth.of(lambda one: one.replicas), times)
    check(replicas["requested"], truth.of(lambda one: one.requested), times)


def test_the_heatmap_holds_all_requests_where_they_belong(page: Page, load: Workload) -> None:
    page.goto("api", API, **span(load))
    bands = page.drawn("Latency Heatmap")
    times = page.times("Latency Heatmap")
    truth = Truth(load)
    rate, median = truth.rate(""), truth.percentile(0.5)
    checked = 0
    for at in times:
        wanted = rate(at)
        if wanted is None:
            continue
        counts = {name: line[at] for name, line in bands.items()}
        assert sum(counts.values()) == pytest.approx(wanted)
        # The names of the bands are their bounds, `80 ms to 95.1 ms`: half of the requests are below the median's band or in it.
        below = 0.0
        for name, count in counts.items():
            below += count
            if below >= wanted / 2:
                low, high = (seconds(part) for part in name.split(" to "))
                assert low * 0.97 <= (median(at) or 0) <= high * 1.03, (at, name)
                break
        checked += 1
    assert checked > 4


def seconds(text: str) -> float:
    """`80 ms` as the page writes it."""
    value, unit = text.split(" ")
    return float(value) * {"s": 1, "ms": 1e-3, "µs": 1e-6}[unit]


def test_a_gap_is_a_gap(page: Page, load: Workload) -> None:
    page.goto("api", API, **span(load))
    down = [at for at in page.times("Request Rate") if load.is_down(at)]
    assert len(down) > 10
    for title in ("Request Rate", "In Flight Request", "Active Replicas", "p99 Latency", "CPU per Replica"):
        for name, line in page.drawn(title).items():
            assert not [at for at in down if at in line], (title, name)
            assert 0 not in line.values() or title == "CPU per Replica", (title, name)


def test_no_request_falls_between_the_points_of_a_long_time(page: Page, load: Workload) -> None:
    day = 24 * 3600
    page.goto("api", API, from_=load.end // 180 * 180 + 180 - day, to=load.end // 180 * 180 + 180)
    times = page.times("Request Rate")
    step = times[1] - times[0]
    assert step == 180
    assert "3m" in page.text('section[data-panel="Request Rate"] .note')
    truth = Truth(load, step)
    check_some = {
        "Request Rate": ("requests", truth.rate(""), 1e-9),
        "p99 Latency": ("p99", truth.percentile(0.99), WIDTH),
    }
    for title, (name, wanted, within) in check_some.items():
        line = page.drawn(title)[name]
        known = {at: value for at in times if (value := wanted(at)) is not None}
        assert known
        for at, value in known.items():
            assert line[at] == pytest.approx(value, rel=within), (title, at)
    # Means and peaks of all records of a step, of which each counts.
    drawn = page.drawn("In Flight Request")
    whole = [at for at in times if load.stretch_at(at, step)]
    for at in whole:
        one = load.stretch_at(at, step)
        assert one is not None
        ticks = range(at - step + TICK, at + TICK, TICK)
        assert drawn["in flight"][at] == pytest.approx(
            sum(total_of(in_flight, tick, one) for tick in ticks) / len(ticks)
        )
        assert drawn["peak"][at] == max(total_of(peak, tick, one) for tick in ticks)


def test_the_legend_tells_the_values_under_the_cursor_in_all_panels(page: Page, load: Workload) -> None:
    page.goto("api", API, **span(load))
    at = load.start + 450  # in the stretch with errors
    area = page.chart("5XX Responses")
    # The picture is as wide as the time; a point is some 4 pixels wide.
    x = area["x"] + area["width"] * (at - load.start) / (load.end - load.start)
    page.call("mouse.move", x, area["y"] + area["height"] / 2)
    clock = time.strftime("%H:%M:%S", time.gmtime(at))
    until(lambda: page.text('section[data-panel="5XX Responses"] .at') == clock)
    legend = {
        series: page.text(f'section[data-panel="5XX Responses"] .key[data-series="{series}"] .value')
        for series in ("5XX", "500", "503")
    }
    assert legend == {"5XX": "1.2", "500": "0.7", "503": "0.5"}
    # The other panels tell of the same time.
    wanted = Truth(load).percentile(0.5)(at)
    assert wanted is not None
    for title in TITLES:
        assert page.text(f'section[data-panel="{title}"] .at') == clock, title
    shown = seconds(page.text('section[data-panel="p50 Latency"] .key[data-series="p50"] .value'))
    assert shown == pytest.approx(wanted, rel=WIDTH + 0.005)


def test_the_overview_counts_all_requests_and_leads_to_the_api(page: Page, load: Workload) -> None:
    page.goto(range="1h")
    row = f'tr[data-api="{API}"]'
    cells = {
        name: page.text(f'{row} [data-column="{name}"]').strip()
        for name in ("api", "2XX", "4XX", "5XX", "avg request", "status")
    }
    wanted = {f"{klass}XX": sum(n for code, n in load.requests.items() if code.startswith(klass)) for klass in "245"}
    assert {name: int(re.sub(r"\D", "", cells[name])) for name in wanted} == wanted
    total = sum(sum(one.values(one.latency)) * (one.seconds // TICK) for _, one in load.stretches)
    assert seconds(cells["avg request"]) == pytest.approx(total / load.requests.total(), rel=0.005)
    assert page.call("getAttribute", f'{row} [data-column="rate"] .spark path.line', "d").count("L") > 5
    page.act("click", f"{row} a")
    assert page.hash == f"#/api/{API}?range=1h"
    assert page.text("h1") == API
    facts = [fact for fact in page.texts(".fact") if fact.startswith("2XX ")]
    assert [re.sub(r"\D", "", fact[4:]) for fact in facts] == [str(wanted["2XX"])]


def test_custom_metrics_are_found_and_drawn_by_what_they_are(page: Page, load: Workload) -> None:
    page.goto("metrics", **span(load))
    assert list(page.panels()) == ["cache_entries", "prompt_seconds", "tokens_total"]
    times = page.times("tokens_total")
    truth = Truth(load)
    check(page.drawn("tokens_total")["all"], truth.of(lambda one: one.requests * sum(MODELS.values()) / TICK), times)

    def of_all(one: Stretch) -> list[float]:
        return [value * share for value in one.values(one.latency) for share in MODELS.values()]

    sizes = page.drawn("prompt_seconds")
    for q in (0.5, 0.9, 0.99):
        check(sizes[f"p{round(q * 100)}"], truth.of(lambda one: exact(of_all(one), q)), times, WIDTH)  # noqa: B023
    gauges = page.drawn("cache_entries")
    for model, share in MODELS.items():
        [line] = [line for name, line in gauges.items() if f"model={model}" in name]
        check(line, cache_entries(load, share), times)
    page.call("fill", '[data-control="search"]', "tok")
    until(lambda: page.evaluate(SHOWN) == ["tokens_total"])
    assert "q=tok" in page.hash


SHOWN = """() => [...document.querySelectorAll("section.panel")].filter((one) => one.offsetParent).map((one) => one.dataset.panel)"""


def cache_entries(load: Workload, share: int) -> Callable[[int], float | None]:
    return lambda at: share * 100 + (at // TICK) % 4 if load.stretch_at(at, 40) else None


@pytest.mark.parametrize("metric", ["tokens_total", "cache_entries", "prompt_seconds"])
def test_a_metric_is_split_by_any_of_its_tags(page: Page, load: Workload, metric: str) -> None:
    page.goto("metrics", metric, **span(load))
    assert page.texts("[data-tag]") == ["nothing", "api_id", "api_name", "model"]
    page.act("click", '[data-tag="model"]')
    assert "by=model" in page.hash
    truth = Truth(load)
    titles = list(page.panels())
    times = page.times(titles[0])

    def by_model(title: str, value: Callable[[Stretch, int], float], within: float = 1e-9) -> None:
        drawn = page.drawn(title)
        assert drawn.keys() == MODELS.keys()
        for model, share in MODELS.items():
            check(drawn[model], truth.of(lambda one: value(one, share)), times, within)  # noqa: B023

    if metric == "tokens_total":
        assert titles == ["Rate by model"]
        by_model(titles[0], lambda one, share: one.requests * share / TICK)
    elif metric == "cache_entries":
        assert titles == ["Value by model"]
        drawn = page.drawn(titles[0])
        for model, share in MODELS.items():
            check(drawn[model], cache_entries(load, share), times)
    else:
        assert titles == [
            *(f"p{q} by model" for q in (50, 90, 99)),
            "Heatmap",
            "Values per second by model",
            "Mean by model",
        ]
        for q in (0.5, 0.9, 0.99):
            title = f"p{round(q * 100)} by model"
            by_model(title, lambda one, share: exact(one.values(one.latency), q) * share, WIDTH)  # noqa: B023
        by_model("Values per second by model", lambda one, _: one.requests / TICK)
        by_model("Mean by model", lambda one, share: share * sum(one.values(one.latency)) / one.requests, 1e-6)
        heat = page.drawn("Heatmap")
        per_second = truth.of(lambda one: one.requests * len(MODELS) / TICK)
        sums = {at: sum(line.get(at, 0) for line in heat.values()) for at in page.times("Heatmap")}
        check(sums, per_second, list(sums))


def drag(page: Page, title: str, begin: float, end: float) -> None:
    """Over a panel's picture, from one share of its width to another."""
    area = page.chart(title)
    y = area["y"] + area["height"] / 2
    page.call("mouse.move", area["x"] + area["width"] * begin, y)
    page.call("mouse.down")
    page.call("mouse.move", area["x"] + area["width"] * (begin + end) / 2, y)
    page.call("mouse.move", area["x"] + area["width"] * end, y)
    page.act("mouse.up")


def fixed(page: Page) -> tuple[int, int] | None:
    """From when to when the address says."""
    found = re.search(r"from=(\d+)&to=(\d+)", page.hash)
    return (int(found[1]), int(found[2])) if found else None


def test_a_drag_over_one_panel_zooms_all_and_stays_through_a_reload(page: Page, load: Workload) -> None:
    page.goto("api", API, **span(load))
    drag(page, "p99 Latency", 0.25, 0.5)
    zoomed = fixed(page)
    assert zoomed is not None
    length = load.end - load.start
    assert zoomed[0] == pytest.approx(load.start + 0.25 * length, abs=2 * TICK)
    assert zoomed[1] == pytest.approx(load.start + 0.5 * length, abs=2 * TICK)
    before = page.drawn("p50 Latency")
    for title in TITLES:
        times = page.times(title)
        assert (times[0], times[-1]) == zoomed, title
    page.call("reload")
    page.ready()
    assert fixed(page) == zoomed
    assert page.drawn("p50 Latency") == before
    # Twice into the picture, after a second zoom: back to where the zoom began. Again: the range that was chosen, until now.
    drag(page, "p99 Latency", 0.3, 0.9)
    assert fixed(page) not in (zoomed, None)
    for wanted in ((load.start, load.end), None):
        area = page.chart("p99 Latency")
        page.act("mouse.dblclick", area["x"] + 50, area["y"] + 50)
        assert fixed(page) == wanted
    page.act("goBack")
    assert fixed(page) == (load.start, load.end)
    # So does the way back beside the ranges.
    page.act("click", '[data-control="back"]')
    assert fixed(page) is None


def test_ranges_moves_and_refresh_are_in_the_address(page: Page, load: Workload) -> None:
    page.goto("api", API)
    page.act("selectOption", '[data-control="refresh"]', "off")
    assert "refresh=off" in page.hash
    for name, length in {"15m": 900, "6h": 6 * 3600, "7d": 7 * 86_400, "2w": 14 * 86_400, "1h": 3600}.items():
        page.act("click", f'[data-control="range-{name}"]')
        assert f"range={name}" in page.hash
        times = page.times("Request Rate")
        step = times[1] - times[0]
        assert times[-1] - times[0] == pytest.approx(length, abs=2 * step)
        assert time.time() - times[-1] < step + 60
        assert len(times) <= 481
    page.act("click", '[data-control="earlier"]')
    begin, end = fixed(page) or (0, 0)
    assert end - begin == pytest.approx(3600, abs=2 * TICK)
    assert end == pytest.approx(time.time() - 1800, abs=60)
    page.act("click", '[data-control="wider"]')
    wider = fixed(page) or (0, 0)
    assert wider[1] - wider[0] == pytest.approx(7200, abs=4 * TICK)
    page.call("click", '[data-control="custom"]')
    for at, moment in enumerate((load.start, load.end)):
        local = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment))
        page.call("fill", f"form.popover label:nth-of-type({at + 1}) input", local)
    page.act("click", "form.popover button")
    assert fixed(page) == (load.start, load.end)
    assert page.times("Request Rate")[-1] == load.end
    page.act("click", '[data-control="back"]')
    assert "range=1h" in page.hash
    assert "refresh=off" in page.hash
    before = page.times("Request Rate")[-1]
    until(lambda: time.time() >= before + TICK + 1)
    assert page.refreshed()
    assert page.times("Request Rate")[-1] > before


def test_a_page_asks_anew_by_itself_and_whoever_uses_it_stays_where_they_are(page: Page) -> None:
    page.goto("api", API, refresh="10s", range="15m")
    page.call("click", 'section[data-panel="Request Rate"] details.promql summary')
    page.call("keyboard.press", "Tab")
    assert page.focused().startswith("A Explore #/explore?")
    before = page.times("Request Rate")[-1]
    until(lambda: page.times("Request Rate")[-1] > before, 30)
    page.ready()
    assert page.focused().startswith("A Explore #/explore?")


def test_the_keyboard_is_enough(page: Page, load: Workload) -> None:
    page.goto(refresh="off")
    page.press_until("Tab", f"A {API}")
    page.act("keyboard.press", "Enter")
    assert page.hash == f"#/api/{API}?refresh=off"
    page.press_until("Tab", "SUMMARY show PromQL")
    page.call("keyboard.press", "Enter")
    code = f'sum(rate(cortex_api_requests_total{{api_name="{API}"}}[1m]))'
    assert page.text('section[data-panel="Request Rate"] details.promql code') == code
    page.call("keyboard.press", "Tab")
    assert page.focused().startswith("A Explore #/explore?")
    # What has the focus is seen.
    outline = "() => getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"
    page.press_until("Shift+Tab", "A APIs")
    page.act("keyboard.press", "Enter")
    assert page.hash == "#/?refresh=off"
    # Pictures are read off with arrows.
    page.goto("api", API, **span(load))
    page.press_until("Tab", "DIV")
    page.call("keyboard.press", "End")
    page.call("keyboard.press", "ArrowLeft")
    at = time.strftime("%H:%M:%S", time.gmtime(load.end - TICK))
    until(lambda: page.text('section[data-panel="p99 Latency"] .at') == at)
    assert page.text('section[data-panel="Request Rate"] .key .value') == "4.3"
    label = page.call("getAttribute", 'section[data-panel="Request Rate"] [role=img]', "aria-label")
    assert "last 4.3" in label


def test_explore_marks_where_an_expression_is_wrong_and_shows_what_is_right(page: Page, load: Workload) -> None:
    page.goto("explore", **span(load))

    def run(text: str) -> None:
        page.call("fill", "textarea", text)
        page.act("keyboard.press", "Enter")

    for text, mark in {"sum(rate(up[1m])": (16, " "), '{a="é"} +\n + * 2': (13, "*"), "1 + ☃": (4, "☃")}.items():
        run(text)
        assert (page.evaluate('() => Number(document.querySelector("mark").dataset.at)'), page.texts("mark")) == (
            mark[0],
            [mark[1]],
        ), text
        # The cursor is there too.
        assert page.evaluate('() => document.querySelector("textarea").selectionStart') == mark[0]
    run("sum by (response_code) (increase(cortex_api_requests_total[1m])) / 60")
    assert page.texts(".wrong mark") == []
    assert page.panels() == {"Graph": "drawn"}
    drawn = page.drawn("Graph")
    truth = Truth(load)
    check(drawn["{response_code=500}"], truth.rate("500"), page.times("Graph"))
    table = page.evaluate(
        '() => [...document.querySelectorAll(".answer tbody tr")].map((row) => [...row.cells].map((cell) => cell.textContent))'
    )
    newest = dict(table)
    assert newest.keys() == load.requests.keys()
    assert float(newest["200"]) == pytest.approx(4.3)
    # The browser says by itself that an answer was an error.
    assert {re.sub(r"status of 400.*", "400", one) for one in page.complaints()} == {
        "console: Failed to load resource: the server responded with a 400"
    }
    # A panel leads here with its expression.
    page.goto("api", API, **span(load))
    page.call("click", 'section[data-panel="p90 Latency"] details.promql summary')
    page.act("click", 'section[data-panel="p90 Latency"] details.promql a')
    assert page.hash.startswith("#/explore?")
    assert page.panels() == {"Graph": "drawn"}
    [line] = page.drawn("Graph").values()
    check(line, truth.percentile(0.9), page.times("Graph"), WIDTH)


PAGES: list[tuple[str, ...]] = [(), ("api", API), ("metrics",), ("metrics", "prompt_seconds"), ("loss",), ("explore",)]

# Texts whose contrast with what is behind them is below 4.5 : 1, which WCAG asks for.
FAINT = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const light = (rgb) => {
    const [r, g, b] = rgb.slice(0, 3).map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const one of document.body.querySelectorAll("*")) {
    const text = [...one.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data.trim()).join("");
    if (text === "" || !one.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    let [behind, back] = [one, [0, 0, 0, 0]];
    while (behind && (back[3] ?? 1) < 1) {
      back = parse(getComputedStyle(behind).backgroundColor);
      behind = behind.parentElement;
    }
    const [a, b] = [light(parse(getComputedStyle(one).color)), light(back)];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) found.push(`${contrast.toFixed(2)} ${one.tagName}.${one.className}: ${text.slice(0, 40)}`);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_follow_the_scheme_and_are_readable_in_it(
    browser: Browser, collector: Collector, load: Workload, scheme: str
) -> None:
    page = browser.page(collector.web, colorScheme=scheme)
    for path in PAGES:
        page.goto(*path, **span(load), expr="up + vector(1)", by="model")
        assert page.evaluate(FAINT) == [], path
    # Another scheme while one looks: the pictures are those of a page that was opened in it.
    page.goto("api", API, **span(load))
    other = "dark" if scheme == "light" else "light"
    opened = browser.page(collector.web, colorScheme=other)
    opened.goto("api", API, **span(load))
    wanted = opened.evaluate(COLORS)
    assert page.evaluate(COLORS)[0] != wanted[0]
    page.call("emulateMedia", {"colorScheme": other})
    until(lambda: page.evaluate(COLORS) == wanted)
    lightness = sum(map(int, re.findall(r"\d+", wanted[0])))
    assert (lightness < 100) == (other == "dark")
    opened.close()
    page.close()


COLORS = """() => [
  getComputedStyle(document.body).backgroundColor,
  ...[...document.querySelectorAll("canvas")].map((one) => one.toDataURL()),
]"""


def test_pages_are_readable_at_400_pixels(browser: Browser, collector: Collector, load: Workload) -> None:
    page = browser.page(collector.web, viewport={"width": 400, "height": 800}, hasTouch=True)
    for path in PAGES:
        page.goto(*path, **span(load), expr=f"{{api_name={'x' * 200!r}}} or up", by="model")
        width, wide = page.evaluate(
            """() => [document.documentElement.scrollWidth, [...document.querySelectorAll("body *")]
                .filter((one) => one.checkVisibility() && one.getBoundingClientRect().right > 400.5)
                .filter((one) => !one.closest(".scroll, .numbers, pre, .skip, .chart"))
                .map((one) => `${one.tagName}.${one.className}`)]"""
        )
        assert (width, wide) == (400, []), path
    page.close()


# What names and labels may be, and what must not come of them.
HOSTILE = [
    "<img src=x onerror=hit()>",
    '"><script>hit()</script>',
    "</title></textarea></script><svg onload=hit()>",
    "javascript:hit()",
    "&lt;b&gt;&amp;&#60;",
    '"quoted" \\ back\\\\slashed \\n',
    "'; hit(); '${hit()}`{{hit()}}<%= hit() %>",
    "line\nbreak\tand\rreturn",
    "\u202eright to left \u2066mark\u2069 \u200b\ufeff",
    "nul \x00 \x01 \x1b[31m \x7f bell",
    "100% %zz %2f %00 ?a=b&c=d#e",
    "../../etc/passwd/./..",
    " begins and ends with spaces ",
    "__proto__",
    "constructor",
    "\U0001f9e8 \u0939\u093f \u0065\u0301 \uffff",
    "x" * 10_000,
    "<b>" * 700,
]

# Every element there is, but those that our pages are made of; and whatever could run.
ALIEN = """() => {
  const ours = new Set(("a body button circle canvas code datalist details div footer form h1 h2 header input label li main mark nav " +
    "noscript ol option p path pre script section select span strong summary svg table tbody td textarea th thead tr ul").split(" "));
  const found = [];
  for (const one of document.body.querySelectorAll("*")) {
    const name = one.localName;
    if (!ours.has(name)) found.push(name);
    for (const { name: attribute, value } of one.attributes) {
      if (attribute.startsWith("on")) found.push(`${name} ${attribute}`);
      if ((attribute === "href" || attribute === "src" || attribute === "action") && !/^(#|http:\\/\\/ok\\.example\\/)/.test(value)) {
        found.push(`${name} ${attribute}=${value.slice(0, 80)}`);
      }
    }
  }
  if (document.querySelectorAll("script").length !== 1) found.push("a script");
  if (window.hits) found.push(`ran ${window.hits}`);
  return found;
}"""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    """With names of APIs, of metrics, of labels and their values that would like to be markup."""
    folder = tmp_path_factory.mktemp("hostile")
    collector = Collector(folder, "127.0.0.1:0", "127.0.0.1:0", "--enable-remote-write-receiver")
    written = Written()
    now = int(time.time()) // TICK * TICK
    for name in HOSTILE:
        for at in range(now - 120, now + TICK, TICK):
            api = {"api_name": name, "api_id": name}
            written.add(at, "cortex_api_requests_total", {**api, "response_code": "200"}, (at - now + 120) * 3)
            written.add(at, "cortex_api_replica_start_timestamp_seconds", {**api, "replica": name}, now)
            written.add(at, "cortex_api_info", {**api, "endpoint": name}, 1)
            written.add(at, name, {"api_name": name, name: name}, 1)
            written.add(at, name, {"api_name": name}, 1)
    written.send(f"http://{collector.web}")
    host, port = collector.udp.split(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for name in HOSTILE:
            # What a datagram can hold of it; some are refused, and the account of loss shows the newest.
            text = re.sub(r"[\n|]", "", name)[:3000]
            sender.sendto(
                f"sent:1|c|#tag:{text},{text}\nsent{text}:1|c\n{text}:x|c\nsent{text}:1|zz".encode(), (host, int(port))
            )
    until(lambda: collector.query("count(sent)"))
    yield collector
    collector.stop()


def seen(text: str) -> str:
    """What is left of a text where white space is one space."""
    return " ".join(text.replace("\x00", "\ufffd").split())


def test_hostile_names_are_text_on_every_page(browser: Browser, hostile: Collector) -> None:
    page = browser.page(hostile.web, viewport={"width": 400, "height": 800})
    page.call("addInitScript", {"content": "window.hit = () => { window.hits = (window.hits ?? 0) + 1; }"})

    def check_harmless(where: str) -> None:
        assert page.evaluate(ALIEN) == [], where
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 400, where

    page.goto(refresh="off", range="15m")
    check_harmless("overview")
    links = dict(
        page.evaluate(
            """() => [...document.querySelectorAll("tr[data-api]")].map((row) =>
                [row.querySelector("a").textContent, row.querySelector("a").getAttribute("href")])"""
        )
    )
    assert sorted(links) == sorted(HOSTILE)
    for number, name in enumerate(HOSTILE):
        about = f"{number}: {name[:40]!r}"
        # Links within the page, as a click follows them.
        page.act("evaluate", FOLLOW, links[name])
        assert page.texts("h1") == [name], about
        panels = page.panels()
        assert (panels["Request Rate"], panels["Active Replicas"]) == ("drawn", "drawn"), about
        assert page.drawn("Request Rate")["requests"], about
        page.evaluate("() => { for (const one of document.querySelectorAll('details')) one.open = true; }")
        check_harmless(f"api {about}")
        escaped = quote(name, safe="")
        page.act("evaluate", FOLLOW, f"#/metrics/{escaped}?by={escaped}&refresh=off&range=15m")
        assert page.texts("h1") == [name], about
        assert set(page.panels().values()) == {"drawn"}, about
        [title] = page.panels()
        assert page.drawn(title).keys() == {name, f"no {name}"}, about
        check_harmless(f"metric {about}")
    page.goto("metrics", refresh="off", range="15m")
    assert {*HOSTILE} <= set(page.panels())
    check_harmless("metrics")
    page.goto("loss")
    dropped = hostile.status("ingest")["dropped"]
    assert len(dropped) > 1
    until(lambda: len(page.texts(".example code")) == len(dropped))
    assert sorted(map(seen, page.texts(".example code"))) == sorted(seen(one["example"]) for one in dropped.values())
    check_harmless("loss")
    for name in HOSTILE:
        expr = quote(f'{{__name__=~".+", api_name={quoted(name)}}}', safe="")
        page.act("evaluate", FOLLOW, f"#/explore?refresh=off&expr={expr}")
        assert len(page.texts(".answer tbody tr")) == 5
        check_harmless("explore")
        page.call("fill", "textarea", name)
        page.act("keyboard.press", "Enter")
        check_harmless("explore, an error")
    complaints = [one for one in page.complaints() if "status of 400" not in one]
    assert complaints == []
    page.close()


FOLLOW = "(href) => { location.hash = href; }"


def quoted(text: str) -> str:
    """As a string of PromQL."""
    return '"' + "".join(c if c.isalnum() else f"\\U{ord(c):08x}" for c in text) + '"'


def test_the_policy_lets_no_other_script_run(page: Page) -> None:
    page.goto()
    page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.ran = true";
          const image = document.createElement("img");
          image.setAttribute("onerror", "window.ran = true");
          image.src = "nothing";
          document.body.append(script, image);
        }"""
    )
    told: list[str] = []

    def are_told() -> bool:
        told.extend(page.complaints())
        return len(told) >= 2 and bool(page.evaluate("() => document.querySelector('img').complete"))

    until(are_told)
    assert page.evaluate("() => window.ran ?? null") is None
    for what in ("inline script", "inline event handler"):
        wanted = f"{what} violates the following Content Security Policy directive 'script-src 'self''"
        assert any(wanted in one for one in told), told
    page.complaints()


@pytest.mark.parametrize(
    ("path", "hints"),
    [
        ((), ["No APIs yet.", "cortex-serve predictor.py", "cortex doctor"]),
        (
            ("api", "iris"),
            ['No API "iris"', "cortex-serve predictor.py --api-name", "No requests in this time. Send one to iris"],
        ),
        (("metrics",), ["No custom metrics in this time.", "MetricsClient()", "cortex doctor"]),
        (("metrics", "jobs"), ["Nothing of this name in this time.", "cortex doctor jobs"]),
        (("loss",), ["Nothing was lost", "No client of cortex_metrics called in this time."]),
        (("explore",), ["A line of PromQL", "rate(cortex_api_requests_total[1m])"]),
        (("nonsense",), ["No such page", "To the APIs"]),
    ],
)
def test_what_is_empty_says_what_to_do(
    browser: Browser, empty: Collector, path: tuple[str, ...], hints: list[str]
) -> None:
    page = browser.page(empty.web)
    page.goto(*path)
    text = page.text("main")
    for hint in hints:
        assert hint in text
    if path != ("loss",):
        assert "drawn" not in page.panels().values()
    page.close()


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    started = Collector(tmp_path_factory.mktemp("empty"))
    yield started
    started.stop()


@pytest.fixture
def sending(collector_alone: Collector) -> Iterator[Collector]:
    """One that gets the same twice a second, all the time."""
    host, port = collector_alone.udp.split(":")
    is_ended = threading.Event()
    lines = [
        "cortex_api_requests_total:5|c|#api_name:live,api_id:v1,response_code:200",
        "cortex_api_request_duration_seconds:0.1:0.2:0.3|h|#api_name:live,api_id:v1",
        "cortex_api_replica_start_timestamp_seconds:1790000000|g|#api_name:live,api_id:v1,replica:r1",
        "cortex_api_in_flight_requests:3|g|#api_name:live,api_id:v1,replica:r1,process:p1",
    ]

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            while not is_ended.wait(0.5):
                with contextlib.suppress(OSError):
                    sender.sendto("\n".join(lines).encode(), (host, int(port)))

    thread = threading.Thread(target=send)
    thread.start()
    yield collector_alone
    is_ended.set()
    thread.join()


@pytest.fixture
def collector_alone(tmp_path: Path) -> Iterator[Collector]:
    started = Collector(tmp_path)
    yield started
    started.stop()


def test_a_collector_that_stops_is_said_and_never_drawn_as_zero(browser: Browser, sending: Collector) -> None:
    page = browser.page(sending.web)
    until(lambda: sending.query("rate(cortex_api_requests_total[1m])"))
    page.goto("api", "live", range="15m", refresh="10s")
    steady = ("Request Rate", "In Flight Request", "Active Replicas", "p50 Latency")
    until(lambda: page.refreshed() and {page.panels()[title] for title in steady} == {"drawn"}, 60)
    assert page.call("isVisible", ".banner") is False
    before = {title: page.drawn(title) for title in steady}
    again = sending
    try:
        assert sending.stop() == 0
        page.call("click", '[data-control="refresh-now"]')
        page.call("waitForSelector", '.banner[role="alert"]')
        said = page.text(".banner")
        assert "The collector does not answer since" in said
        assert "Asking again every 3 s" in said
        assert page.evaluate("() => document.body.dataset.connection") == "down"
        # What was drawn stays, and nothing more is drawn.
        assert {title: page.drawn(title) for title in steady} == before
        assert page.evaluate("() => document.querySelectorAll('[data-state=error]').length") == 0
        # Another page has nothing to show, which it does not call nothing.
        for other in ("", "loss"):
            page.call("goto", f"http://{sending.web}/#/{other}?range=1h")
            page.call("waitForSelector", 'main p.message[role="alert"]')
            assert page.text('main p.message[role="alert"]') == "The collector does not answer."
        page.call("goto", f"http://{sending.web}/#/api/live?range=1h")
        assert page.text(".banner") == said
        # It will be back at the same address.
        again = sending.again()
        until(lambda: not page.call("isVisible", ".banner"), 30)
        page.ready()
        assert page.evaluate("() => document.body.dataset.connection") == "up"
        newest = max(before["Request Rate"]["requests"])
        until(lambda: page.refreshed() and max(page.drawn("Request Rate")["requests"]) > newest, 60)
        for title in steady:
            for name, line in page.drawn(title).items():
                assert line, (title, name)
                assert min(line.values()) > 0, (title, name)
        assert set(page.drawn("Active Replicas")["up"].values()) == {1}
        refused = [one for one in page.complaints() if "ERR_CONNECTION_REFUSED" not in one]
        assert refused == []
        page.close()
    finally:
        again.stop()


def test_a_collector_that_hangs_is_said_too(browser: Browser, collector_alone: Collector) -> None:
    page = browser.page(collector_alone.web)
    page.goto("loss", range="15m", refresh="10s")
    assert page.call("isVisible", ".banner") is False
    os.kill(collector_alone.process.pid, signal.SIGSTOP)
    try:
        page.call("click", '[data-control="refresh-now"]')
        page.call("waitForSelector", '.banner[role="alert"]')
        assert "The collector does not answer since" in page.text(".banner")
    finally:
        os.kill(collector_alone.process.pid, signal.SIGCONT)
    until(lambda: not page.call("isVisible", ".banner"))
    page.close()


def test_the_account_of_loss_is_what_was_lost(browser: Browser, tmp_path: Path) -> None:
    """Every place once: dropped by the client, in the kernel, on the way, refused by the collector."""
    collector = Collector(tmp_path, "127.0.0.1:0", "127.0.0.1:0", "--receive-buffer", "4KiB")
    page = browser.page(collector.web)
    host, port = collector.udp.split(":")
    to = (host, int(port))
    try:
        with MetricsClient(collector.url) as client, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(1000):
                client.increment("jobs")
            for value in (math.nan, math.inf, math.nan):
                client.gauge("level", value)
            client.increment("jobs", -1)
            client.flush()
            for line in (b"jobs:1|x", b"jobs:1|x", b"noise", b"level:one|g", b"level:two|g", b"jobs:1|g", b"jobs:2|g"):
                sender.sendto(line, to)
            # The first and the fifth of a process: three never came.
            for number in (1, 5):
                sender.sendto(
                    b"cortex_client_payload_sequence:%d|g|#client_id:00000000000000aa\nother:1|c" % number, to
                )
            until(lambda: collector.status("ingest")["dropped"].keys() >= {"unknown_type", "type_conflict"})
            until(lambda: collector.status("ingest")["payloadsMissing"] == 3)
            # While it does not read, the kernel has room for few.
            counted = collector.status("ingest")["datagrams"]
            collector.process.send_signal(signal.SIGSTOP)
            for _ in range(200):
                sender.sendto(b"flood:1|c|#" + b"x" * 1000, to)
            collector.process.send_signal(signal.SIGCONT)
            until(lambda: collector.query("sum(cortex_collector_kernel_drops_total)").get("", 0) > 0)
            until(
                lambda: (
                    collector.status("ingest")["datagrams"] + collector.status("ingest")["kernelDrops"] >= counted + 200
                )
            )
            drops = collector.status("ingest")["kernelDrops"]
            came = collector.query("sum(flood)")[""]
            assert drops == 200 - came
            until(lambda: collector.query("sum(cortex_client_calls_total)") == {"": 1004})
            until(lambda: collector.query("sum(cortex_client_dropped_total)") == {"": 4})
            page.goto("loss", range="15m", refresh="off")
            rows = page.evaluate(
                """() => [...document.querySelectorAll("tr[data-where]")].map((row) =>
                    [row.dataset.where, row.dataset.why, Number(row.querySelector("[data-value]").dataset.value), row.lastChild.textContent])"""
            )
            lost = {(where, why): value for where, why, value, _ in rows if value}
            socket_name = f"udp://{collector.udp}"
            assert lost == {
                ("in the client", "not_finite"): 3,
                ("in the client", "negative_increment"): 1,
                ("in the kernel", socket_name): drops,
                ("on the way", "payloads that never came"): 3,
                ("refused by the collector", "unknown_type"): 2,
                ("refused by the collector", "no_name"): 1,
                ("refused by the collector", "bad_value"): 2,
                ("refused by the collector", "type_conflict"): 2,
            }
            assert page.texts('[aria-label="Names with two types"] tbody td') == [
                "jobs",
                "2",
                "gauge",
                "jobs",
                "counter",
            ]
            # Each with what to do.
            assert all(todo for _, _, value, todo in rows if value)
            account = {
                key: int(re.sub(r"\D", "", page.text(f'[data-account="{key}"] strong')))
                for key in ("calls", "messages", "stored")
            }
            status = collector.status("ingest")
            assert account["calls"] == 1004
            assert account["messages"] - account["stored"] == 7
            assert account["messages"] == pytest.approx(status["messages"], abs=20)
            # What is equal is not told once for all: of bad_value, unknown_type and type_conflict there are as many.
            assert page.text(".verdict.bad") == (
                f"Lost in the last 15m: 4 calls in the client; {drops} datagrams in the kernel; 3 payloads on the way; "
                "7 messages refused by the collector."
            )
            # A rate is there a tick later.
            until(lambda: page.refreshed() and max(page.drawn("Lost").get("kernel drops", {0: 0}).values()) > 0)
            page.close()
    finally:
        collector.process.send_signal(signal.SIGCONT)
        collector.stop()


@pytest.fixture
def written(tmp_path: Path) -> Iterator[tuple[Collector, int]]:
    """With series of remote write that are not in the metadata, so their values alone tell what they are; up to when."""
    collector = Collector(tmp_path, "127.0.0.1:0", "127.0.0.1:0", "--enable-remote-write-receiver")
    end = int(time.time()) // TICK * TICK
    series = Written()
    half = 60
    for at in range(2 * half + 1):
        moment = end - (2 * half - at) * TICK
        series.add(moment, "restarted", {}, 100 + at if at < half else at - half)
        series.add(moment, "risen", {}, 3 * at)
        series.add(moment, "wavy", {}, at % 7)
        for name, count in {"balance": at, "balance_restarted": at % half}.items():
            series.add(moment, name, {}, below_zero(count))
        series.add(moment - 3600, "gone_size", {}, below_zero(at))
    series.send(f"http://{collector.web}")
    yield collector, end
    collector.stop()


def below_zero(count: int) -> dict[str, object]:
    """A histogram of so many times -64."""
    bucket = math.ceil(math.log2(64) * 32)
    return {
        "schema": 5,
        "count": count,
        "sum": -64.0 * count,
        "zero_count": 0,
        "positive": (0, []),
        "negative": (bucket, [count]),
    }


def test_what_was_written_counts_through_resets_and_below_zero(
    browser: Browser, written: tuple[Collector, int]
) -> None:
    collector, end = written
    page = browser.page(collector.web)
    time = {"from_": end - 1800, "to": end, "refresh": "off"}

    def facts(name: str, **params: str) -> dict[str, str]:
        page.goto("metrics", name, **time, **params)
        return dict(one.replace("\u2212", "-").rsplit(" ", 1) for one in page.texts(".facts .fact"))

    # 59 before it began anew at zero, 60 after that.
    assert facts("restarted", as_="rate") == {"in this time": "119"}
    assert facts("balance") == {"values in this time": "120", "mean": "-64"}
    # 59 in each of two turns, and nothing in the one sample after them.
    assert facts("balance_restarted") == {"values in this time": "118", "mean": "-64"}
    drawn = list(page.drawn("Mean")["mean"].values())
    assert drawn == pytest.approx([-64] * len(drawn))
    page.close()


def test_what_nobody_counts_any_more_is_told_by_its_values(browser: Browser, written: tuple[Collector, int]) -> None:
    """A counter that was silent for a day is not in the metadata."""
    collector, end = written
    page = browser.page(collector.web)
    time = {"from_": end - 1800, "to": end, "refresh": "off"}
    page.goto("metrics", "wavy", **time)
    assert page.texts(".facts .kind") == ["gauge"]
    page.goto("metrics", "risen", **time)
    assert page.texts(".facts .kind") == ["counter"]
    assert list(page.drawn("Rate")["all"].values())[-1] == pytest.approx(0.3)
    # Who knows better says so.
    page.act("click", '[data-as="values"]')
    assert page.texts(".facts .kind") == ["gauge"]
    assert list(page.drawn("Value")["value"].values())[-1] == 360
    page.act("click", '[data-as="rate"]')
    assert list(page.panels()) == ["Rate"]
    # What has no values in a time is not listed; in a longer one it is what it is there.
    page.goto("metrics", range="15m", refresh="off")
    assert "gone_size" not in page.panels()
    assert {"balance", "restarted", "risen", "wavy"} <= set(page.panels())
    page.act("click", '[data-control="range-6h"]')
    assert page.panels()["gone_size"] == "drawn"
    assert page.drawn("gone_size").keys() == {"p50", "p90", "p99"}
    page.close()


def test_the_account_of_loss_has_samples_that_were_written_and_refused(
    browser: Browser, written: tuple[Collector, int]
) -> None:
    collector, end = written
    page = browser.page(collector.web)
    late = Written()
    for ticks in (5, 4):
        late.add(end - ticks * TICK, "risen", {}, 1e6)
    with pytest.raises(HTTPError, match="400"):
        late.send(f"http://{collector.web}")
    until(lambda: collector.query("sum(cortex_collector_remote_write_refused_total)") == {"": 2})
    page.goto("loss", range="15m", refresh="off")
    assert page.text(".verdict.bad") == "Lost in the last 15m: 2 samples refused by the collector."
    assert page.text('tr.lost [data-value="2"]') == "2 samples"
    assert page.texts("tr.lost td:nth-child(2)") == ["order"]
    page.close()


def test_a_time_that_makes_no_sense_is_shown_as_far_as_there_is_one(page: Page, load: Workload) -> None:
    tokens = load.requests.total() * sum(MODELS.values())
    for to in ("99999999999999", "1e300"):
        page.goto("metrics", "tokens_total", from_=0, to=to, refresh="off")
        # Of half a century a point is so long that the newest may have none.
        assert page.panels()["Rate"] in ("drawn", "empty")
        assert page.texts("main .message[role=alert]") == []
        [fact] = page.texts(".facts .fact")
        assert 0 < int(re.sub(r"\D", "", fact)) <= tokens


def test_metrics_of_the_client_are_found_by_themselves(browser: Browser, collector_alone: Collector) -> None:
    """With what a predictor sends: names that do not tell what they are."""
    page = browser.page(collector_alone.web)
    with MetricsClient(collector_alone.url, tags={"api_name": "live"}) as client:
        for model, count in {"v1": 31, "v2": 13}.items():
            client.increment("my_counter", count, tags={"model": model})
            client.gauge("my_gauge", count + 0.5, tags={"model": model})
            for value in range(1, count + 1):
                client.histogram("my_histogram", value, tags={"model": model})
        client.flush()
        until(lambda: collector_alone.query("sum(my_counter)") == {"": 44})
        page.goto("metrics", range="15m", refresh="off")
        # What is newer than the last whole tick is there at the next.
        until(lambda: page.refreshed() and list(page.panels().values()) == ["drawn"] * 3)
        assert page.panels() == {"my_counter": "drawn", "my_gauge": "drawn", "my_histogram": "drawn"}
        gauges = {name: list(line.values())[-1] for name, line in page.drawn("my_gauge").items()}
        assert sorted(gauges.values()) == [13.5, 31.5]
        page.act("click", 'section[data-panel="my_counter"] h2 a')
        assert page.hash.startswith("#/metrics/my_counter?")
        assert [fact for fact in page.texts(".facts > *") if fact.startswith("in this time")] == ["in this time 44"]
        page.goto("metrics", "my_histogram", range="15m", refresh="off", by="model")
        mean = page.drawn("Mean by model")
        assert {model: list(line.values())[-1] for model, line in mean.items()} == pytest.approx({"v1": 16, "v2": 7})
        for q in (0.5, 0.9, 0.99):
            drawn = page.drawn(f"p{round(q * 100)} by model")
            for model, count in {"v1": 31, "v2": 13}.items():
                wanted = exact(range(1, count + 1), q)
                assert list(drawn[model].values())[-1] == pytest.approx(wanted, rel=WIDTH)
        page.goto("api", "live", range="15m", refresh="off")
        assert page.texts(".own .links a")[:3] == ["my_counter", "my_gauge", "my_histogram"]
    page.close()
