// The table of `cortex get`, live, with a sparkline of rate and of p99.

import { fill, h, refill, setText } from "../dom.ts";
import type { Child } from "../dom.ts";
import { age, count, format, number } from "../format.ts";
import type { Value } from "../lines.ts";
import { edges } from "../page.ts";
import type { Go, Load, Page } from "../page.ts";
import * as prom from "../prom.ts";
import type { ApiRow, RangeSeries } from "../prom.ts";
import type { Route } from "../route.ts";
import { linkTo, linkWith } from "../route.ts";
import { sparkline } from "../sparkline.ts";
import { clock, duration, lastText, timesOf, windowOf } from "../time.ts";
import type { Span, TimeWindow } from "../time.ts";

/** Points of a sparkline. */
const SPARK_POINTS = 60;
/** The longest time of a sparkline. */
const SPARK_SECONDS = 6 * 3600;
/** More rows than a window shows: they are seen a frame before the others. */
const FIRST_ROWS = 40;
/** Over what counts and averages are, as in `cortex get`. */
const SINCE = ["2w", "7d", "24h", "1h"];

export function overviewPage(route: () => Route, go: Go): Page {
  const body = h("div", {}, h("p", { class: "hint" }, "Asking…"));
  const since = () => SINCE.find((one) => one === route().params.get("since")) ?? "2w";
  const about = h("span", {});
  const element = h("div", {}, h("h1", {}, "APIs"), body, footer(since(), about, route, go));
  let rows: ApiRow[] = [];
  let sparks: Sparks | null = null;
  const show = (shown = rows.length) => {
    refill(body, rows.length === 0 ? nothing() : table(rows, shown, sparks, route()));
    if (sparks !== null) setText(about, ` Rate and p99: ${sparks.text}, over ${duration(sparks.window.over)}.`);
  };
  return {
    title: "",
    element,
    load: async (load) => {
      try {
        // The table first: it is drawn when it comes. The sparklines fill cells that have their size already.
        const asked = prom.apis(since(), load.signal).then((answer) => {
          const isFirst = rows.length === 0;
          rows = answer.data;
          show(isFirst ? FIRST_ROWS : rows.length);
          if (isFirst && rows.length > FIRST_ROWS) requestAnimationFrame(() => setTimeout(show));
        });
        const [, newest] = await Promise.all([asked, askSparks(load, sparks)]);
        sparks = newest;
        show();
      } catch (error) {
        // What is drawn stays; the banner says the rest.
        if (load.signal.aborted || (error instanceof prom.Unreachable && rows.length > 0)) return;
        fill(body, h("p", { class: "message", role: "alert" }, error instanceof Error ? error.message : String(error)));
      }
    },
    redraw: () => {},
    destroy: () => {},
  };
}

interface Sparks {
  window: TimeWindow;
  /** Which time, in words. */
  text: string;
  rate: Map<string, Value[]>;
  p99: Map<string, Value[]>;
}

/** The end of what is chosen: of a longer time the histograms of all APIs take seconds to read. */
function sparkSpan(load: Load): Span {
  const [from, to] = edges(load);
  if ("last" in load.span) return { last: Math.min(load.span.last, SPARK_SECONDS) };
  return { from: Math.max(from, to - SPARK_SECONDS), to };
}

/** Those that are drawn, as long as there is no further point. */
async function askSparks(load: Load, drawn: Sparks | null): Promise<Sparks> {
  const window = windowOf(sparkSpan(load), load.now, SPARK_POINTS);
  if (drawn !== null && JSON.stringify(drawn.window) === JSON.stringify(window)) return drawn;
  const over = duration(window.over);
  const [rate, p99] = await Promise.all([
    prom.range(`sum by (api_name) (rate(cortex_api_requests_total[${over}]))`, window, load.signal),
    prom.range(
      `histogram_quantile(0.99, sum by (api_name) (rate(cortex_api_request_duration_seconds[${over}])))`,
      window,
      load.signal,
    ),
  ]);
  const span = sparkSpan(load);
  const text = "last" in span ? lastText(span.last) : `${clock(span.from, true)} to ${clock(span.to, true)}`;
  return { window, text, rate: byApi(rate.data, window), p99: byApi(p99.data, window) };
}

function byApi(series: RangeSeries[], window: TimeWindow): Map<string, Value[]> {
  const length = timesOf(window).length;
  return new Map(
    series.map(({ metric, values }) => {
      const line = new Array<Value>(length).fill(null);
      for (const [time, text] of values ?? []) {
        const value = number(text);
        if (Number.isFinite(value)) line[Math.round((time - window.start) / window.step)] = value;
      }
      return [metric["api_name"] ?? "", line];
    }),
  );
}

function nothing(): HTMLElement {
  return h(
    "div",
    { class: "nothing" },
    h("p", {}, h("strong", {}, "No APIs yet."), " Serve a predictor, and send it a request:"),
    h("pre", {}, h("code", {}, "cortex-serve predictor.py --api-name text-generator\ncurl -X POST http://127.0.0.1:8080/ -H 'content-type: application/json' -d '{}'")),
    h("p", {}, "It is here 10 s later. Any other ASGI or WSGI app: ", h("code", {}, "cortex_metrics.asgi"), " and ", h("code", {}, "cortex_metrics.wsgi"), " have middlewares. Nothing comes? ", h("code", {}, "cortex doctor"), " follows a probe and says what to do."),
  );
}

/** Responses of one class. */
export function ofClass(row: ApiRow, klass: string): number {
  return Object.entries(row.responses).reduce(
    (sum, [code, n]) => (code.length === 3 && code.startsWith(klass) ? sum + n : sum),
    0,
  );
}

export function statusPill(status: string): HTMLElement {
  return h("span", { class: `status ${status}` }, status);
}

interface Column {
  name: string;
  isNumber?: boolean;
  cell: (row: ApiRow) => Child;
}

/** The first rows; columns are those of all. */
function table(rows: ApiRow[], first: number, sparks: Sparks | null, route: Route): HTMLElement {
  const spark = (values: Value[] | undefined, unit: "req/s" | "s", what: string) => {
    // Room for what is asked for: nothing moves when it comes.
    if (sparks === null) return h("span", { class: "sparkcell" }, h("span", { class: "spark" }), h("span", { class: "now" }));
    const line = values ?? [];
    const last = line.at(-1) ?? null;
    const text = last === null ? "–" : unit === "s" ? format(last, unit) : `${format(last, unit)} /s`;
    return h("span", { class: "sparkcell" }, sparkline(line, `${what}, now ${text}`), h("span", { class: "now" }, text));
  };
  const any = (of: (row: ApiRow) => number) => rows.some((row) => of(row) > 0);
  const columns: (Column | false)[] = [
    { name: "api", cell: (row) => h("a", { href: linkTo(route, ["api", row.api]) }, row.api) },
    { name: "status", cell: (row) => statusPill(row.status) },
    { name: "up-to-date", isNumber: true, cell: (row) => String(row.up_to_date) },
    any((row) => row.stale) && { name: "stale", isNumber: true, cell: (row) => String(row.stale) },
    { name: "requested", isNumber: true, cell: (row) => (row.requested === null ? "-" : String(row.requested)) },
    { name: "last update", isNumber: true, cell: (row) => (row.last_update_seconds === null ? "-" : age(row.last_update_seconds)) },
    { name: "rate", cell: (row) => spark(sparks?.rate.get(row.api), "req/s", `Request rate of ${row.api}`) },
    { name: "p99", cell: (row) => spark(sparks?.p99.get(row.api), "s", `p99 latency of ${row.api}`) },
    {
      name: "avg request",
      isNumber: true,
      cell: (row) => (row.avg_request_seconds === null ? "-" : format(row.avg_request_seconds, "s")),
    },
    { name: "2XX", isNumber: true, cell: (row) => count(ofClass(row, "2")) },
    any((row) => ofClass(row, "4")) && { name: "4XX", isNumber: true, cell: (row) => count(ofClass(row, "4")) },
    any((row) => ofClass(row, "5")) && { name: "5XX", isNumber: true, cell: (row) => count(ofClass(row, "5")) },
  ];
  const shown = columns.filter((column): column is Column => column !== false);
  const number = (column: Column) => (column.isNumber ? "number" : undefined);
  const head = h("tr", {}, ...shown.map((column) => h("th", { scope: "col", class: number(column) }, column.name)));
  const body = rows.slice(0, first).map((row) =>
    h(
      "tr",
      { "data-api": row.api },
      ...shown.map((column, at) =>
        h(at === 0 ? "th" : "td", { class: number(column), "data-column": column.name, ...(at === 0 ? { scope: "row" } : {}) }, column.cell(row)),
      ),
    ),
  );
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "APIs" }, h("table", { class: "apis" }, h("thead", {}, head), h("tbody", {}, ...body)));
}

function footer(since: string, about: HTMLElement, route: () => Route, go: Go): HTMLElement {
  const select = h(
    "select",
    {
      "aria-label": "Counts and averages of the last",
      onchange: (event: Event) => go(linkWith(route(), { since: (event.target as HTMLSelectElement).value })),
    },
    ...SINCE.map((one) => h("option", { value: one, selected: one === since }, one)),
  );
  return h("p", { class: "hint" }, "Counts and averages of the last ", select, ", as ", h("code", {}, "cortex get"), " has them.", about);
}
