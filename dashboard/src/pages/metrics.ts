import { h } from "../dom.ts";
import type { Go, Page } from "../page.ts";
import type { Route } from "../route.ts";

export function metricsPage(_route: () => Route, _go: Go): Page {
  return { title: "metrics", element: h("div", {}, h("h1", {}, "metrics")), load: async () => {}, redraw: () => {}, destroy: () => {} };
}
