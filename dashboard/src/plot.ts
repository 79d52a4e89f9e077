// What lines and heatmaps have in common: uPlot with our axes, a cursor that all panels share, zoom by drag, keys.

import uPlot from "uplot";
import { axisLabels } from "./time.ts";
import { theme } from "./theme.ts";

/** The width of all value axes but those of very long numbers, so that panels below each other have the same time at the same place. */
export const AXIS_WIDTH = 62;
const FONT = "11px system-ui, sans-serif";

/** A moment that all panels of a page show. */
export interface Mark {
  /** Unix seconds. */
  time: number;
  text: string;
}

export interface PlotEvents {
  /** A time was dragged over. */
  onZoom: (from: number, to: number) => void;
  /** A double click: the way back. */
  onBack: () => void;
  /** The cursor is at this point of the data, or nowhere. */
  onCursor: (at: number | null) => void;
  marks: () => Mark[];
}

export type AxisPart = Pick<uPlot.Axis, "values" | "splits" | "incrs" | "space" | "grid">;

/** The options of a plot in which `from` to `to` is shown. */
export function options(
  host: HTMLElement,
  span: () => [number, number],
  y: { axis: AxisPart; range: uPlot.Scale.Range },
  series: uPlot.Series[],
  events: PlotEvents,
  hooks: uPlot.Hooks.Arrays = {},
): uPlot.Options {
  const { text, grid } = theme();
  const line = { stroke: grid, width: 1 };
  return {
    ...sizeOf(host),
    series: [{}, ...series],
    legend: { show: false },
    padding: [16, 12, 0, 0],
    scales: { x: { time: true, range: span }, y: { range: y.range } },
    axes: [
      {
        stroke: text,
        font: FONT,
        size: 40,
        gap: 4,
        grid: { show: false },
        ticks: { ...line, size: 4 },
        space: 64,
        values: (_u, splits, _axis, _space, increment) => axisLabels(splits, increment),
      },
      { stroke: text, font: FONT, size: (_u, labels) => widthOf(labels), gap: 6, grid: line, ticks: { show: false }, ...y.axis },
    ],
    cursor: {
      y: false,
      drag: { x: true, y: false, setScale: false, dist: 4 },
      points: { size: 6, width: 0, fill: (u, at) => String(u.series[at]?.stroke instanceof Function ? color(u, at) : u.series[at]?.stroke) },
      // A drag is the panel's own: what it selects comes back through the address.
      sync: { key: "page", setSeries: false, scales: ["x", null], filters: { pub: (type) => type === "mousemove" } },
      bind: { dblclick: () => () => (events.onBack(), null) },
    },
    hooks: {
      ...hooks,
      draw: [(u) => drawMarks(u, events.marks())],
      setCursor: [(u) => events.onCursor(u.cursor.idx ?? null)],
      setSelect: [
        (u) => {
          if (u.select.width <= 0) return;
          const [from, to] = [u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")];
          u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
          events.onZoom(from, to);
        },
      ],
    },
  };
}

/** Room for the labels of a value axis. */
function widthOf(labels: string[] | null): number {
  return Math.max(AXIS_WIDTH, ...(labels ?? []).map((label) => 14 + 6.5 * label.length));
}

function color(u: uPlot, at: number): string {
  const stroke = u.series[at]?.stroke;
  return typeof stroke === "function" ? String(stroke(u, at)) : String(stroke);
}

/** The size that the style sheet gives the picture: its height is the same whatever is drawn, so that nothing jumps. */
export function sizeOf(host: HTMLElement): { width: number; height: number } {
  return { width: Math.max(Math.floor(host.clientWidth), 120), height: Math.max(host.clientHeight, 120) };
}

/** Fits a plot to its place, should that have changed. */
export function fit(plot: uPlot | null, host: HTMLElement): void {
  const size = sizeOf(host);
  if (plot !== null && (plot.width !== size.width || plot.height !== size.height)) plot.setSize(size);
}

/** Moves the cursor of the plot, and with it that of all others, by the arrow keys. */
export function moveCursor(u: uPlot, key: string): boolean {
  const times = u.data[0];
  const last = times.length - 1;
  const at = u.cursor.idx ?? null;
  const by: Record<string, number> = {
    ArrowLeft: (at ?? last + 1) - 1,
    ArrowRight: (at ?? -1) + 1,
    PageUp: (at ?? 0) - 10,
    PageDown: (at ?? 0) + 10,
    Home: 0,
    End: last,
  };
  if (key === "Escape") {
    place(u, -10, -10);
    return true;
  }
  const to = by[key];
  if (to === undefined || last < 0) return false;
  const left = u.valToPos(times[Math.min(Math.max(to, 0), last)] ?? 0, "x");
  place(u, left, u.over.clientHeight / 2);
  return true;
}

/** Sets the cursor and tells the other panels, which uPlot's types know nothing of. */
function place(u: uPlot, left: number, top: number): void {
  (u.setCursor as (at: { left: number; top: number }, fires: boolean, publishes: boolean) => void)({ left, top }, true, true);
}

/** A dashed line at each mark, with its text beside it. */
function drawMarks(u: uPlot, marks: Mark[]): void {
  const { ctx, bbox } = u;
  const [from, to] = [u.scales["x"]?.min ?? 0, u.scales["x"]?.max ?? 0];
  const scale = devicePixelRatio;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = theme().text;
  ctx.lineWidth = scale;
  ctx.setLineDash([3 * scale, 3 * scale]);
  ctx.font = `${11 * scale}px system-ui, sans-serif`;
  ctx.textBaseline = "bottom";
  for (const { time, text } of marks) {
    if (time <= from || time >= to) continue;
    const left = Math.round(u.valToPos(time, "x", true));
    ctx.beginPath();
    ctx.moveTo(left, bbox.top - 12 * scale);
    ctx.lineTo(left, bbox.top + bbox.height);
    ctx.stroke();
    // On the side where there is room.
    const isRight = left < bbox.left + bbox.width / 2;
    ctx.textAlign = isRight ? "left" : "right";
    ctx.fillText(text, left + (isRight ? 4 : -4) * scale, bbox.top - 2 * scale, bbox.width / 2);
  }
  ctx.restore();
}
