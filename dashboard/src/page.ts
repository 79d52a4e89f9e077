// What a page is to the program.

import type { Frame } from "./panel.ts";
import { Panel } from "./panel.ts";
import type { PanelSpec } from "./panel.ts";
import type { Mark } from "./plot.ts";
import type { Route } from "./route.ts";
import { linkTo, linkWith } from "./route.ts";
import { COLUMNS, POINTS, POINTS_WIDE, spanOf, windowOf, zoomTo } from "./time.ts";
import type { Span, TimeWindow } from "./time.ts";
import * as prom from "./prom.ts";

export interface Load {
  route: Route;
  /** When this is, by the collector's clock. */
  now: number;
  span: Span;
  signal: AbortSignal;
}

export interface Page {
  title: string;
  element: HTMLElement;
  /** Asks for what is shown; also for a refresh, and for another time. */
  load: (load: Load) => Promise<void>;
  /** Colours have changed. */
  redraw: () => void;
  destroy: () => void;
}

/** Shows an address. One that replaces the newest of the history only notes what the page shows already. */
export type Go = (hash: string, replaces?: boolean) => void;

/** From when to when is shown; newer ends at the newest tick that there may be. */
export function edges(load: Load): [number, number] {
  return "last" in load.span ? [load.now - load.span.last, load.now] : [load.span.from, load.span.to];
}

/** Panels in a grid, or the one that the address names at the page's width. */
export class Panels {
  readonly element = document.createElement("div");
  private panels: { spec: PanelSpec; panel: Panel; window: TimeWindow | null }[] = [];
  private readonly only: string | null;

  constructor(
    specs: PanelSpec[],
    private readonly route: () => Route,
    private readonly go: Go,
    /** Where a title leads, if not to its panel alone. */
    private readonly link?: (title: string) => string | null,
  ) {
    // A panel that is not among these: all of them.
    const only = link === undefined ? route().params.get("panel") : null;
    this.only = specs.length === 0 || specs.some((spec) => spec.title === only) ? only : null;
    this.element.className = this.only === null ? "panels" : "panels one";
    this.add(specs);
  }

  /** Puts further panels after those that are there. */
  add(specs: PanelSpec[]): HTMLElement[] {
    const added = specs.filter((spec) => this.only === null || this.only === spec.title);
    return added.map((spec) => {
      const panel = new Panel(spec, this.frame());
      this.panels.push({ spec, panel, window: null });
      this.element.append(panel.element);
      return panel.element;
    });
  }

  /** Puts them in the order of their titles. */
  sort(): void {
    this.panels.sort((a, b) => (a.spec.title < b.spec.title ? -1 : 1));
    this.panels.forEach(({ panel }, at) => {
      // What is in its place is not moved: a moved element loses the focus.
      if (this.element.children[at] !== panel.element) this.element.insertBefore(panel.element, this.element.children[at] ?? null);
    });
  }

  /** The titles of those that are in the window, or no farther from it. */
  visible(margin: number): string[] {
    const isVisible = ({ panel }: { panel: Panel }) => {
      const { top, bottom } = panel.element.getBoundingClientRect();
      return !panel.element.hidden && top < window.innerHeight + margin && bottom > -margin;
    };
    return this.panels.filter(isVisible).map(({ spec }) => spec.title);
  }

  /** Hides all others. */
  show(wanted: (title: string) => boolean): void {
    for (const { spec, panel } of this.panels) panel.element.hidden = !wanted(spec.title);
  }

  private frame(): Frame {
    return {
      zoom: (from, to) => {
        const before = beforeZoom() ?? shownTime(this.route());
        this.go(linkWith(this.route(), zoomTo(from, to)));
        // The step of the history that this made remembers it, through a reload too.
        history.replaceState({ beforeZoom: before }, "");
      },
      back: () => this.go(linkWith(this.route(), beforeZoom() ?? { from: null, to: null })),
      panelLink: (title) => {
        if (this.link !== undefined) return this.link(title);
        return this.only === null ? linkWith(this.route(), { panel: title }) : null;
      },
      exploreLink: (expr) => linkTo(this.route(), ["explore"], { expr }),
    };
  }

  async load(load: Load, wanted: (title: string) => boolean = () => true): Promise<void> {
    const loading = this.panels
      .filter(({ spec }) => wanted(spec.title))
      .map((one) => {
        const points = one.spec.kind === "heatmap" ? COLUMNS : this.only === null ? POINTS : POINTS_WIDE;
        one.window = windowOf(load.span, load.now, points);
        return one.panel.load(one.window, edges(load), load.signal);
      });
    await Promise.all(loading);
  }

  /** Takes a panel away. */
  remove(title: string): HTMLElement | null {
    const one = this.panels.find(({ spec }) => spec.title === title);
    if (one === undefined) return null;
    this.panels = this.panels.filter((other) => other !== one);
    one.panel.destroy();
    one.panel.element.remove();
    return one.panel.element;
  }

  /** Shows these moments in all panels. */
  mark(marks: Mark[]): void {
    for (const { panel } of this.panels) panel.mark(marks);
  }

  redraw(): void {
    for (const { panel, window } of this.panels) if (window !== null) panel.redraw(window);
  }

  clear(): void {
    this.destroy();
    this.element.replaceChildren();
  }

  destroy(): void {
    for (const { panel } of this.panels) panel.destroy();
    this.panels = [];
  }
}

/** The time that the address has, none of its own if it is the newest. */
function shownTime({ params }: Route): { from: string | null; to: string | null } {
  return { from: params.get("from"), to: params.get("to") };
}

/** Where the zoom began that is shown, if it is one. */
function beforeZoom(): { from: string | null; to: string | null } | undefined {
  return (history.state as { beforeZoom?: { from: string | null; to: string | null } } | null)?.beforeZoom;
}

/** The window of what is listed and not drawn: all of it, whatever the step. */
export function tableWindow(load: Load): TimeWindow {
  const [from, to] = edges(load);
  const end = Math.floor(Math.min(to, load.now));
  return { ...windowOf(load.span, load.now, POINTS), start: Math.min(Math.floor(from), end), end };
}

/** The load of the present moment. */
export function loadOf(route: Route, signal: AbortSignal): Load {
  return { route, now: prom.now(), span: spanOf(route, prom.now()), signal };
}
