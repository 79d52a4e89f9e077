import { h } from "../dom.ts";
import type { Go, Page } from "../page.ts";
import type { Route } from "../route.ts";

export function metricPage(_name: string, _route: () => Route, _go: Go): Page {
  return { title: "metric", element: h("div", {}, h("h1", {}, "metric")), load: async () => {}, redraw: () => {}, destroy: () => {} };
}
