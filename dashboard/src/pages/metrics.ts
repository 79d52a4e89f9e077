// All metrics that users' code made, each with its picture.

import { customNames, kindsOf, picture } from "../custom.ts";
import type { Kind, Told } from "../custom.ts";
import { fill, h, setText } from "../dom.ts";
import type { Go, Load, Page } from "../page.ts";
import { Panels, tableWindow } from "../page.ts";
import * as prom from "../prom.ts";
import type { Route } from "../route.ts";
import { linkTo, linkWith } from "../route.ts";

/** So many pictures at once; the search finds the others, or the button. */
const SHOWN = 60;
/** What is so near to the window is asked for too. */
const MARGIN = 200;

export function metricsPage(route: () => Route, go: Go): Page {
  const api = route().params.get("api");
  const search = h("input", { type: "search", placeholder: "Search names", "aria-label": "Search names", value: route().params.get("q") ?? "", "data-control": "search" });
  const told = h("span", { class: "hint", "aria-live": "polite" });
  const message = h("div", {});
  const more = h("button", { type: "button", hidden: true }, "Show more");
  const panels = new Panels([], route, go, (name) => linkTo(route(), ["metrics", name], api === null ? {} : { api }));
  const element = h(
    "div",
    {},
    h("h1", {}, api === null ? "Custom metrics" : `Custom metrics of ${api}`),
    h("p", { class: "filters", role: "search" }, search, told, api === null ? null : h("a", { href: linkTo(route(), ["metrics"]) }, "of all APIs")),
    message,
    panels.element,
    h("p", {}, more),
  );
  let names: string[] = [];
  let shown = SHOWN;
  let newest: Load | null = null;
  const kinds = new Map<string, Told>();
  /** As what there is a panel of a name. */
  const drawn = new Map<string, Kind>();
  let time = "";
  const seen = new Set<string>();
  const loaded = new Set<string>();
  let pending: Promise<unknown> = Promise.resolve();
  const observer = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        const name = (entry.target as HTMLElement).dataset["panel"] ?? "";
        if (entry.isIntersecting) seen.add(name);
        else seen.delete(name);
      }
      loadSeen();
    },
    { rootMargin: `${MARGIN}px` },
  );
  /** Asks for what is seen and was not asked for since the last load. */
  const loadSeen = () => {
    if (newest === null) return;
    const wanted = [...seen].filter((name) => !loaded.has(name));
    for (const name of wanted) loaded.add(name);
    pending = Promise.all([pending, panels.load(newest, (title) => wanted.includes(title))]);
  };
  /** Shows the panels of the names that the search finds, and makes those that were never shown. */
  const filter = async () => {
    const words = search.value.toLowerCase().split(/\s+/).filter((word) => word !== "");
    const found = names.filter((name) => words.every((word) => name.toLowerCase().includes(word)));
    const now = found.slice(0, shown);
    more.hidden = found.length <= shown;
    const unknown = now.filter((name) => !kinds.has(name));
    if (unknown.length > 0 && newest !== null) {
      for (const [name, one] of await kindsOf(unknown, newest, api ?? undefined)) {
        if (kinds.has(name)) continue;
        kinds.set(name, one);
        draw(name, one.kind);
      }
      panels.sort();
    }
    const isThere = (name: string) => kinds.get(name)?.kind !== null;
    const [all, of] = [names.filter(isThere).length, found.filter(isThere).length];
    setText(told, all === 0 ? "" : all === of ? `${all} metrics` : `${of} of ${all} metrics`);
    fill(message, all === 0 ? nothing() : null);
    panels.show((title) => now.includes(title));
  };
  /** Makes the panel of a name, anew if it was taken for something else. */
  const draw = (name: string, kind: Kind | null) => {
    if (drawn.get(name) === kind) return;
    const before = panels.remove(name);
    if (before) observer.unobserve(before);
    drawn.delete(name);
    seen.delete(name);
    if (kind === null) return;
    drawn.set(name, kind);
    for (const panel of panels.add([picture({ name, kind, api: api ?? undefined }, name)])) observer.observe(panel);
  };
  /** Another time may tell otherwise what was guessed; the same time later, of what it had no values. */
  const forget = (load: Load) => {
    const isOther = JSON.stringify(load.span) !== time;
    time = JSON.stringify(load.span);
    for (const [name, { kind, isGuessed }] of kinds) if (kind === null || (isOther && isGuessed)) kinds.delete(name);
  };
  search.addEventListener("input", () => {
    shown = SHOWN;
    go(linkWith(route(), { q: search.value === "" ? null : search.value }), true);
    void filter();
  });
  more.addEventListener("click", () => {
    shown += SHOWN;
    void filter();
  });
  return {
    title: "Custom metrics",
    element,
    load: async (load) => {
      newest = load;
      forget(load);
      loaded.clear();
      pending = Promise.resolve();
      try {
        names = await customNames(tableWindow(load), load.signal, api);
        await filter();
        // The observer tells a while after it is so what can be seen now.
        for (const name of panels.visible(MARGIN)) seen.add(name);
        loadSeen();
        await pending;
      } catch (error) {
        if (load.signal.aborted || (error instanceof prom.Unreachable && names.length > 0)) return;
        fill(message, h("p", { class: "message", role: "alert" }, error instanceof Error ? error.message : String(error)));
      }
    },
    redraw: () => panels.redraw(),
    destroy: () => {
      observer.disconnect();
      panels.destroy();
    },
  };
}

function nothing(): HTMLElement {
  return h(
    "div",
    { class: "nothing" },
    h("p", {}, h("strong", {}, "No custom metrics in this time."), " In a predictor, or anywhere in Python:"),
    h(
      "pre",
      {},
      h("code", {}, 'from cortex_metrics import MetricsClient\n\nmetrics = MetricsClient()\nmetrics.increment("my_counter", 1, {"model": "v1"})\nmetrics.gauge("my_gauge", 42)\nmetrics.histogram("my_histogram", 100)'),
    ),
    h("p", {}, "They are here 10 s later. One that you miss: ", h("code", {}, "cortex doctor my_counter"), "."),
  );
}
