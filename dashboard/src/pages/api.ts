// One API: the panels of Cortex's dashboard in their order, and what lies beyond them.

import { customNames } from "../custom.ts";
import { fill, h, refill } from "../dom.ts";
import type { Child } from "../dom.ts";
import { age, count, format, inSentence } from "../format.ts";
import type { Go, Load, Page } from "../page.ts";
import { edges, Panels, tableWindow } from "../page.ts";
import type { PanelSpec, Query } from "../panel.ts";
import { GAUGE_LOOKBACK, LINES_MAX, overText, threeQuantiles } from "../panel.ts";
import type { Mark } from "../plot.ts";
import { quote, selector } from "../promql.ts";
import * as prom from "../prom.ts";
import type { ApiRow, Labels } from "../prom.ts";
import type { Route } from "../route.ts";
import { linkTo, linkWith } from "../route.ts";
import { duration, TICK } from "../time.ts";
import type { TimeWindow } from "../time.ts";
import { ofClass, statusPill } from "./overview.ts";

/** How exact: the width of a bucket of schema 5. */
const EXACT = "exponential histograms, exact to 2.2 %";

/** The panels of an API. The first ten are Cortex's, with its titles. */
export function apiPanels(name: string, isByVersion: boolean): PanelSpec[] {
  // Side by side: a line for each version in the place of one for all.
  const by = isByVersion ? " by (api_id) " : "";
  const line = (whole: string) => (labels: Labels) => (isByVersion ? labels["api_id"] || "no api_id" : whole);
  const part = (what: string) => (labels: Labels) => (isByVersion ? `${labels["api_id"] || "no api_id"} ${what}` : what);
  const of = (metric: string, ...more: string[]) => selector(metric, { api_name: name }, more);
  const duration_ = of("cortex_api_request_duration_seconds");
  // Of replicas that came and went those that started last: the first by name would be the oldest.
  const newest = (w: TimeWindow) =>
    `and on (replica) topk(${LINES_MAX}, max by (replica) (last_over_time(${of("cortex_api_replica_start_timestamp_seconds")}[${duration(w.end - w.start + w.step)}] @ end())))`;
  const noRequests = `No requests in this time. Send one to ${inSentence(name)}; it is here 10 s later.`;
  return [
    {
      title: "Request Rate",
      unit: "req/s",
      note: (w) => `requests per second, ${overText(w)}`,
      queries: (w) => [
        { expr: `sum${by}(rate(${of("cortex_api_requests_total")}[${duration(w.over)}]))`, name: line("requests"), isFilled: !isByVersion },
      ],
      empty: noRequests,
    },
    {
      title: "In Flight Request",
      unit: "requests",
      note: (w) => (w.step > TICK ? `recorded every 10 s: mean and peak of each ${duration(w.step)}` : "recorded every 10 s, and the peak in between"),
      queries: (w) => {
        // Between two points of a longer step no record is left out: the mean of the sums of each tick, and the highest of them.
        const each = (over: string, sum: string) => (w.step > TICK ? `${over}_over_time(${sum}[${duration(w.step)}:${TICK}s])` : sum);
        const sum = (metric: string) => `sum${by}(${of(metric)})`;
        return [
          { expr: each("avg", sum("cortex_api_in_flight_requests")), name: part("in flight"), lookback: GAUGE_LOOKBACK, isFilled: !isByVersion },
          { expr: each("max", sum("cortex_api_in_flight_requests_peak")), name: part("peak"), lookback: GAUGE_LOOKBACK },
        ];
      },
      empty: `No replica of ${inSentence(name)} was up in this time.`,
    },
    {
      title: "Active Replicas",
      unit: "replicas",
      note: () => "replicas up, beside how many were requested",
      queries: () => [
        {
          expr: `count${by}(${of("cortex_api_replica_start_timestamp_seconds")})`,
          name: part("up"),
          lookback: GAUGE_LOOKBACK,
          isFilled: !isByVersion,
        },
        { expr: `max${by}(${of("cortex_api_replicas_requested")})`, name: part("requested"), lookback: GAUGE_LOOKBACK, isDashed: true },
      ],
      empty: `No replica of ${inSentence(name)} was up in this time: start one with cortex-serve, or put the middleware around your app.`,
    },
    ...["2", "4", "5"].map((klass, at): PanelSpec => ({
      title: `${klass}XX Responses`,
      unit: "req/s",
      note: (w) => `responses per second, ${overText(w)}, by ${isByVersion ? "version" : "code"}`,
      queries: (w) => {
        const rate = `rate(${of("cortex_api_requests_total", `response_code=~"${klass}.."`)}[${duration(w.over)}])`;
        const all = { expr: `sum${by}(${rate})`, name: line(`${klass}XX`), isFilled: !isByVersion, isTotal: true };
        return isByVersion ? [all] : [all, { expr: `sum by (response_code) (${rate})`, name: (labels) => labels["response_code"] ?? "" }];
      },
      color: [0, 1, 7][at] ?? 0,
      empty: `No ${klass}XX responses in this time.`,
    })),
    ...[0.99, 0.9, 0.5].map((q): PanelSpec => ({
      title: `p${Math.round(q * 100)} Latency`,
      unit: "s",
      note: (w) => `${overText(w)}, from ${EXACT}`,
      queries: (w) => [
        { expr: `histogram_quantile(${q}, sum${by}(rate(${duration_}[${duration(w.over)}])))`, name: line(`p${Math.round(q * 100)}`) },
      ],
      empty: noRequests,
    })),
    {
      title: "Average Latency",
      unit: "s",
      note: (w) => `mean of the requests, ${overText(w)}: exact`,
      queries: (w) => [
        {
          // Count and sum alone: of weeks they are read many times as fast as the buckets.
          expr: ["sum", "count"].map((part) => `sum${by}(rate(${of(`cortex_api_request_duration_seconds_${part}`)}[${duration(w.over)}]))`).join(" / "),
          name: line("average"),
        },
      ],
      empty: noRequests,
    },
    {
      title: "Time to First Byte",
      unit: "s",
      note: (w) => `to the first byte of the response: streaming shows here; ${overText(w)}, ${EXACT}`,
      queries: quantiles(of("cortex_api_request_first_byte_seconds")),
      empty: noRequests,
    },
    {
      title: "Queue Time",
      unit: "s",
      note: (w) => `from accepting a request to its prediction, ${overText(w)}, ${EXACT}`,
      queries: quantiles(of("cortex_api_request_queue_seconds")),
      empty: "No queue times in this time: cortex-serve records them, and apps that call the ASGI middleware's queued(scope).",
    },
    {
      title: "Latency Heatmap",
      unit: "s",
      kind: "heatmap",
      note: (w) => `requests per second by how long they took, ${overText(w)}`,
      queries: (w) => [{ expr: `sum(rate(${duration_}[${duration(w.over)}]))`, name: () => "requests" }],
      empty: noRequests,
    },
    {
      title: "CPU per Replica",
      unit: "cores",
      note: (w) => `processor time of all processes of a replica, ${overText(w)}; of the ${LINES_MAX} replicas that started last`,
      queries: (w) => [
        { expr: `sum by (replica) (rate(${of("cortex_api_process_cpu_seconds_total")}[${duration(w.over)}])) ${newest(w)}`, name: (l) => l["replica"] ?? "" },
      ],
      empty: "No processor time was recorded: it needs psutil beside the client (pip install psutil).",
    },
    {
      title: "Memory per Replica",
      unit: "bytes",
      note: () => `resident memory of all processes of a replica; of the ${LINES_MAX} replicas that started last`,
      queries: (w) => [
        {
          expr: `sum by (replica) (${of("cortex_api_process_resident_memory_bytes")}) ${newest(w)}`,
          name: (l) => l["replica"] ?? "",
          lookback: GAUGE_LOOKBACK,
        },
      ],
      empty: "No memory was recorded: it needs psutil beside the client (pip install psutil).",
    },
  ];
}

/** p50, p90 and p99 of a histogram in one picture. */
export function quantiles(histogram: string): (w: TimeWindow) => Query[] {
  return (w) => [threeQuantiles(`sum(rate(${histogram}[${duration(w.over)}]))`)];
}

export function apiPage(name: string, route: () => Route, go: Go): Page {
  const facts = h("div", { class: "facts" });
  const message = h("div", {});
  const isByVersion = route().params.get("versions") === "apart";
  const panels = new Panels(apiPanels(name, isByVersion), route, go);
  const versions = h("div", { class: "filters", hidden: true });
  const own = h("section", { class: "own" });
  const only = route().params.get("panel");
  const element = h(
    "div",
    {},
    h("p", { class: "crumbs" }, h("a", { href: linkTo(route(), []) }, "APIs"), ...(only === null ? [] : [" / ", h("a", { href: linkTo(route(), ["api", name]) }, name)])),
    h("h1", {}, name),
    facts,
    versions,
    message,
    panels.element,
    only === null ? own : null,
  );
  return {
    title: name,
    element,
    load: async (load) => {
      const pictures = panels.load(load);
      const rows = prom.apis("2w", load.signal).then((answer) => {
        const row = answer.data.find((row) => row.api === name);
        refill(facts, ...(row ? factsOf(row) : []));
        fill(message, row ? null : unknown(name, answer.data, route()));
      });
      const found = versionsOf(name, load).then((all) => {
        const [from, to] = edges(load);
        panels.mark(all.filter(({ time }) => time > from && time < to));
        versions.hidden = all.length < 2 && !isByVersion;
        refill(versions, ...versionChoice(route(), isByVersion));
      });
      await Promise.all([pictures, quietly(rows, load), quietly(found, load), only === null ? quietly(customMetrics(name, own, load), load) : null]);
    },
    redraw: () => panels.redraw(),
    destroy: () => panels.destroy(),
  };
}

/** What is beside the panels may fail by itself; a collector that is gone is told by the banner. */
async function quietly(work: Promise<void>, load: Load): Promise<void> {
  try {
    await work;
  } catch (error) {
    if (!load.signal.aborted && !(error instanceof prom.Unreachable)) console.error(error);
  }
}

/** When each version of the API came up, of those that were up in the time that is shown. */
async function versionsOf(name: string, load: Load): Promise<Mark[]> {
  const [from, to] = edges(load);
  const starts = selector("cortex_api_replica_start_timestamp_seconds", { api_name: name });
  const expr = `min by (api_id) (last_over_time(${starts}[${Math.max(Math.ceil(to - from), TICK)}s]))`;
  const found = await prom.vector(expr, Math.min(to, load.now), load.signal);
  return found.map(({ metric, value }) => ({ time: value, text: metric["api_id"] ?? "" }));
}

function versionChoice(route: Route, isByVersion: boolean): HTMLElement[] {
  const choice = (text: string, value: string | null, isCurrent: boolean) =>
    h("a", { class: "choice", href: linkWith(route, { versions: value }), "aria-current": isCurrent ? "true" : undefined }, text);
  return [
    h("span", { class: "hint" }, "versions"),
    h("span", { class: "group", role: "group", "aria-label": "Versions" }, choice("together", null, !isByVersion), choice("side by side", "apart", isByVersion)),
  ];
}

function factsOf(row: ApiRow): Child[] {
  const fact = (name: string, value: Child) => h("span", { class: "fact" }, h("span", { class: "name" }, name), " ", h("span", { class: "value" }, value));
  const isLink = row.endpoint !== null && /^https?:\/\//.test(row.endpoint);
  return [
    statusPill(row.status),
    fact("up-to-date", `${row.up_to_date}${row.requested === null ? "" : ` of ${row.requested}`}`),
    row.stale > 0 && fact("stale", String(row.stale)),
    row.last_update_seconds !== null && fact("last update", age(row.last_update_seconds)),
    fact("in two weeks: avg request", row.avg_request_seconds === null ? "-" : format(row.avg_request_seconds, "s")),
    ...["2", "4", "5"].map((klass) => fact(`${klass}XX`, count(ofClass(row, klass)))),
    row.endpoint !== null && fact("endpoint", isLink ? h("a", { href: row.endpoint, rel: "noreferrer" }, row.endpoint) : row.endpoint),
  ];
}

function unknown(name: string, rows: ApiRow[], route: Route): HTMLElement {
  return h(
    "div",
    { class: "nothing" },
    h("p", {}, h("strong", {}, `No API ${quote(name)} has counted requests in two weeks.`), " ", rows.length === 0 ? "Nor has any other." : "These have:"),
    h("ul", {}, ...rows.map((row) => h("li", {}, h("a", { href: linkTo(route, ["api", row.api]) }, row.api)))),
    h("p", {}, "Serve it with ", h("code", {}, "cortex-serve predictor.py --api-name NAME"), " and send it a request. If it is served, ", h("code", {}, "cortex doctor"), " finds out where its metrics go."),
  );
}

/** The API's own metrics, by name: their pictures are on pages of their own. */
async function customMetrics(name: string, section: HTMLElement, load: Load): Promise<void> {
  const names = await customNames(tableWindow(load), load.signal, name);
  refill(
    section,
    h("h2", {}, "Custom metrics"),
    names.length === 0
      ? h("p", { class: "hint" }, "None with this API's name in this time. ", h("code", {}, 'metrics_client.increment("my_counter")'), " in the predictor makes one.")
      : h(
          "ul",
          { class: "links" },
          ...names.map((metric) => h("li", {}, h("a", { href: linkTo(load.route, ["metrics", metric], { api: name }) }, metric))),
          h("li", {}, h("a", { href: linkTo(load.route, ["metrics"], { api: name }) }, "all with pictures")),
        ),
  );
}
