// The program: shows the page that the address names, and asks again as often as it says.

import "uplot/dist/uPlot.min.css";
import "./style.css";
import * as connection from "./connection.ts";
import { h, refill } from "./dom.ts";
import type { Page } from "./page.ts";
import { loadOf } from "./page.ts";
import { apiPage } from "./pages/api.ts";
import { explorePage } from "./pages/explore.ts";
import { lossPage } from "./pages/loss.ts";
import { metricPage } from "./pages/metric.ts";
import { metricsPage } from "./pages/metrics.ts";
import { overviewPage } from "./pages/overview.ts";
import * as prom from "./prom.ts";
import { isSamePage, linkTo, parseRoute } from "./route.ts";
import type { Route } from "./route.ts";
import { onThemeChange } from "./theme.ts";
import { refreshOf, spanOf } from "./time.ts";
import { toolbar } from "./toolbar.ts";

/** Seconds by which the collector's clock may be found to differ from what was thought without asking anew. */
const CLOCK_STEP = 5;

let route = parseRoute(location.hash);
let page: Page | null = null;
let asking = new AbortController();
let timer: number | undefined;

const main = h("main", { id: "main", tabindex: -1 });
const head = toolbar(go, () => void load());
document.body.append(head.element, connection.connectionBanner(() => void load()), main);

function go(hash: string, replaces = false): void {
  if (!replaces) {
    location.hash = hash;
    return;
  }
  history.replaceState(null, "", hash);
  route = parseRoute(location.hash);
  head.show(route);
}

function make(route: Route): Page {
  const current = () => parseRoute(location.hash);
  const [kind, name] = route.path;
  if (kind === undefined) return overviewPage(current, go);
  if (kind === "api" && name !== undefined) return apiPage(name, current, go);
  if (kind === "metrics") return name === undefined ? metricsPage(current, go) : metricPage(name, current, go);
  if (kind === "loss") return lossPage(current, go);
  if (kind === "explore") return explorePage(current, go);
  return lost();
}

function lost(): Page {
  const element = h("div", {}, h("h1", {}, "No such page"), h("p", {}, h("a", { href: linkTo(route, []) }, "To the APIs")));
  return { title: "No such page", element, load: async () => {}, redraw: () => {}, destroy: () => {} };
}

function show(isFirst: boolean): void {
  const before = route;
  route = parseRoute(location.hash);
  head.show(route);
  if (page === null || !isSamePage(before, route)) {
    const isOther = page === null || before.path.join("/") !== route.path.join("/");
    page?.destroy();
    page = make(route);
    document.title = page.title === "" ? "cortex-metrics" : `${page.title} · cortex-metrics`;
    refill(main, page.element);
    if (isOther && !isFirst) {
      window.scrollTo(0, 0);
      main.focus({ preventScroll: true });
    }
  }
  void load();
}

/** Asks for all that is shown; what was asked before and has not come is not wanted any more. */
async function load(): Promise<void> {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  window.clearTimeout(timer);
  document.body.dataset["ready"] = "false";
  const ahead = prom.now() - Date.now() / 1000;
  try {
    // Beside it: a collector that hangs answers neither, and is told of.
    await Promise.all([page?.load(loadOf(route, signal)), connection.ask()]);
  } catch (error) {
    if (!signal.aborted) console.error(error);
  }
  if (signal.aborted) return;
  if (Math.abs(prom.now() - Date.now() / 1000 - ahead) > CLOCK_STEP) {
    // The first answers told that the collector's clock is another one: what it calls now was not asked for.
    void load();
    return;
  }
  document.body.dataset["ready"] = "true";
  const [, seconds] = refreshOf(route);
  // What is over does not change.
  if (seconds > 0 && "last" in spanOf(route)) timer = window.setTimeout(again, seconds * 1000);
}

/** Nobody looks at a page that is hidden: it asks when it is seen again. */
function again(): void {
  if (document.hidden) document.addEventListener("visibilitychange", again, { once: true });
  else void load();
}

window.addEventListener("hashchange", () => show(false));
onThemeChange(() => page?.redraw());
document.querySelector(".skip")?.addEventListener("click", (event) => {
  // The address is the page's state: the link moves the focus alone.
  event.preventDefault();
  main.focus();
});
show(true);
