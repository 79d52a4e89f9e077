// A line without axes, for a cell of a table.

import { svg } from "./dom.ts";
import type { Value } from "./lines.ts";

const WIDTH = 104;
const HEIGHT = 28;

/** A sparkline from zero to its highest value. Gaps stay gaps; the newest value has a dot. */
export function sparkline(values: Value[], label: string): SVGElement {
  const high = Math.max(0, ...values.map((value) => value ?? 0)) || 1;
  const x = (at: number) => (values.length < 2 ? 0 : (at / (values.length - 1)) * (WIDTH - 6) + 2);
  const y = (value: number) => HEIGHT - 3 - (value / high) * (HEIGHT - 6);
  let path = "";
  let isOpen = false;
  values.forEach((value, at) => {
    if (value === null) {
      isOpen = false;
      return;
    }
    const isAlone = !isOpen && (values[at + 1] ?? null) === null;
    path += `${isOpen ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}${isAlone ? "h0.01" : ""}`;
    isOpen = true;
  });
  const last = values.at(-1) ?? null;
  return svg(
    "svg",
    { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", width: WIDTH, height: HEIGHT, role: "img", "aria-label": label },
    svg("path", { class: "base", d: `M2 ${HEIGHT - 3}H${WIDTH - 4}` }),
    svg("path", { class: "line", d: path }),
    // A dot, whatever the width: a line without length and with round ends.
    last === null ? null : svg("path", { class: "dot", d: `M${x(values.length - 1).toFixed(1)} ${y(last).toFixed(1)}h0.01` }),
  );
}
