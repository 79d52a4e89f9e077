// A line of PromQL: what is wrong with it at its place, or its graph and its table.

import { labelsText } from "../custom.ts";
import { fill, h, refill } from "../dom.ts";
import type { Go, Load, Page } from "../page.ts";
import { edges, loadOf, Panels, tableWindow } from "../page.ts";
import type { PanelSpec } from "../panel.ts";
import { own, parseError } from "../promql.ts";
import * as prom from "../prom.ts";
import type { InstantData, InstantSeries, Labels } from "../prom.ts";
import type { Route } from "../route.ts";
import { linkWith } from "../route.ts";
import { suggestions } from "../suggest.ts";
import { clock, COLUMNS, duration, windowOf } from "../time.ts";

/** Rows of the table. */
const ROWS = 500;

const EXAMPLES = [
  "sum by (api_name) (rate(cortex_api_requests_total[1m]))",
  "histogram_quantile(0.99, sum by (api_name) (rate(cortex_api_request_duration_seconds[5m])))",
  'topk(5, count by (__name__) ({__name__!=""}))',
];

export function explorePage(route: () => Route, go: Go): Page {
  const expr = route().params.get("expr") ?? "";
  const input = h("textarea", { rows: 2, spellcheck: "false", autocapitalize: "off", "aria-label": "PromQL", placeholder: EXAMPLES[0] ?? "", "data-control": "expr" });
  input.value = expr;
  const error = h("div", { class: "wrong", role: "alert" });
  const graph = h("div", {});
  const table = h("div", { class: "answer" });
  const run = () => {
    const hash = linkWith(route(), { expr: input.value });
    // The same question again is asked again.
    if (hash === location.hash) window.dispatchEvent(new HashChangeEvent("hashchange"));
    else go(hash);
  };
  const gone = new AbortController();
  const proposals = suggestions(input, () => tableWindow(loadOf(route(), gone.signal)), gone.signal);
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    run();
  });
  const form = h(
    "form",
    {
      class: "ask",
      onsubmit: (event: Event) => {
        event.preventDefault();
        run();
      },
    },
    h("div", { class: "field" }, input, proposals),
    h("button", { type: "submit", "data-control": "run" }, "Run"),
  );
  const element = h(
    "div",
    {},
    h("h1", {}, "Explore"),
    form,
    h("p", { class: "hint" }, "Enter runs it, Shift and Enter begin a line, Tab takes a proposal."),
    error,
    graph,
    table,
  );
  let panels: Panels | null = null;
  let shape = "";
  const fail = (failure: unknown, load: Load) => {
    if (load.signal.aborted || failure instanceof prom.Unreachable) return;
    const text = failure instanceof Error ? failure.message : String(failure);
    panels?.destroy();
    panels = null;
    shape = "";
    fill(graph);
    fill(table);
    fill(error, ...wrong(expr, text, input));
  };
  return {
    title: expr === "" ? "Explore" : expr,
    element,
    load: async (load) => {
      if (expr.trim() === "") {
        fill(table, examples(route()));
        return;
      }
      const [, to] = edges(load);
      try {
        const { data, warnings } = await prom.instant(expr, Math.min(to, load.now), load.signal, ROWS);
        fill(error);
        refill(table, ...answer(data, warnings, Math.min(to, load.now)));
        const now = drawn(data);
        const kind = now === "unknown" ? await drawnBefore(expr, load) : now;
        if (kind === "none") {
          fill(graph);
          panels?.destroy();
          panels = null;
          shape = "";
          return;
        }
        if (kind !== shape || panels === null) {
          shape = kind;
          panels?.destroy();
          panels = new Panels([panel(expr, kind)], route, go, () => null);
          panels.element.classList.add("one");
          fill(graph, panels.element);
        }
        await panels.load(load);
      } catch (failure) {
        fail(failure, load);
      }
    },
    redraw: () => panels?.redraw(),
    destroy: () => {
      gone.abort();
      panels?.destroy();
    },
  };
}

/** What can be drawn of an answer over time. A range and a text have one value alone. */
function drawn(data: InstantData): "lines" | "heatmap" | "none" | "unknown" {
  if (data.resultType === "scalar") return "lines";
  if (data.resultType !== "vector") return "none";
  if (data.result.length === 0) return "unknown";
  return data.result.every((series) => series.histogram !== undefined) ? "heatmap" : "lines";
}

/** The same of what ended before: what it was is asked of its time. */
async function drawnBefore(expr: string, load: Load): Promise<"lines" | "heatmap"> {
  const { data } = await prom.range(expr, windowOf(load.span, load.now, COLUMNS), load.signal, { limit: 1 });
  return data.length > 0 && data.every((series) => series.histograms !== undefined) ? "heatmap" : "lines";
}

function panel(expr: string, kind: "lines" | "heatmap"): PanelSpec {
  return {
    title: "Graph",
    unit: "",
    kind,
    note: (w) => `a point every ${duration(w.step)}${kind === "heatmap" ? ", of the first series" : ""}`,
    queries: () => [{ expr, name: seriesName }],
    fromZero: false,
    empty: "The expression gives nothing that can be drawn in this time.",
  };
}

/** `name{label="value"}`, for people. */
function seriesName(labels: Labels): string {
  const name = labels["__name__"] ?? "";
  const rest = labelsText(labels);
  return rest === "" ? name || "value" : `${name}{${rest}}`;
}

/** The error, and the expression with the place marked; the cursor goes there too. */
function wrong(expr: string, text: string, input: HTMLTextAreaElement): (Node | string)[] {
  const found = parseError(expr, text);
  if (found === null) return [h("p", {}, text)];
  input.setSelectionRange(found.at, found.at);
  const at = found.at;
  // A whole character, be it two units of UTF-16; at the end of the text there is none.
  const marked = String.fromCodePoint(expr.codePointAt(at) ?? 0x20).replace("\n", "⏎");
  const length = at < expr.length ? String.fromCodePoint(expr.codePointAt(at) ?? 0x20).length : 0;
  return [
    h("p", {}, found.message),
    h("pre", {}, h("code", {}, expr.slice(0, at), h("mark", { "data-at": at }, marked), expr.slice(at + length))),
  ];
}

function examples(route: Route): HTMLElement {
  return h(
    "div",
    { class: "nothing" },
    h("p", {}, h("strong", {}, "A line of PromQL"), " is asked here, as Prometheus 3 defines it. Every panel's questions lead here too. To begin with:"),
    h("ul", {}, ...EXAMPLES.map((expr) => h("li", {}, h("a", { href: linkWith(route, { expr }) }, h("code", {}, expr))))),
  );
}

function answer(data: InstantData, warnings: string[], time: number): Node[] {
  const notes = warnings.map((warning) => h("p", { class: "hint" }, warning));
  switch (data.resultType) {
    case "scalar":
    case "string":
      return [h("p", { class: "single", "data-value": data.result[1] }, data.result[1]), ...notes];
    case "matrix":
      return [...notes, matrix(data.result.slice(0, ROWS))];
    case "vector":
      if (data.result.length === 0) return [h("p", { class: "hint" }, `Nothing at ${clock(time, true)}.`), ...notes];
      return [h("p", { class: "hint" }, `${data.result.length === 1 ? "One series" : `${data.result.length} series`} at ${clock(time, true)}`), ...notes, vector(data.result)];
  }
}

function vector(result: InstantSeries[]): HTMLElement {
  const labels = columns(result.map((series) => series.metric));
  const rows = result.map(({ metric, value, histogram }) => {
    const text = value?.[1] ?? `count ${histogram?.[1].count ?? ""}, sum ${histogram?.[1].sum ?? ""}`;
    return h("tr", {}, ...labels.map((label) => h("td", {}, own(metric, label) ?? "")), h("td", { class: "number", "data-value": text }, text));
  });
  const head = h("tr", {}, ...labels.map((label) => h("th", { scope: "col" }, label === "__name__" ? "name" : label)), h("th", { scope: "col", class: "number" }, "value"));
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Series and values" }, h("table", {}, h("thead", {}, head), h("tbody", {}, ...rows)));
}

function matrix(result: prom.RangeSeries[]): HTMLElement {
  const rows = result.map(({ metric, values, histograms }) => {
    const floats = (values ?? []).map(([time, text]) => `${text} @ ${clock(time, true)}`);
    const others = (histograms ?? []).map(([time, one]) => `count ${one.count}, sum ${one.sum} @ ${clock(time, true)}`);
    return h("tr", {}, h("td", {}, seriesName(metric)), h("td", { class: "values" }, [...floats, ...others].join("\n")));
  });
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Series and samples" }, h("table", {}, h("tbody", {}, ...rows)));
}

/** All labels that any of the series has, the name first. */
function columns(metrics: Labels[]): string[] {
  const names = new Set(metrics.flatMap((metric) => Object.keys(metric)));
  const rest = [...names].filter((name) => name !== "__name__").sort();
  return names.has("__name__") ? ["__name__", ...rest] : rest;
}

