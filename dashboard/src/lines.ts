// Lines over time. A value that is not there is a gap.

import uPlot from "uplot";
import type { Unit } from "./format.ts";
import { axisValues } from "./format.ts";
import { fit, moveCursor, options } from "./plot.ts";
import type { PlotEvents } from "./plot.ts";

export type Value = number | null;

export interface Line {
  name: string;
  values: Value[];
  color: string;
  dash?: number[] | undefined;
  isFilled?: boolean | undefined;
  isHidden?: boolean | undefined;
}

export interface LineData {
  times: number[];
  lines: Line[];
  unit: Unit;
  /** Whether the axis begins at zero, as it does where amounts are compared. */
  fromZero: boolean;
}

/** The whole of an axis must be a number too. */
const DRAWN_MAX = Number.MAX_VALUE / 4;

export class LinePlot {
  private plot: uPlot | null = null;
  private shape = "";
  private data: LineData = { times: [], lines: [], unit: "", fromZero: true };
  private span: [number, number] = [0, 1];

  constructor(
    private readonly host: HTMLElement,
    private readonly events: PlotEvents,
  ) {}

  draw(data: LineData, span: [number, number]): void {
    this.data = data;
    this.span = span;
    const shape = JSON.stringify([data.unit, data.lines.map((line) => [line.name, line.color, line.dash ?? 0, line.isHidden ?? false])]);
    const columns: uPlot.AlignedData = [data.times, ...data.lines.map((line) => line.values)];
    if (this.plot !== null && shape === this.shape) {
      this.plot.setData(columns);
      return;
    }
    this.plot?.destroy();
    this.shape = shape;
    this.plot = new uPlot(this.options(), columns, this.host);
  }

  private options(): uPlot.Options {
    const range: uPlot.Scale.Range = (_u, low, high) => this.range(low, high);
    const axis = {
      values: (_u: uPlot, splits: number[]) => axisValues(splits, this.data.unit),
      // Steps of bytes are powers of two, as their units are.
      ...(this.data.unit.startsWith("bytes") ? { incrs: BINARY } : {}),
      space: 34,
    };
    const series = this.data.lines.map((line): uPlot.Series => ({
      label: line.name,
      stroke: line.color,
      // A total shows beside a part that is nearly all of it.
      width: line.isFilled ? 2.5 : 1.5,
      show: !(line.isHidden ?? false),
      ...(line.dash ? { dash: line.dash } : {}),
      ...(line.isFilled ? { fill: `${line.color}20` } : {}),
      spanGaps: false,
      points: { size: 4, width: 0, fill: line.color, show: true, filter: alone },
    }));
    return options(this.host, () => this.span, { axis, range }, series, this.events);
  }

  private range(low: number | null, high: number | null): [number, number] {
    if (low === null || high === null || !Number.isFinite(low) || !Number.isFinite(high)) return [0, 1];
    if (this.data.fromZero && low >= 0) return [0, high > 0 ? high * 1.08 : 1];
    // What differs by the rounding of numbers alone has no steps between.
    if (high - low <= Math.abs(high) * 1e-9) return [low - (Math.abs(low) * 0.05 || 1), high + (Math.abs(high) * 0.05 || 1)];
    const margin = (high / 2 - low / 2) * 0.16;
    return [Math.max(low - margin, -DRAWN_MAX), Math.min(high + margin, DRAWN_MAX)];
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
    this.shape = "";
  }
}

const BINARY = Array.from({ length: 60 }, (_, at) => 2 ** (at - 10));

/** Points between two gaps, of which no line would be seen. */
function alone(u: uPlot, series: number): number[] {
  const values = u.data[series] ?? [];
  const found: number[] = [];
  for (let at = 0; at < values.length; at += 1) {
    if (values[at] != null && values[at - 1] == null && values[at + 1] == null) found.push(at);
  }
  return found;
}
