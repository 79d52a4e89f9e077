// Which time is shown, and at which steps.

import type { Route } from "./route.ts";

export const RANGES: readonly [string, number][] = [
  ["15m", 900],
  ["1h", 3600],
  ["6h", 21_600],
  ["24h", 86_400],
  ["7d", 604_800],
  ["2w", 1_209_600],
];
export const DEFAULT_RANGE = "1h";

export const REFRESHES: readonly [string, number][] = [
  ["10s", 10],
  ["30s", 30],
  ["1m", 60],
  ["off", 0],
];
export const DEFAULT_REFRESH = "10s";

/** The collector has a sample every so many seconds. */
export const TICK = 10;
/** What "over a minute" means, and the least time over which a rate is taken. */
const MINUTE = 60;
/** Steps are multiples of a tick that divide a day. */
const STEPS = [10, 20, 30, 60, 120, 180, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400];
/** Points of a line in a grid of panels: about a pixel each. */
export const POINTS = 480;
/** Points of a line that has the page's width. */
export const POINTS_WIDE = 1000;
/** Columns of a heatmap. */
export const COLUMNS = 120;
/** So long after a time all ticks before it are committed. */
const SETTLED = TICK + 5;
/** The least that a zoom shows. */
const SPAN_MIN = 120;

/** Nothing is known of what is so far ahead. */
const AHEAD_MAX = 86_400;

/** Unix seconds; the first and the last step among them. */
export interface TimeWindow {
  start: number;
  end: number;
  step: number;
  /** Over how many seconds rates are taken: a minute, or the step where that is longer, so that nothing between two points is left out. */
  over: number;
}

/** A time that is fixed, or the newest `range`. */
export type Span = { from: number; to: number } | { last: number };

/** What the address asks for, within what a time can be. */
export function spanOf(route: Route, now = Date.now() / 1000): Span {
  const time = (name: string) => Math.min(Math.max(Number(route.params.get(name) ?? NaN), 0), now + AHEAD_MAX);
  const [from, to] = [time("from"), time("to")];
  if (to > from) return { from, to };
  return { last: rangeOf(route)[1] };
}

/** The range that is chosen, also while a fixed time is shown: the way back. */
export function rangeOf(route: Route): [string, number] {
  const name = route.params.get("range") ?? DEFAULT_RANGE;
  return RANGES.find(([known]) => known === name) ?? [DEFAULT_RANGE, 3600];
}

export function refreshOf(route: Route): [string, number] {
  const name = route.params.get("refresh") ?? DEFAULT_REFRESH;
  return REFRESHES.find(([known]) => known === name) ?? [DEFAULT_REFRESH, 10];
}

/** The steps of a span, at most `points` of them and as many as there are ticks. */
export function windowOf(span: Span, now: number, points: number): TimeWindow {
  const [from, to] = "last" in span ? [now - span.last, now] : [span.from, Math.min(span.to, now)];
  const least = Math.max(to - from, 0) / points;
  const step = STEPS.find((step) => step >= least) ?? Math.ceil(least / 86_400) * 86_400;
  // A step that is not over for the newest tick has another value yet. Where points are a tick apart, the next refresh has it.
  const settled = step > TICK ? Math.min(to, now - SETTLED) : to;
  const end = Math.floor(settled / step) * step;
  const start = Math.min(Math.ceil(from / step) * step, end);
  return { start, end, step, over: Math.max(step, MINUTE) };
}

/** A span widened to what can be shown, on whole ticks. */
export function zoomTo(from: number, to: number): { from: string; to: string } {
  const missing = Math.max(SPAN_MIN - (to - from), 0) / 2;
  return {
    from: String(Math.max(Math.floor((from - missing) / TICK) * TICK, 0)),
    to: String(Math.ceil((to + missing) / TICK) * TICK),
  };
}

/** Seconds as PromQL writes a duration: `1m`, `90s`, `2h`. */
export function duration(seconds: number): string {
  for (const [unit, length] of [["d", 86_400], ["h", 3600], ["m", 60]] as const) {
    if (seconds >= length && seconds % length === 0) return `${seconds / length}${unit}`;
  }
  return `${seconds}s`;
}

/** The newest time of so many seconds, as the buttons call it. */
export function lastText(seconds: number): string {
  return `the last ${RANGES.find(([, known]) => known === seconds)?.[0] ?? duration(seconds)}`;
}

/** All steps of a window. */
export function timesOf(window: TimeWindow): number[] {
  const count = Math.round((window.end - window.start) / window.step) + 1;
  return Array.from({ length: count }, (_, at) => window.start + at * window.step);
}

const two = (value: number) => String(value).padStart(2, "0");

/** Local time, with the date where that is wanted. */
export function clock(seconds: number, withDate = false): string {
  const date = new Date(seconds * 1000);
  const time = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  return withDate ? `${day(date)} ${time}` : time;
}

const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

export function day(date: Date): string {
  return `${date.getDate()} ${MONTHS[date.getMonth()]}`;
}

/** The labels of a time axis: the time, and below it the day where it begins. */
export function axisLabels(splits: number[], increment: number): string[] {
  let before = "";
  return splits.map((seconds) => {
    const date = new Date(seconds * 1000);
    const today = day(date);
    const time =
      increment < 60 ? clock(seconds) : increment < 86_400 ? `${two(date.getHours())}:${two(date.getMinutes())}` : "";
    const isNew = today !== before;
    before = today;
    if (time === "") return isNew ? today : "";
    return isNew ? `${time}\n${today}` : time;
  });
}

/** For `<input type="datetime-local">`. */
export function inputTime(seconds: number): string {
  const date = new Date(seconds * 1000);
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}T${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}
