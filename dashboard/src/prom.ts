// The collector's HTTP API, asked from the page that it serves.

import * as connection from "./connection.ts";
import type { TimeWindow } from "./time.ts";

export type Labels = Record<string, string>;
/** A bucket: which of its bounds belong to it, its bounds and its count. */
export type Bucket = [rule: number, lower: string, upper: string, count: string];
export interface Histogram {
  count: string;
  sum: string;
  buckets?: Bucket[];
}
export interface RangeSeries {
  metric: Labels;
  values?: [number, string][];
  histograms?: [number, Histogram][];
}
export interface InstantSeries {
  metric: Labels;
  value?: [number, string];
  histogram?: [number, Histogram];
}
export interface Metadata {
  type: string;
  help: string;
}
/** What the API says beside the data. */
export interface Answer<T> {
  data: T;
  warnings: string[];
}

/** An answer that is an error: the API's words. */
export class ApiError extends Error {
  constructor(
    readonly kind: string,
    message: string,
  ) {
    super(message);
  }
}

/** No answer: the collector is not there. */
export class Unreachable extends Error {}
const GONE = "The collector does not answer.";

/** As many as the collector runs at once: what is asked last waits here, where it can be taken back. */
const AT_ONCE = 4;
/** What is asked first is seen first: it has the collector for itself until it is answered, or for so long. */
const ALONE_MS = 100;
let most = AT_ONCE;
let running = 0;
let alone: ReturnType<typeof setTimeout> | undefined;
const waiting: (() => void)[] = [];

function letIn(): void {
  clearTimeout(alone);
  most = AT_ONCE;
  while (running < most && waiting.length > 0) {
    running += 1;
    waiting.shift()?.();
  }
}

async function inTurn<T>(signal: AbortSignal, work: () => Promise<T>): Promise<T> {
  if (running === 0) {
    most = 1;
    alone = setTimeout(letIn, ALONE_MS);
  }
  if (running < most) running += 1;
  else await new Promise<void>((resolve) => waiting.push(resolve));
  try {
    signal.throwIfAborted();
    return await work();
  } finally {
    running -= 1;
    letIn();
  }
}

let aheadSeconds = 0;

/** The time by the collector's clock: what is shown ends there, whatever the clock of this machine says. */
export function now(): number {
  return Date.now() / 1000 + aheadSeconds;
}

/** `Date` has whole seconds, and an answer takes its time: less than this is no difference. */
const CLOCK_DIFFERENCE = 2;

async function fetchJson<T>(path: string, signal: AbortSignal, form?: URLSearchParams): Promise<Answer<T>> {
  if (connection.isDown()) throw new Unreachable(GONE);
  let response: Response;
  let text: string;
  try {
    response = await fetch(path, form ? { method: "POST", body: form, signal } : { signal });
    text = await response.text();
  } catch (error) {
    if (signal.aborted) throw error;
    connection.isGone();
    throw new Unreachable(GONE);
  }
  connection.isThere();
  const date = Date.parse(response.headers.get("date") ?? "");
  if (!Number.isNaN(date)) {
    const ahead = (date - Date.now()) / 1000;
    aheadSeconds = Math.abs(ahead) > CLOCK_DIFFERENCE ? ahead : 0;
  }
  let body: { status?: string; data: T; warnings?: string[]; errorType?: string; error?: string };
  try {
    body = JSON.parse(text) as typeof body;
  } catch {
    throw new ApiError("internal", `HTTP ${response.status}: ${text.slice(0, 200)}`);
  }
  if (body.status !== "success") throw new ApiError(body.errorType ?? "internal", body.error ?? `HTTP ${response.status}`);
  return { data: body.data, warnings: body.warnings ?? [] };
}

export function range(
  expr: string,
  window: TimeWindow,
  signal: AbortSignal,
  { lookback, limit }: { lookback?: string | undefined; limit?: number } = {},
): Promise<Answer<RangeSeries[]>> {
  const form = new URLSearchParams({
    query: expr,
    start: String(window.start),
    end: String(window.end),
    step: String(window.step),
  });
  if (lookback !== undefined) form.set("lookback_delta", lookback);
  if (limit !== undefined) form.set("limit", String(limit));
  return inTurn(signal, async () => {
    const answer = await fetchJson<{ result: RangeSeries[] }>("api/v1/query_range", signal, form);
    return { ...answer, data: answer.data.result };
  });
}

/** What an instant query gives, whatever it is. */
export type InstantData =
  | { resultType: "vector"; result: InstantSeries[] }
  | { resultType: "matrix"; result: RangeSeries[] }
  | { resultType: "scalar"; result: [number, string] }
  | { resultType: "string"; result: [number, string] };

export function instant(expr: string, time: number, signal: AbortSignal, limit?: number): Promise<Answer<InstantData>> {
  const form = new URLSearchParams({ query: expr, time: String(time) });
  if (limit !== undefined) form.set("limit", String(limit));
  return inTurn(signal, () => fetchJson<InstantData>("api/v1/query", signal, form));
}

/** The series of an instant query that gives a vector, as numbers. */
export async function vector(expr: string, time: number, signal: AbortSignal): Promise<{ metric: Labels; value: number }[]> {
  const { data } = await instant(expr, time, signal);
  if (data.resultType !== "vector") return [];
  return data.result.map(({ metric, value, histogram }) => ({ metric, value: Number(value?.[1] ?? histogram?.[1].count) }));
}

function times(window: TimeWindow): URLSearchParams {
  return new URLSearchParams({ start: String(window.start), end: String(window.end) });
}

/** The values of a label, of the series that `match` selects. */
export function labelValues(label: string, window: TimeWindow, signal: AbortSignal, match?: string): Promise<Answer<string[]>> {
  const query = times(window);
  if (match !== undefined) query.set("match[]", match);
  return inTurn(signal, () => fetchJson<string[]>(`api/v1/label/${escapeName(label)}/values?${query}`, signal));
}

/** A label's name in a path. Names that are not plain go escaped, as Prometheus does it: a slash in a path is a slash. */
function escapeName(name: string): string {
  if (/^[a-zA-Z_][a-zA-Z0-9_]*$/.test(name) && !name.startsWith("U__")) return name;
  const escaped = Array.from(name, (c) => {
    if (c === "_") return "__";
    return /[a-zA-Z0-9]/.test(c) ? c : `_${(c.codePointAt(0) ?? 0).toString(16)}_`;
  });
  return `U__${escaped.join("")}`;
}

/** The names of the labels of the series that `match` selects. */
export function labelNames(window: TimeWindow, signal: AbortSignal, match: string): Promise<Answer<string[]>> {
  const query = times(window);
  query.set("match[]", match);
  return inTurn(signal, () => fetchJson<string[]>(`api/v1/labels?${query}`, signal));
}

/** What names are, of those that a scrape would show now. */
export function metadata(signal: AbortSignal): Promise<Answer<Record<string, Metadata[]>>> {
  return inTurn(signal, () => fetchJson("api/v1/metadata", signal));
}

/** A row of `cortex get`. */
export interface ApiRow {
  api: string;
  status: "live" | "updating" | "down";
  up_to_date: number;
  stale: number;
  requested: number | null;
  last_update_seconds: number | null;
  avg_request_seconds: number | null;
  responses: Record<string, number>;
  endpoint: string | null;
}

/** The rows of `cortex get`: made by the collector, with the same code. */
export function apis(since: string, signal: AbortSignal): Promise<Answer<ApiRow[]>> {
  return inTurn(signal, () => fetchJson<ApiRow[]>(`api/v1/status/apis?${new URLSearchParams({ since })}`, signal));
}

export interface Ingest {
  sockets: { socket: string; datagrams: number; truncated: number; kernelDrops: number; receiveBufferBytes: number | null }[];
  datagrams: number;
  messages: number;
  dropped: Record<string, { count: number; example: string }>;
  kernelDrops: number;
  payloadsMissing: number;
  series: number;
  sourceLimit: { datagramsPerSecond: number; beyond: { source: string; datagrams: number }[] } | null;
  overflows: { name: string; messages: number; limit: string; metric: string; label: string | null; values: number }[];
  conflicts: { name: string; type: string; messages: number; metric: string; metricType: string }[];
}

/** What came in since the collector started. */
export function ingest(signal: AbortSignal): Promise<Answer<Ingest>> {
  return fetchJson<Ingest>("api/v1/status/ingest", signal);
}

export interface Client {
  clientId: string;
  firstHeard: number;
  lastHeard: number;
  payloads: number;
  payloadsMissing: number;
}

/** The processes that name themselves. */
export function clients(signal: AbortSignal): Promise<Answer<Client[]>> {
  return fetchJson<Client[]>("api/v1/status/clients", signal);
}
