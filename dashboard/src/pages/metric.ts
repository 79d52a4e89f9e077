// One of the users' metrics: all its pictures, split by any tag.

import { FOLDS, growth, kindsOf, labelsText, pictures, within } from "../custom.ts";
import type { Fold, Metric, Told } from "../custom.ts";
import { fill, h, refill } from "../dom.ts";
import type { Child } from "../dom.ts";
import { count, format, number, unitOf } from "../format.ts";
import type { Go, Load, Page } from "../page.ts";
import { edges, Panels, tableWindow } from "../page.ts";
import { LINES_MAX } from "../panel.ts";
import { isCustom, selector } from "../promql.ts";
import * as prom from "../prom.ts";
import type { Route } from "../route.ts";
import { linkTo, linkWith } from "../route.ts";

export function metricPage(name: string, route: () => Route, go: Go): Page {
  const { params } = route();
  const api = params.get("api") ?? undefined;
  const by = params.get("by") ?? undefined;
  const fold = FOLDS.find((one) => one === params.get("fold"));
  const facts = h("div", { class: "facts" });
  const splits = h("div", { class: "filters" });
  const message = h("div", {});
  const panels = new Panels([], route, go);
  let shape = "";
  const element = h(
    "div",
    {},
    h("p", { class: "crumbs" }, h("a", { href: linkTo(route(), ["metrics"], api === undefined ? {} : { api }) }, "Custom metrics"), api === undefined ? null : ` of ${api}`),
    h("h1", {}, name),
    facts,
    splits,
    message,
    panels.element,
  );
  const matchers: Record<string, string> = api === undefined ? {} : { api_name: api };
  return {
    title: name,
    element,
    load: async (load) => {
      try {
        const window = tableWindow(load);
        const [kinds, labels, values] = await Promise.all([
          kindsOf([name], load, api),
          prom.labelNames(window, load.signal, selector(name, matchers)),
          by === undefined ? null : prom.labelValues(by, window, load.signal, selector(name, matchers)),
        ]);
        const told: Told = kinds.get(name) ?? { kind: null, isGuessed: true };
        // What is guessed may be wrong: whoever knows says so.
        const said = { rate: "counter", values: "gauge" } as const;
        const as = params.get("as");
        const isOpen = told.isGuessed && told.kind !== "histogram";
        const kind = isOpen && (as === "rate" || as === "values") ? said[as] : (told.kind ?? "gauge");
        const tags = labels.data.filter((label) => label !== "__name__" && !(label === "api_name" && api !== undefined));
        const metric: Metric = { name, kind, api, by, fold, isMany: (values?.data.length ?? 0) > LINES_MAX };
        const isThere = labels.data.length > 0 && told.kind !== null;
        refill(
          splits,
          ...(isThere ? split(route(), tags, by) : []),
          ...(isThere && kind === "gauge" ? folds(route(), fold, by) : []),
          ...(isThere && isOpen ? kindChoice(route(), kind === "counter") : []),
        );
        fill(message, isThere ? null : h("div", { class: "nothing" }, h("p", {}, h("strong", {}, "Nothing of this name in this time."), " Choose a longer one, or ask ", h("code", {}, `cortex doctor ${name}`), " where it goes.")));
        const wanted = JSON.stringify([metric, isThere]);
        if (wanted !== shape) {
          shape = wanted;
          panels.clear();
          const added = isThere ? panels.add(pictures(metric)) : [];
          panels.element.classList.toggle("one", added.length === 1);
        }
        const isSplit = by !== undefined && metric.isMany;
        if (!isThere) {
          fill(facts);
          return;
        }
        await Promise.all([panels.load(load), factsOf(metric, load, matchers, isSplit ? (values?.data.length ?? 0) : 0).then((all) => refill(facts, ...all))]);
      } catch (error) {
        if (load.signal.aborted || error instanceof prom.Unreachable) return;
        fill(message, h("p", { class: "message", role: "alert" }, error instanceof Error ? error.message : String(error)));
      }
    },
    redraw: () => panels.redraw(),
    destroy: () => panels.destroy(),
  };
}

/** How much there was in the time that is shown, exactly. */
async function factsOf(metric: Metric, load: Load, matchers: Record<string, string>, values: number): Promise<Child[]> {
  const [from, to] = edges(load);
  const of = selector(metric.name, matchers);
  const fact = (name: string, value: string) => h("span", { class: "fact" }, h("span", { class: "name" }, name), " ", h("span", { class: "value" }, value));
  const facts: Child[] = [h("span", { class: "kind" }, metric.kind)];
  if (values > 0) facts.push(fact("values of the tag", `${count(values)}, the ${LINES_MAX} highest are drawn`));
  if (metric.kind === "gauge" || !isCustom(metric.name)) {
    const { data } = await prom.instant(of, to, load.signal, 2);
    const [only, other] = data.resultType === "vector" ? data.result : [];
    if (only?.value && other === undefined) facts.push(fact("now", `${format(number(only.value[1]), unitOf(metric.name))} ${labelsText(only.metric)}`));
    return facts;
  }
  const seconds = to - from;
  const ask = async (expr: string) => (await prom.vector(expr, to, load.signal))[0]?.value;
  if (metric.kind === "counter") {
    const all = await ask(`sum(${growth(of, seconds)})`);
    if (all !== undefined) facts.push(fact("in this time", whole(all)));
    return facts;
  }
  const part = (suffix: string) => selector(metric.name + suffix, matchers);
  // The sum falls where values are negative too: the count alone tells of resets.
  const [n, sum, resets] = await Promise.all([
    ask(`sum(${growth(part("_count"), seconds)})`),
    ask(`sum(delta(${within(part("_sum"), seconds)} anchored))`),
    ask(`sum(resets(${within(part("_count"), seconds)}))`),
  ]);
  if (n === undefined || sum === undefined) return facts;
  facts.push(fact("values in this time", whole(n)));
  if (n === 0) return facts;
  // The buckets of weeks take long to read: only where it must be.
  const mean = resets ? await ask(`histogram_avg(sum(increase(${within(of, seconds)})))`) : sum / n;
  if (mean !== undefined) facts.push(fact("mean", format(mean, unitOf(metric.name))));
  return facts;
}

const whole = (value: number) => (Number.isInteger(value) ? count(value) : format(value, ""));

function split(route: Route, tags: string[], by: string | undefined): HTMLElement[] {
  if (tags.length === 0) return [];
  const choice = (text: string, tag: string | null) =>
    h("a", { class: "choice", href: linkWith(route, { by: tag, panel: null }), "aria-current": (by ?? null) === tag ? "true" : undefined, "data-tag": tag ?? "" }, text);
  return [h("span", { class: "hint" }, "split by"), h("span", { class: "group wraps", role: "group", "aria-label": "Split by" }, choice("nothing", null), ...tags.map((tag) => choice(tag, tag)))];
}

function folds(route: Route, fold: Fold | undefined, by: string | undefined): HTMLElement[] {
  const current = fold ?? (by === undefined ? null : "avg");
  const choice = (text: string, one: Fold | null) =>
    h("a", { class: "choice", href: linkWith(route, { fold: one }), "aria-current": current === one ? "true" : undefined }, text);
  const all = by === undefined ? [choice("each", null)] : [];
  return [h("span", { class: "hint" }, "show"), h("span", { class: "group", role: "group", "aria-label": "Show" }, ...all, ...FOLDS.map((one) => choice(one, one)))];
}

function kindChoice(route: Route, isCounter: boolean): HTMLElement[] {
  const choice = (text: string, as: string, isCurrent: boolean) =>
    h("a", { class: "choice", href: linkWith(route, { as, panel: null, fold: null }), "aria-current": isCurrent ? "true" : undefined, "data-as": as }, text);
  return [
    h("span", { class: "hint" }, "show as"),
    h("span", { class: "group", role: "group", "aria-label": "Show as" }, choice("rate", "rate", isCounter), choice("values", "values", !isCounter)),
  ];
}
