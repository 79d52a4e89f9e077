// A heatmap over time: how much fell into which band of values.

import uPlot from "uplot";
import { placeOf } from "./buckets.ts";
import type { Grid } from "./buckets.ts";
import type { Unit } from "./format.ts";
import { axisValues, format } from "./format.ts";
import { fit, moveCursor, options } from "./plot.ts";
import type { PlotEvents } from "./plot.ts";
import { rampColor, theme } from "./theme.ts";

export interface HeatmapData {
  times: number[];
  step: number;
  grid: Grid;
  unit: Unit;
}

/** Few beside many are seen: a share of the most has the colour of its root. */
export const shade = (share: number) => Math.sqrt(share);

export class HeatmapPlot {
  private plot: uPlot | null = null;
  private data: HeatmapData | null = null;
  private span: [number, number] = [0, 1];

  constructor(
    private readonly host: HTMLElement,
    private readonly events: PlotEvents,
  ) {}

  draw(data: HeatmapData, span: [number, number]): void {
    this.data = data;
    this.span = span;
    // The axis counts bands; its labels say where they are.
    const columns: uPlot.AlignedData = [data.times, data.times.map(() => null)];
    if (this.plot === null) this.plot = new uPlot(this.options(), columns, this.host);
    else this.plot.setData(columns);
  }

  private options(): uPlot.Options {
    const bands = () => this.data?.grid.bands ?? [];
    const range: uPlot.Scale.Range = () => [0, Math.max(bands().length, 1)];
    const axis = {
      grid: { show: false },
      splits: () => this.marks().map(([, place]) => place),
      values: () => labels(this.marks().map(([value]) => value), this.data?.unit ?? ""),
    };
    // Cells first, then the axes.
    return options(this.host, () => this.span, { axis, range }, [{ show: false }], this.events, { drawClear: [(u) => this.cells(u)] });
  }

  /** Round values of the axis, and where among the bands they are. */
  private marks(): [number, number][] {
    const grid = this.data?.grid;
    const [lowest, highest] = [grid?.bands[0], grid?.bands.at(-1)];
    if (grid === undefined || lowest === undefined || highest === undefined) return [];
    const low = grid.isLogarithmic ? (grid.bands.find((band) => band.low > 0)?.low ?? 1) : lowest.low;
    const logarithmic = grid.isLogarithmic ? roundLogarithmic(low, highest.high) : [];
    const values = logarithmic.length > 1 ? logarithmic : roundLinear(low, highest.high);
    return values.map((value): [number, number] => [value, placeOf(grid, value)]);
  }

  private cells(u: uPlot): void {
    const data = this.data;
    if (data === null || data.grid.max === 0) return;
    const { ctx } = u;
    const { ramp } = theme();
    const { bands, counts, max } = data.grid;
    const left = (time: number) => Math.round(u.valToPos(time, "x", true));
    const edges = Array.from({ length: bands.length + 1 }, (_, at) => Math.round(u.valToPos(at, "y", true)));
    ctx.save();
    ctx.beginPath();
    ctx.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height);
    ctx.clip();
    data.times.forEach((time, column) => {
      // What a point says is of the time before it.
      const [from, to] = [left(time - data.step), left(time)];
      counts[column]?.forEach((count, band) => {
        if (count <= 0) return;
        ctx.fillStyle = rampColor(ramp, shade(count / max));
        const [bottom, top] = [edges[band] ?? 0, edges[band + 1] ?? 0];
        ctx.fillRect(from, top, Math.max(to - from, 1), Math.max(bottom - top, 1));
      });
    });
    ctx.restore();
  }

  /** The band under the pointer; `null` if the cursor is there by keys or from another panel. */
  bandUnderPointer(): number | null {
    const u = this.plot;
    if (u === null || this.data === null || !u.over.matches(":hover")) return null;
    const at = Math.floor(u.posToVal(u.cursor.top ?? -1, "y"));
    return at >= 0 && at < this.data.grid.bands.length ? at : null;
  }

  /** Draws the marks anew. */
  redraw(): void {
    this.plot?.redraw(false);
  }

  key(key: string): boolean {
    return this.plot !== null && moveCursor(this.plot, key);
  }

  resize(): void {
    fit(this.plot, this.host);
  }

  destroy(): void {
    this.plot?.destroy();
    this.plot = null;
  }
}

/** Values that are near to each other need the digits in which they differ; others each its own unit. */
function labels(values: number[], unit: Unit): string[] {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return low > 0 && high / low >= 10 ? values.map((value) => format(value, unit)) : axisValues(values, unit);
}

/** At most so many labels of the value axis. */
const MARKS_MAX = 5;

/** 1, 2 and 5 times powers of ten, or fewer of them, between two values. */
function roundLogarithmic(low: number, high: number): number[] {
  const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const within = (digits: number[], every: number) => {
    const found: number[] = [];
    for (let power = first; power <= last; power += 1) {
      if (power % every !== 0) continue;
      for (const digit of digits) found.push(Number(`${digit}e${power}`));
    }
    return found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
  };
  for (const digits of [[1, 2, 5], [1, 3], [1]]) {
    const found = within(digits, 1);
    if (found.length <= MARKS_MAX) return found;
  }
  return within([1], Math.ceil((last - first) / MARKS_MAX));
}

function roundLinear(low: number, high: number): number[] {
  const least = (high - low) / MARKS_MAX || 1;
  const power = 10 ** Math.floor(Math.log10(least));
  const step = [1, 2, 5, 10].map((digit) => digit * power).find((step) => step >= least) ?? least;
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, at) => (first + at) * step);
}
