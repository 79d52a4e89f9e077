import { h } from "../dom.ts";
import type { Go, Page } from "../page.ts";
import type { Route } from "../route.ts";

export function lossPage(_route: () => Route, _go: Go): Page {
  return { title: "loss", element: h("div", {}, h("h1", {}, "loss")), load: async () => {}, redraw: () => {}, destroy: () => {} };
}
