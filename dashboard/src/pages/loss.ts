// The account of loss: what was called, what is stored, what was lost where and why, and what to do about it.

import { growth } from "../custom.ts";
import { fill, h, refill } from "../dom.ts";
import type { Child } from "../dom.ts";
import { age, count, format } from "../format.ts";
import type { Go, Load, Page } from "../page.ts";
import { edges, Panels } from "../page.ts";
import type { PanelSpec } from "../panel.ts";
import { overText } from "../panel.ts";
import { own } from "../promql.ts";
import * as prom from "../prom.ts";
import type { Client, Ingest, Labels } from "../prom.ts";
import type { Route } from "../route.ts";
import { duration, lastText } from "../time.ts";

/** Why a client drops a call, and what to do. */
const CLIENT: Record<string, string> = {
  bad_name: "The name is empty, no text, or has a character that a datagram cannot carry. The log of cortex_metrics names it.",
  reserved_name: "Names that begin with cortex_api_, cortex_client_ or cortex_collector_ are taken. Choose another.",
  bad_value: "The value is no number.",
  not_finite: "The value is NaN or infinite, or makes the sum so.",
  negative_increment: "A counter cannot go back: use a gauge.",
  bad_tags: "The tags are no mapping, or a key is not usable.",
  too_long: "Name and tags take more than half a datagram: shorten them.",
  context_limit: "More combinations of name and tags in one flush than contexts_max: a tag has too many values. Leave it out.",
  closed: "Called after close(), or still held when the process ended: start the collector before its clients end.",
  late_refusal: "Nobody listened, and the system said so too late to hold it. Start the collector.",
};

/** Why the collector refuses a message. */
const COLLECTOR: Record<string, string> = {
  no_name: "It has no name: no line of StatsD.",
  no_type: "It has no |type: mostly the rest of a message that was cut off.",
  unknown_type: "Its type is none of c, g, ms, h, d, s.",
  bad_value: "Its value is no number.",
  not_finite: "Its value is infinite, NaN or beyond a double.",
  bad_rate: "Its sample rate is no number in (0, 1].",
  bad_timestamp: "Its timestamp is no whole number above 0.",
  bad_event: "It is an event that cannot be read.",
  bad_service_check: "It is a service check that cannot be read.",
  bad_header: "It has the name of a client's header and is none.",
  source_limit: "Its sender sends more datagrams a second than --source-limit; below stands which.",
  truncated: "The datagram was longer than 65,535 bytes: send smaller ones.",
  too_long: "Its name takes more than 1024 bytes: shorten it.",
  type_conflict: "The name has another type already, or reads like a part of a histogram. Give one of the two another name; below stands which.",
  reserved_name: "The name is the collector's own: cortex_collector_… Choose another.",
  negative_counter: "It would make a counter go back: use a gauge.",
  total_not_finite: "It would make a total infinite.",
  set_limit: "A set has more values than are kept.",
  series_limit: "Too many names of metrics: is a name made of data? Make a tag of that, or raise --series-max.",
  mapped_drop: "The mapping file says to drop it.",
  mapped_to_nothing: "The mapping file makes an empty name of it.",
};

/** Why the collector refuses a sample of remote write. */
const WRITTEN: Record<string, string> = {
  order: "It is earlier than the last of its series, or another value at its time: each series wants one sender.",
  series_limit: "One series too many: a million were written already. Write fewer.",
  out_of_bounds: "It is older than the retention, or more than ten minutes ahead: look at the sender's clock, or raise --retention.",
  invalid_labels: "It has no name, a name twice, more than 256 labels or 64 KiB of them, or they are not UTF-8.",
  invalid_histogram: "It is a histogram with custom buckets, of another schema than -4 to 8, or with counts that do not add up.",
};

interface Place {
  /** Where, in a few words. */
  where: string;
  why: string;
  lost: number;
  unit: string;
  what: string;
  example?: string | undefined;
  /** It was meant to be dropped. */
  isMeant?: boolean;
}

const PANELS: PanelSpec[] = [
  {
    title: "Calls",
    unit: "/s",
    note: (w) => `calls of clients that name themselves, ${overText(w)}`,
    queries: (w) => [{ expr: `sum(rate(cortex_client_calls_total[${duration(w.over)}]))`, name: () => "calls", isFilled: true }],
    empty: "No client of cortex_metrics called in this time.",
  },
  {
    title: "Messages",
    unit: "/s",
    note: (w) => `what clients make of their calls, ${overText(w)}: one message sums up many calls`,
    queries: (w) => [
      { expr: `sum(rate(cortex_collector_messages_total[${duration(w.over)}]))`, name: () => "messages", isFilled: true },
      { expr: `sum(rate(cortex_collector_datagrams_total[${duration(w.over)}]))`, name: () => "datagrams" },
    ],
    empty: "Nothing came in in this time.",
  },
  {
    title: "Lost",
    unit: "/s",
    color: 1,
    note: (w) => `calls, datagrams, payloads, messages and samples, each by itself, ${overText(w)}`,
    queries: (w) => {
      const rate = (name: string) => `sum(rate(${name}[${duration(w.over)}]))`;
      return [
        { expr: rate("cortex_client_dropped_total"), name: () => "dropped by clients" },
        { expr: rate("cortex_collector_kernel_drops_total"), name: () => "kernel drops" },
        { expr: rate("cortex_collector_payloads_missing_total"), name: () => "payloads missing" },
        { expr: rate('cortex_collector_dropped_total{reason!="mapped_drop"}'), name: () => "refused" },
        { expr: rate("cortex_collector_remote_write_refused_total"), name: () => "samples refused" },
      ];
    },
    empty: "Nothing is known of this time.",
  },
];

export function lossPage(route: () => Route, go: Go): Page {
  const account = h("div", {}, h("p", { class: "hint" }, "Asking…"));
  const panels = new Panels(PANELS, route, go);
  const more = h("div", {});
  let isTold = false;
  const element = h("div", {}, h("h1", {}, "Loss"), account, panels.element, more);
  return {
    title: "Loss",
    element,
    load: async (load) => {
      const asked = async () => {
        try {
          const [numbers, ingest, clients] = await Promise.all([ask(load), prom.ingest(load.signal), prom.clients(load.signal)]);
          refill(account, ...accountOf(numbers, ingest.data, load));
          isTold = true;
          refill(more, ...sockets(ingest.data), ...senders(clients.data, load.now), ...beyondLimit(ingest.data), ...conflicts(ingest.data), ...overflows(ingest.data));
        } catch (error) {
          if (load.signal.aborted || (error instanceof prom.Unreachable && isTold)) return;
          fill(account, h("p", { class: "message", role: "alert" }, error instanceof Error ? error.message : String(error)));
        }
      };
      await Promise.all([asked(), panels.load(load)]);
    },
    redraw: () => panels.redraw(),
    destroy: () => panels.destroy(),
  };
}

interface Numbers {
  calls: number;
  dropped: { metric: Labels; value: number }[];
  kernel: { metric: Labels; value: number }[];
  missing: number;
  messages: number;
  datagrams: number;
  refused: { metric: Labels; value: number }[];
  written: { metric: Labels; value: number }[];
}

async function ask(load: Load): Promise<Numbers> {
  const [from, to] = edges(load);
  const end = Math.min(to, load.now);
  const grown = (name: string, by: string) => prom.vector(`sum${by} (${growth(name, end - from)})`, end, load.signal);
  const [calls, dropped, kernel, missing, messages, datagrams, refused, written] = await Promise.all([
    grown("cortex_client_calls_total", ""),
    grown("cortex_client_dropped_total", " by (reason)"),
    grown("cortex_collector_kernel_drops_total", " by (socket)"),
    grown("cortex_collector_payloads_missing_total", ""),
    grown("cortex_collector_messages_total", ""),
    grown("cortex_collector_datagrams_total", ""),
    grown("cortex_collector_dropped_total", " by (reason)"),
    grown("cortex_collector_remote_write_refused_total", " by (reason)"),
  ]);
  const one = (answer: { value: number }[]) => answer[0]?.value ?? 0;
  return { calls: one(calls), dropped, kernel, missing: one(missing), messages: one(messages), datagrams: one(datagrams), refused, written };
}

function accountOf(numbers: Numbers, ingest: Ingest, load: Load): Child[] {
  const [from, to] = edges(load);
  const time = "last" in load.span ? lastText(load.span.last) : `these ${format((to - from) / 60, "")} minutes`;
  const refused = numbers.refused.reduce((sum, one) => sum + one.value, 0);
  const places: Place[] = [
    ...byLabel(numbers.dropped, "reason").map(([reason, lost]) => ({
      where: "in the client",
      why: reason,
      lost,
      unit: "calls",
      what: own(CLIENT, reason) ?? "The log of cortex_metrics says more.",
    })),
    ...byLabel(numbers.kernel, "socket").map(([socket, lost]) => ({
      where: "in the kernel",
      why: socket,
      lost,
      unit: "datagrams",
      what: "The receive buffer was full: raise --receive-buffer, send larger datagrams or fewer.",
    })),
    {
      where: "on the way",
      why: "payloads that never came",
      lost: numbers.missing,
      unit: "payloads",
      what: "Look at the network. What the kernel dropped of these clients is part of it.",
    },
    ...byLabel(numbers.refused, "reason").map(([reason, lost]) => ({
      where: "refused by the collector",
      why: reason,
      lost,
      unit: "messages",
      what: own(COLLECTOR, reason) ?? "The log of the collector names it.",
      example: own(ingest.dropped, reason)?.example,
      isMeant: reason === "mapped_drop",
    })),
    ...byLabel(numbers.written, "reason").map(([reason, lost]) => ({
      where: "refused by the collector",
      why: reason,
      lost,
      unit: "samples",
      what: own(WRITTEN, reason) ?? "The answer to the sender says more.",
    })),
  ];
  const losses = places.filter((place) => place.lost > 0 && !place.isMeant);
  const card = (name: string, value: string, about: string, key: string) =>
    h("div", { class: "card", "data-account": key }, h("span", { class: "name" }, name), h("strong", {}, value), h("span", { class: "hint" }, about));
  const lost = new Map<string, number>();
  for (const { unit, where, lost: here } of losses) lost.set(`${unit} ${where}`, (lost.get(`${unit} ${where}`) ?? 0) + here);
  return [
    h(
      "p",
      { class: losses.length === 0 ? "verdict good" : "verdict bad", "data-account": "verdict" },
      losses.length === 0 ? `Nothing was lost in ${time}, as far as can be known.` : `Lost in ${time}: ${[...lost].map(([what, all]) => `${count(all)} ${what}`).join("; ")}.`,
    ),
    h(
      "div",
      { class: "cards" },
      card("called", count(numbers.calls), "calls of clients that name themselves", "calls"),
      card("received", count(numbers.messages), `messages in ${count(numbers.datagrams)} datagrams; one sums up many calls`, "messages"),
      card("stored", count(numbers.messages - refused), "messages received less those refused", "stored"),
    ),
    placesTable(places),
    h(
      "p",
      { class: "hint" },
      "Not known: the last second of a process that was killed, and the last 10 s of a collector that was. What clients hold while no collector listens is not lost: they send it later.",
    ),
  ];
}

function byLabel(series: { metric: Labels; value: number }[], label: string): [string, number][] {
  return series.map((one): [string, number] => [one.metric[label] ?? "", one.value]).sort((a, b) => b[1] - a[1]);
}

function placesTable(places: Place[]): HTMLElement {
  const rows = places.map((place) =>
    h(
      "tr",
      { class: place.lost > 0 && !place.isMeant ? "lost" : undefined, "data-where": place.where, "data-why": place.why },
      h("td", {}, place.where),
      h("td", {}, place.why),
      h("td", { class: "number", "data-value": place.lost }, `${count(place.lost)} ${place.unit}`),
      h("td", { class: "wide" }, place.lost > 0 ? place.what : "", place.example === undefined || place.lost === 0 ? null : h("span", { class: "example" }, "such as ", h("code", {}, place.example))),
    ),
  );
  const head = h("tr", {}, ...["where", "why"].map((name) => h("th", { scope: "col" }, name)), h("th", { scope: "col", class: "number" }, "lost"), h("th", { scope: "col" }, "what to do"));
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "What was lost where" }, h("table", { class: "places" }, h("thead", {}, head), h("tbody", {}, ...rows)));
}

function simpleTable(title: string, about: string, names: string[], rows: Child[][]): Node[] {
  const head = h("tr", {}, ...names.map((name, at) => h("th", { scope: "col", class: at > 0 ? "number" : undefined }, name)));
  const body = rows.map((cells) => h("tr", {}, ...cells.map((cell, at) => h("td", { class: at > 0 ? "number" : undefined }, cell))));
  return [h("h2", {}, title), h("p", { class: "hint" }, about), h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title }, h("table", {}, h("thead", {}, head), h("tbody", {}, ...body)))];
}

function sockets(ingest: Ingest): Node[] {
  return simpleTable(
    "Sockets",
    "Since this collector started.",
    ["socket", "datagrams", "kernel drops", "truncated", "receive buffer"],
    ingest.sockets.map((one) => [
      one.socket,
      count(one.datagrams),
      count(one.kernelDrops),
      count(one.truncated),
      one.receiveBufferBytes === null ? "-" : format(one.receiveBufferBytes, "bytes"),
    ]),
  );
}

function senders(clients: Client[], now: number): Node[] {
  if (clients.length === 0) return [];
  return simpleTable(
    "Processes",
    "Those that name themselves, heard within ten minutes.",
    ["client", "heard", "since", "payloads", "missing"],
    [...clients]
      .sort((a, b) => b.payloadsMissing - a.payloadsMissing || b.lastHeard - a.lastHeard)
      .slice(0, 100)
      .map((one) => [h("code", {}, one.clientId), `${age(now - one.lastHeard)} ago`, age(now - one.firstHeard), count(one.payloads), count(one.payloadsMissing)]),
  );
}

function beyondLimit(ingest: Ingest): Node[] {
  const limit = ingest.sourceLimit;
  if (limit === null || limit.beyond.length === 0) return [];
  return simpleTable(
    "Sources beyond the limit",
    `They sent more than ${count(limit.datagramsPerSecond)} datagrams a second at times since this collector started; what was beyond was dropped.`,
    ["source", "datagrams dropped"],
    limit.beyond.slice(0, 100).map((one) => [one.source, count(one.datagrams)]),
  );
}

function conflicts(ingest: Ingest): Node[] {
  if (ingest.conflicts.length === 0) return [];
  return simpleTable(
    "Names with two types",
    "Refused since this collector started: the type that came first stays as long as a series has it.",
    ["metric", "messages", "refused as", "meets", "which is a"],
    [...ingest.conflicts]
      .sort((a, b) => b.messages - a.messages)
      .slice(0, 100)
      .map((one) => [one.name, count(one.messages), one.type, one.metric, one.metricType]),
  );
}

function overflows(ingest: Ingest): Node[] {
  if (ingest.overflows.length === 0) return [];
  return simpleTable(
    "Tags with too many values",
    "Not lost: what would be one series too many is counted in one with cortex_overflow=\"true\". Leave the tag out, or make few values of many.",
    ["metric", "messages", "limit", "tag", "values"],
    ingest.overflows.map((one) => [one.name, count(one.messages), one.limit, one.label ?? "-", count(one.values)]),
  );
}
