// A heatmap over time: how much fell into which band of values.

import uPlot from "uplot";
import type { Grid } from "./buckets.ts";
import type { Unit } from "./format.ts";
import { format } from "./format.ts";
import { moveCursor, options, widthOf } from "./plot.ts";
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
      splits: () => {
        const every = Math.max(Math.ceil(bands().length / 5), 1);
        return Array.from({ length: Math.floor(bands().length / every) + 1 }, (_, at) => at * every);
      },
      values: (_u: uPlot, splits: number[]) =>
        splits.map((at) => {
          const edge = at === 0 ? bands()[0]?.low : bands()[at - 1]?.high;
          return edge === undefined ? "" : format(Number(edge.toPrecision(2)), this.data?.unit ?? "");
        }),
    };
    // Cells first, then axes and grid above them.
    return options(this.host, () => this.span, { axis, range }, [{ show: false }], this.events, { drawClear: [(u) => this.cells(u)] });
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

  key(key: string): boolean {
    return this.plot !== null && moveCursor(this.plot, key);
  }

  resize(): void {
    if (this.plot !== null && this.plot.width !== widthOf(this.host)) this.plot.setSize({ width: widthOf(this.host), height: this.plot.height });
  }

  destroy(): void {
    this.plot?.destroy();
    this.plot = null;
  }
}
