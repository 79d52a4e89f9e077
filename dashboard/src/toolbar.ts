// The head of all pages: where one can go, and which time is shown.

import { fill, h } from "./dom.ts";
import type { Go } from "./page.ts";
import * as prom from "./prom.ts";
import type { Route } from "./route.ts";
import { linkTo, linkWith } from "./route.ts";
import { clock, inputTime, RANGES, rangeOf, REFRESHES, refreshOf, spanOf, zoomTo } from "./time.ts";

const PAGES: readonly [string, string[]][] = [
  ["APIs", []],
  ["Custom metrics", ["metrics"]],
  ["Loss", ["loss"]],
  ["Explore", ["explore"]],
];

export function toolbar(go: Go, refresh: () => void): { element: HTMLElement; show: (route: Route) => void } {
  const nav = h("nav", { "aria-label": "Pages" });
  const time = h("div", { class: "time", role: "group", "aria-label": "Time" });
  const home = h("a", { class: "brand", href: "#/" }, "cortex-metrics");
  const element = h("header", { class: "top" }, home, nav, time);
  let shown = "";
  const show = (route: Route) => {
    home.setAttribute("href", linkTo(route, []));
    const section = route.path[0] === "api" || route.path.length === 0 ? "" : (route.path[0] ?? "");
    fill(
      nav,
      ...PAGES.map(([name, path]) =>
        h("a", { href: linkTo(route, path), "aria-current": (path[0] ?? "") === section ? "page" : undefined }, name),
      ),
    );
    const state = JSON.stringify([route.path, [...route.params]]);
    if (state === shown) return;
    shown = state;
    // Whoever used a control with the keyboard goes on from there.
    const focused = time.contains(document.activeElement) ? document.activeElement?.getAttribute("data-control") : null;
    fill(time, ...controls(route, go, refresh));
    if (focused) time.querySelector<HTMLElement>(`[data-control="${CSS.escape(focused)}"]`)?.focus();
  };
  return { element, show };
}

function controls(route: Route, go: Go, refresh: () => void): HTMLElement[] {
  const span = spanOf(route, prom.now());
  const isFixed = "from" in span;
  const [range, seconds] = rangeOf(route);
  const ranges = RANGES.map(([name]) =>
    h(
      "a",
      {
        href: linkWith(route, { range: name, from: null, to: null }),
        class: "choice",
        "data-control": `range-${name}`,
        "aria-current": !isFixed && name === range ? "true" : undefined,
      },
      name,
    ),
  );
  const width = isFixed ? span.to - span.from : seconds;
  const shift = (by: number, factor = 1) => {
    const [from, to] = isFixed ? [span.from, span.to] : [prom.now() - seconds, prom.now()];
    const middle = (from + to) / 2 + by * width;
    go(linkWith(route, zoomTo(middle - (width * factor) / 2, middle + (width * factor) / 2)));
  };
  const button = (control: string, text: string, label: string, onclick: () => void) =>
    h("button", { type: "button", class: "choice", "data-control": control, "aria-label": label, title: label, onclick }, text);
  const moves = h(
    "span",
    { class: "group" },
    button("earlier", "‹", "Earlier", () => shift(-0.5)),
    button("wider", "−", "A longer time (zoom out)", () => shift(0, 2)),
    button("later", "›", "Later", () => shift(0.5)),
  );
  const select = h(
    "select",
    {
      "data-control": "refresh",
      "aria-label": "Refresh every",
      onchange: (event: Event) => go(linkWith(route, { refresh: (event.target as HTMLSelectElement).value })),
    },
    ...REFRESHES.map(([name]) =>
      h("option", { value: name, selected: name === refreshOf(route)[0] }, name === "off" ? "no refresh" : `every ${name}`),
    ),
  );
  const fixed = isFixed
    ? h(
        "span",
        { class: "fixed" },
        spanText(span.from, span.to),
        h("a", { class: "choice", "data-control": "back", href: linkWith(route, { from: null, to: null }) }, `back to last ${range}`),
      )
    : null;
  return [
    h("span", { class: "group", role: "group", "aria-label": "Range" }, ...ranges, custom(route, go)),
    moves,
    h("span", { class: "group" }, select, button("refresh-now", "↻", "Refresh now", refresh)),
    ...(fixed ? [fixed] : []),
  ];
}

/** From when to when; the day once, if it is one. */
function spanText(from: number, to: number): string {
  const [first, last] = [clock(from, true), clock(to, true)];
  const isOneDay = first.slice(0, -9) === last.slice(0, -9);
  return `${first} – ${isOneDay ? last.slice(-8) : last} `;
}

/** From when to when, typed. */
function custom(route: Route, go: Go): HTMLElement {
  const from = h("input", { type: "datetime-local", step: 1, required: true });
  const to = h("input", { type: "datetime-local", step: 1, required: true });
  const wrong = h("p", { class: "message", role: "alert" });
  const form = h(
    "form",
    {
      class: "popover",
      onsubmit: (event: SubmitEvent) => {
        event.preventDefault();
        const [first, last] = [new Date(from.value).getTime() / 1000, new Date(to.value).getTime() / 1000];
        if (first < last) {
          details.open = false;
          go(linkWith(route, zoomTo(first, last)));
        } else wrong.textContent = "The end is not after the beginning.";
      },
    },
    h("label", {}, "from", from),
    h("label", {}, "to", to),
    h("button", { type: "submit" }, "Show"),
    wrong,
  );
  const summary = h("summary", { class: "choice", "data-control": "custom", "aria-current": "from" in spanOf(route, prom.now()) ? "true" : undefined }, "custom");
  const details: HTMLDetailsElement = h("details", { class: "custom" }, summary, form);
  details.addEventListener("toggle", () => {
    if (!details.open) return;
    // What is shown now: a page may have been open for hours.
    const [now, span] = [prom.now(), spanOf(route, prom.now())];
    const [start, end] = "from" in span ? [span.from, span.to] : [now - span.last, now];
    [from.value, to.value, wrong.textContent] = [inputTime(start), inputTime(end), ""];
  });
  details.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      details.open = false;
      summary.focus();
    }
  });
  return details;
}
