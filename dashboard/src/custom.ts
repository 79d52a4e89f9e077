// Users' own metrics: what each is, and the picture that fits it.

import { rateUnit, unitOf } from "./format.ts";
import type { Unit } from "./format.ts";
import type { Load } from "./page.ts";
import { edges } from "./page.ts";
import type { PanelSpec, Query } from "./panel.ts";
import { GAUGE_LOOKBACK, LINES_MAX, overText, threeQuantiles } from "./panel.ts";
import { isCustom, labelName, own, quote, selector } from "./promql.ts";
import * as prom from "./prom.ts";
import type { Labels } from "./prom.ts";
import { duration, TICK } from "./time.ts";
import type { TimeWindow } from "./time.ts";

export type Kind = "counter" | "gauge" | "histogram";

/** A metric with what is asked of it. */
export interface Metric {
  name: string;
  kind: Kind;
  /** One API's alone; of all if this is not there. */
  api?: string | undefined;
  /** A line for each value of this tag. */
  by?: string | undefined;
  /** How the values of several gauges become one line. */
  fold?: Fold | undefined;
  /** There are more values of the tag than lines may be: those that matter most are drawn. */
  isMany?: boolean | undefined;
}

export const FOLDS = ["avg", "min", "max", "sum"] as const;
export type Fold = (typeof FOLDS)[number];

/** The names of all users' metrics that there were, sorted. */
export async function customNames(window: TimeWindow, signal: AbortSignal, api: string | null): Promise<string[]> {
  const match = api === null ? undefined : `{api_name=${quote(api)}}`;
  const { data } = await prom.labelValues("__name__", window, signal, match);
  return data.filter(isCustom).sort();
}

export interface Told {
  /** `null`: no values in the time that is shown tell what it is. */
  kind: Kind | null;
  /** By its values in that time, so another time may tell otherwise. */
  isGuessed: boolean;
}

/** What names are. The metadata has those that live; of the others the values are looked at. */
export async function kindsOf(names: string[], load: Load, api?: string): Promise<Map<string, Told>> {
  const { data } = await prom.metadata(load.signal);
  const kinds = names.map(async (name): Promise<[string, Told]> => {
    const told = own(data, name)?.[0]?.type;
    if (told === "counter" || told === "gauge" || told === "histogram") return [name, { kind: told, isGuessed: false }];
    return [name, { kind: await guess(name, load, api), isGuessed: true }];
  });
  return new Map(await Promise.all(kinds));
}

/** Floats that rise and never fall are a counter's, as are those of a name that says so. */
async function guess(name: string, load: Load, api: string | undefined): Promise<Kind | null> {
  const [from, to] = edges(load);
  const values = within(of({ name, api }), to - from);
  const { data } = await prom.instant(`last_over_time(${values})`, to, load.signal, 1);
  const newest = data.resultType === "vector" ? data.result[0] : undefined;
  if (newest === undefined) return null;
  if (newest.histogram !== undefined) return "histogram";
  if (name.endsWith("_total")) return "counter";
  const [rises] = await prom.vector(`(max(changes(${values})) > bool 0) * (max(resets(${values})) == bool 0)`, to, load.signal);
  return rises?.value === 1 ? "counter" : "gauge";
}

/** The labels of a series as they are written, without the name. */
export function labelsText(labels: Labels, without: readonly string[] = []): string {
  const shown = Object.entries(labels).filter(([name]) => name !== "__name__" && !without.includes(name));
  return shown.map(([name, value]) => `${name}=${value}`).join(", ");
}

function of(metric: Pick<Metric, "name" | "api">): string {
  return selector(metric.name, metric.api === undefined ? {} : { api_name: metric.api });
}

/** What is aggregated of each series: of the last `over`, or of all of the time that is shown. */
type Inner = (over: string) => string;

/** An aggregation by the tag that is asked for, if one is; of many values those that are highest in all of the time that is shown. */
function by(metric: Metric, operator: string, inner: Inner, window: TimeWindow, over: number): string {
  const clause = metric.by === undefined ? "" : ` by (${labelName(metric.by)})`;
  const lines = `${operator}${clause} (${inner(`[${duration(over)}]`)})`;
  if (metric.by === undefined || !metric.isMany) return lines;
  const all = `[${Math.max(window.end - window.start, over)}s] @ end()`;
  // Histograms have no order: those with the most values are the highest.
  const whole = metric.kind === "histogram" ? `histogram_count(${operator}${clause} (${inner(all)}))` : `${operator}${clause} (${inner(all)})`;
  return `(${lines} and on (${labelName(metric.by)}) topk(${LINES_MAX}, ${whole}))`;
}

/** The rates of a metric's series, summed. */
function rates(metric: Metric, window: TimeWindow): string {
  return by(metric, "sum", (over) => `rate(${of(metric)}${over})`, window, window.over);
}

/**
 * The count of a histogram, a counter by itself: of weeks it is read many times as fast as the buckets. (Its sum is none: it goes
 * back where values are negative.)
 */
function countOf(metric: Metric): Metric {
  return { ...metric, name: `${metric.name}_count`, kind: "counter" };
}

function name(metric: Metric, whole: string): (labels: Labels) => string {
  const tag = metric.by;
  if (tag === undefined) return () => whole;
  return (labels) => own(labels, tag) || `no ${tag}`;
}

/** The main picture of a metric, as the list of metrics has it. */
export function picture(metric: Metric, title: string): PanelSpec {
  switch (metric.kind) {
    case "counter":
      return rate(metric, title);
    case "gauge":
      return level(metric, title);
    case "histogram":
      return {
        title,
        unit: unitOf(metric.name),
        note: (w) => `p50, p90 and p99, ${overText(w)}, exact to 2.2 %`,
        queries: (w) => [threeQuantiles(rates({ ...metric, by: undefined }, w))],
        fromZero: false,
        empty: NOTHING,
      };
  }
}

const NOTHING = "Nothing in this time.";

/** All pictures of a metric. */
export function pictures(metric: Metric): PanelSpec[] {
  const tag = metric.by === undefined ? "" : ` by ${metric.by}`;
  switch (metric.kind) {
    case "counter":
      return [rate(metric, `Rate${tag}`)];
    case "gauge":
      return [level(metric, `Value${tag}`)];
    case "histogram": {
      const unit = unitOf(metric.name);
      const quantiles = [0.5, 0.9, 0.99].map(
        (q): PanelSpec => ({
          title: `p${Math.round(q * 100)}${tag}`,
          unit,
          note: (w) => `${overText(w)}, exact to 2.2 %`,
          queries: (w) => [quantile(metric, q, w, `p${Math.round(q * 100)}`)],
          fromZero: false,
          empty: NOTHING,
        }),
      );
      const whole = { ...metric, by: undefined };
      return [
        ...(metric.by === undefined ? [picture(metric, "p50, p90, p99")] : quantiles),
        {
          title: "Heatmap",
          unit,
          kind: "heatmap",
          note: (w) => `values per second by how large they are, ${overText(w)}`,
          queries: (w) => [{ expr: rates(whole, w), name: () => "" }],
          empty: NOTHING,
        },
        {
          title: `Values per second${tag}`,
          unit: "/s",
          note: (w) => overText(w),
          queries: (w) => [
            { expr: rates(countOf(metric), w), name: name(metric, "values") },
          ],
          empty: NOTHING,
        },
        {
          title: `Mean${tag}`,
          unit,
          note: (w) => `${overText(w)}: exact`,
          queries: (w) => [
            { expr: `histogram_avg(${rates(metric, w)})`, name: name(metric, "mean") },
          ],
          fromZero: false,
          empty: NOTHING,
        },
      ];
    }
  }
}

function quantile(metric: Metric, q: number, w: TimeWindow, whole: string): Query {
  return { expr: `histogram_quantile(${q}, ${rates(metric, w)})`, name: name(metric, whole) };
}

function rate(metric: Metric, title: string): PanelSpec {
  const unit: Unit = rateUnit(unitOf(metric.name));
  return {
    title,
    unit,
    note: (w) => `counter: increase per second, ${overText(w)}`,
    queries: (w) => [{ expr: rates(metric, w), name: name(metric, "all"), isFilled: metric.by === undefined }],
    empty: NOTHING,
  };
}

function level(metric: Metric, title: string): PanelSpec {
  // Of a longer step each value takes part.
  const inner = (w: TimeWindow) => (over: string) => (w.step > TICK || over.includes("@") ? `avg_over_time(${of(metric)}${over})` : of(metric));
  const mean = (w: TimeWindow) => (w.step > TICK ? `mean of each ${duration(w.step)}` : "as it was set, every 10 s");
  if (metric.by === undefined && metric.fold === undefined) {
    return {
      title,
      unit: unitOf(metric.name),
      note: (w) => `gauge: ${mean(w)}`,
      queries: (w) => [{ expr: inner(w)(`[${duration(w.step)}]`), name: (labels) => labelsText(labels) || "value", lookback: GAUGE_LOOKBACK }],
      fromZero: false,
      empty: NOTHING,
    };
  }
  const fold = metric.fold ?? "avg";
  return {
    title,
    unit: unitOf(metric.name),
    note: (w) => `gauge: ${fold} of all${metric.by === undefined ? "" : ` with the same ${metric.by}`}, ${mean(w)}`,
    queries: (w) => [{ expr: by(metric, fold, inner(w), w, w.step), name: name(metric, fold), lookback: GAUGE_LOOKBACK }],
    fromZero: false,
    empty: NOTHING,
  };
}

/** The samples of a time, of a tick at least. */
export function within(series: string, seconds: number): string {
  return `${series}[${Math.max(Math.ceil(seconds), TICK)}s]`;
}

/** How much a counter or the count of a histogram grew in a time, resets and all; nothing is extrapolated. */
export function growth(series: string, seconds: number): string {
  return `increase(${within(series, seconds)} anchored)`;
}
