import { h } from "../dom.ts";
import type { Go, Page } from "../page.ts";
import type { Route } from "../route.ts";

export function explorePage(_route: () => Route, _go: Go): Page {
  return { title: "explore", element: h("div", {}, h("h1", {}, "explore")), load: async () => {}, redraw: () => {}, destroy: () => {} };
}
