// A panel: a titled picture with its unit, legend, questions and numbers.

import { gridOf } from "./buckets.ts";
import type { Band, Grid } from "./buckets.ts";
import { fill, h, refill, setText, uniqueId } from "./dom.ts";
import { format, number } from "./format.ts";
import type { Unit } from "./format.ts";
import { HeatmapPlot } from "./heatmap.ts";
import { LinePlot } from "./lines.ts";
import type { Line, Value } from "./lines.ts";
import type { Mark } from "./plot.ts";
import * as prom from "./prom.ts";
import type { Histogram, Labels, RangeSeries } from "./prom.ts";
import { lineColor, lineDash, rampColor, theme } from "./theme.ts";
import { clock, duration, timesOf } from "./time.ts";
import type { TimeWindow } from "./time.ts";

/** One question of a panel, and what its answers are called. */
export interface Query {
  expr: string;
  name: (labels: Labels) => string;
  /** How long a value holds where no newer one is. Gauges: so short that a collector that was down leaves a gap. */
  lookback?: string;
  /** The area below is filled: a total beside its parts. */
  isFilled?: boolean;
  /** Left out where the next question gives one line alone: the same again. */
  isTotal?: boolean;
  /** What is wanted, beside what is. */
  isDashed?: boolean;
}

/** Three ticks: one may be missing, a collector that is down may not be passed over. */
export const GAUGE_LOOKBACK = "30s";

export interface PanelSpec {
  title: string;
  unit: Unit;
  /** What is drawn, in a few words; may depend on the steps. */
  note: (window: TimeWindow) => string;
  queries: (window: TimeWindow) => Query[];
  kind?: "lines" | "heatmap";
  /** Where colours begin, so that panels of different things look different. */
  color?: number;
  /** The axis begins at zero unless this says otherwise. */
  fromZero?: boolean;
  /** What to say, and what to do, if there is nothing. */
  empty: string;
}

/** Whom a panel asks for links and zoom. */
export interface Frame {
  zoom: (from: number, to: number) => void;
  back: () => void;
  /** The address that shows this panel alone; `null` if it is. */
  panelLink: (title: string) => string | null;
  exploreLink: (expr: string) => string;
}

/** So many lines of a question are drawn. */
export const LINES_MAX = 24;

export class Panel {
  readonly element: HTMLElement;
  private readonly host = h("div", { class: "chart", tabindex: 0, role: "img" });
  private readonly message = h("p", { class: "message", "aria-live": "polite" });
  private readonly legend = h("div", { class: "legend" });
  private readonly at = h("span", { class: "at" });
  private readonly note = h("p", { class: "note" });
  private readonly promql = h("div", { class: "questions" });
  private readonly table = h("div", { class: "numbers", tabindex: 0, role: "region", "aria-label": "Data of the panel" });
  private readonly details: HTMLDetailsElement;
  private readonly observer: ResizeObserver;
  private plot: LinePlot | HeatmapPlot;
  private times: number[] = [];
  private lines: Line[] = [];
  private grid: Grid | null = null;
  private span: [number, number] = [0, 1];
  private marks: Mark[] = [];
  private readonly hidden = new Set<string>();
  private values: HTMLElement[] = [];
  private legendShape = "";
  /** What was asked for that which is drawn. */
  private answered = "";

  constructor(
    private readonly spec: PanelSpec,
    private readonly frame: Frame,
  ) {
    const events = {
      onZoom: frame.zoom,
      onBack: frame.back,
      onCursor: (at: number | null) => this.showValues(at),
      marks: () => this.marks,
    };
    this.plot = spec.kind === "heatmap" ? new HeatmapPlot(this.host, events) : new LinePlot(this.host, events);
    const id = uniqueId("panel");
    const link = frame.panelLink(spec.title);
    this.details = h("details", { class: "data", ontoggle: () => this.showTable() }, h("summary", {}, "show data"), this.table);
    this.element = h(
      "section",
      { class: "panel", "data-panel": spec.title, "data-state": "loading", "aria-labelledby": id },
      h(
        "header",
        {},
        h("h2", { id }, link === null ? spec.title : h("a", { href: link }, spec.title)),
        spec.unit === "" ? null : h("span", { class: "unit" }, spec.unit === "s" ? "seconds" : spec.unit),
        this.at,
      ),
      h("div", { class: "picture" }, this.host, this.message),
      this.legend,
      this.note,
      h("div", { class: "tools" }, h("details", { class: "promql" }, h("summary", {}, "show PromQL"), this.promql), this.details),
    );
    this.host.addEventListener("keydown", (event) => {
      if (this.plot.key(event.key)) event.preventDefault();
    });
    this.observer = new ResizeObserver(() => this.plot.resize());
    this.observer.observe(this.host);
  }

  /** Asks, and draws what was answered. What was drawn stays until then, and if no answer comes. */
  async load(window: TimeWindow, span: [number, number], signal: AbortSignal): Promise<void> {
    const queries = this.spec.queries(window);
    const question = JSON.stringify([queries.map(({ expr, lookback }) => [expr, lookback]), window]);
    // Where points are far apart the next one takes its time: what is drawn stays the answer until then.
    if (question === this.answered) return;
    this.answered = "";
    this.showQueries(queries);
    setText(this.note, this.spec.note(window));
    try {
      const answers = await Promise.all(queries.map((query) => prom.range(query.expr, window, signal, { lookback: query.lookback, limit: LINES_MAX })));
      this.span = span;
      this.times = timesOf(window);
      if (this.spec.kind === "heatmap") this.takeGrid(answers[0]?.data ?? [], window);
      else this.takeLines(queries, answers.map((answer) => answer.data), window);
      const warnings = [...new Set(answers.flatMap((answer) => answer.warnings))].map((warning) =>
        // The API's words for that there is more than was asked for.
        warning === "results truncated due to limit" ? `There are more: the first ${LINES_MAX} are drawn` : warning,
      );
      if (warnings.length > 0) setText(this.note, `${this.spec.note(window)}. ${warnings.join(". ")}`);
      this.draw(window);
      this.answered = question;
    } catch (error) {
      if (signal.aborted || error instanceof prom.Unreachable) {
        // The banner says it; a panel that has drawn keeps what it has.
        if (!signal.aborted && this.element.dataset["state"] === "loading") this.say("error", error instanceof Error ? error.message : "");
        return;
      }
      this.say("error", error instanceof Error ? error.message : String(error));
    }
  }

  private takeLines(queries: Query[], answers: RangeSeries[][], window: TimeWindow): void {
    const isTwice = (query: number) => queries[query]?.isTotal && answers[query + 1]?.length === 1;
    const all = answers.flatMap((series, query) => (isTwice(query) ? [] : series.map((one) => ({ series: one, query: queries[query] }))));
    const used = new Map<string, number>();
    const lines = all.map(({ series, query }, at) => {
      let name = query?.name(series.metric) ?? "";
      const before = used.get(name) ?? 0;
      used.set(name, before + 1);
      if (before > 0) name = `${name} (${before + 1})`;
      const place = at + (this.spec.color ?? 0);
      return {
        name,
        values: aligned(series, window, this.times.length),
        color: lineColor(place),
        dash: query?.isDashed ? [5, 4] : lineDash(at),
        isFilled: query?.isFilled,
        isHidden: this.hidden.has(name),
      };
    });
    // What goes on before what has ended; colours stay those of the order of names.
    const isNow = (line: Line) => newest(line.values) !== null;
    this.lines = [...lines.filter(isNow), ...lines.filter((line) => !isNow(line))];
  }

  private takeGrid(answer: RangeSeries[], window: TimeWindow): void {
    const columns = new Array<Histogram | null>(this.times.length).fill(null);
    for (const [time, histogram] of answer.find((series) => series.histograms !== undefined)?.histograms ?? []) {
      const at = Math.round((time - window.start) / window.step);
      if (at >= 0 && at < columns.length) columns[at] = histogram;
    }
    this.grid = gridOf(columns);
  }

  private draw(window: TimeWindow): void {
    const isEmpty = this.grid !== null ? this.grid.max === 0 : this.lines.every((line) => line.values.every((value) => value === null));
    if (this.plot instanceof HeatmapPlot) {
      if (this.grid) this.plot.draw({ times: this.times, step: window.step, grid: this.grid, unit: this.spec.unit }, this.span);
    } else {
      this.plot.draw({ times: this.times, lines: this.lines, unit: this.spec.unit, fromZero: this.spec.fromZero ?? true }, this.span);
    }
    this.showLegend();
    this.say(isEmpty ? "empty" : "drawn", isEmpty ? this.spec.empty : "");
    this.host.setAttribute("aria-label", this.inWords(isEmpty));
    this.showTable();
  }

  /** Shows these moments too. */
  mark(marks: Mark[]): void {
    this.marks = marks;
    this.plot.redraw();
  }

  private say(state: string, text: string): void {
    this.element.dataset["state"] = state;
    setText(this.message, text);
    this.message.hidden = text === "";
  }

  /** What the picture shows, for whoever does not see it. */
  private inWords(isEmpty: boolean): string {
    const { title, unit } = this.spec;
    if (isEmpty) return `${title}: nothing yet`;
    if (this.grid !== null) return `${title}: heatmap of ${this.grid.bands.length} bands over time. The numbers are below, under show data.`;
    const lines = this.lines.map((line) => {
      const values = line.values.filter((value) => value !== null);
      if (values.length === 0) return `${line.name} nothing`;
      const [low, high] = [Math.min(...values), Math.max(...values)];
      return `${line.name} last ${format(values[values.length - 1], unit)}, between ${format(low, unit)} and ${format(high, unit)}`;
    });
    return `${title}: ${lines.join("; ")}. Arrow keys read values off.`;
  }

  private showQueries(queries: Query[]): void {
    const items = queries.map((query) =>
      h(
        "div",
        { class: "question" },
        h("code", {}, query.expr),
        query.lookback === undefined ? null : h("span", { class: "hint" }, `lookback_delta ${query.lookback}`),
        h("a", { href: this.frame.exploreLink(query.expr) }, "Explore"),
      ),
    );
    refill(this.promql, ...items);
  }

  private showLegend(): void {
    if (this.grid !== null) {
      this.showRamp(this.grid);
      return;
    }
    const shape = JSON.stringify(this.lines.map((line) => [line.name, line.color, line.dash ?? 0, line.isHidden]));
    if (shape !== this.legendShape) {
      this.legendShape = shape;
      this.values = this.lines.map(() => h("span", { class: "value" }));
      const keys = this.lines.map((line, at) => {
        const swatch = h("span", { class: "swatch" });
        swatch.style.borderTopColor = line.color;
        swatch.style.borderTopStyle = line.dash ? "dashed" : "solid";
        return h(
          "button",
          {
            type: "button",
            class: "key",
            "aria-pressed": line.isHidden ? "false" : "true",
            title: `${line.name}: click to show or hide`,
            "data-series": line.name,
            onclick: () => this.toggle(line.name),
          },
          swatch,
          h("span", { class: "name" }, line.name),
          this.values[at],
        );
      });
      fill(this.legend, ...keys);
    }
    this.showValues(null);
  }

  private toggle(name: string): void {
    if (!this.hidden.delete(name)) this.hidden.add(name);
    for (const line of this.lines) line.isHidden = this.hidden.has(line.name);
    if (this.plot instanceof LinePlot) {
      this.plot.draw({ times: this.times, lines: this.lines, unit: this.spec.unit, fromZero: this.spec.fromZero ?? true }, this.span);
    }
    const focused = this.legend.contains(document.activeElement);
    this.showLegend();
    if (focused) [...this.legend.querySelectorAll("button")].find((key) => key.dataset["series"] === name)?.focus();
  }

  private showRamp(grid: Grid): void {
    const { ramp } = theme();
    if (this.values.length === 0) this.values = [h("span", { class: "value" })];
    const steps = [0.02, 0.25, 0.5, 0.75, 1].map((share) => {
      const cell = h("span", { class: "cell" });
      cell.style.backgroundColor = rampColor(ramp, Math.sqrt(share));
      return cell;
    });
    fill(this.legend, h("span", { class: "ramp" }, "few ", ...steps, ` ${format(grid.max, "/s")} /s`), this.values[0]);
    this.showValues(null);
  }

  /** The values at a point; at no point the newest that there are. */
  private showValues(at: number | null): void {
    const time = at === null ? undefined : this.times[at];
    const isLong = this.span[1] - this.span[0] > 86_400;
    setText(this.at, time === undefined ? "" : clock(time, isLong));
    if (this.grid !== null && this.values[0]) {
      setText(this.values[0], this.cellInWords(this.grid, at));
      return;
    }
    this.lines.forEach((line, series) => {
      const value = at === null ? newest(line.values) : line.values[at];
      const element = this.values[series];
      if (element) setText(element, format(value, this.spec.unit));
    });
  }

  private cellInWords(grid: Grid, at: number | null): string {
    const band = this.plot instanceof HeatmapPlot ? this.plot.bandUnderPointer() : null;
    const column = at === null ? undefined : grid.counts[at];
    if (at === null || column === undefined) return "";
    if (column === null) return "–";
    if (band === null) return `${format(column.reduce((sum, one) => sum + one, 0), "/s")} /s in all`;
    return `${this.bandName(grid.bands[band])}: ${format(column[band], "/s")} /s`;
  }

  private bandName(band: Band | undefined): string {
    if (band?.isZero) return "0";
    return band === undefined ? "" : `${format(band.low, this.spec.unit)} to ${format(band.high, this.spec.unit)}`;
  }

  /** The drawn numbers, made only for whoever looks. */
  private showTable(): void {
    if (!this.details.open) return;
    const { grid } = this;
    const names = grid === null ? this.lines.map((line) => line.name) : grid.bands.map((band) => this.bandName(band));
    const value = (row: number, column: number): Value =>
      grid === null ? (this.lines[column]?.values[row] ?? null) : (grid.counts[row]?.[column] ?? null);
    const unit = grid === null ? this.spec.unit : "/s";
    const head = h("tr", {}, h("th", { scope: "col" }, "time"), ...names.map((name) => h("th", { scope: "col", "data-series": name }, name)));
    const rows = this.times.map((time, row) => {
      const cells = names.map((name, column) => {
        const cell = value(row, column);
        return h("td", { "data-series": name, "data-value": cell === null ? "" : String(cell) }, format(cell, unit));
      });
      return h("tr", { "data-time": time }, h("th", { scope: "row" }, clock(time, true)), ...cells);
    });
    const { scrollTop, scrollLeft } = this.table;
    fill(this.table, h("table", { "data-series": names.length }, h("thead", {}, head), h("tbody", {}, ...rows.reverse())));
    this.table.scrollTo(scrollLeft, scrollTop);
  }

  /** After a change of colours everything is drawn anew. */
  redraw(window: TimeWindow): void {
    if (this.element.dataset["state"] === "loading") return;
    this.plot.destroy();
    this.lines.forEach((line, at) => (line.color = lineColor(at + (this.spec.color ?? 0))));
    this.legendShape = "";
    this.draw(window);
  }

  destroy(): void {
    this.observer.disconnect();
    this.plot.destroy();
  }
}

/** Native histograms count zeros up to this (2^-128), and percentiles among them are somewhere below it. */
const ZERO = 2.94e-39;

/** The values of a series at each step; `null` where there is none, or none that can be drawn. */
function aligned(series: RangeSeries, window: TimeWindow, length: number): Value[] {
  const values = new Array<Value>(length).fill(null);
  for (const [time, text] of series.values ?? []) {
    const at = Math.round((time - window.start) / window.step);
    const value = number(text);
    if (at >= 0 && at < length && Number.isFinite(value)) values[at] = Math.abs(value) <= ZERO ? 0 : value;
  }
  return values;
}

/** The newest value, if it is one of the last few: what ended long ago is no value of now. */
function newest(values: Value[]): Value {
  for (let at = values.length - 1; at >= Math.max(values.length - 3, 0); at -= 1) {
    const value = values[at];
    if (value !== null && value !== undefined) return value;
  }
  return null;
}

/** "over 1m" */
export function overText(window: TimeWindow): string {
  return `over ${duration(window.over)}`;
}

/** p50, p90 and p99 at once: the histograms of weeks are read once. */
export function threeQuantiles(histogram: string): Query {
  const percent = (labels: Labels) => `p${Math.round(Number(labels["quantile"]) * 100)}`;
  return { expr: `histogram_quantiles(${histogram}, "quantile", 0.5, 0.9, 0.99)`, name: percent };
}
