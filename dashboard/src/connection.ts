// Whether the collector answers. When it does not, that is said, and what is drawn stays as it is.

import { fill, h } from "./dom.ts";
import { clock } from "./time.ts";

/** How often a collector that is gone is asked for. */
const AGAIN_SECONDS = 3;

const banner = h("div", { class: "banner", role: "alert", hidden: true });
let goneSince: number | null = null;
let trouble = "";
let timer: number | undefined;
let whenBack: () => void = () => {};

/** The banner; `back` is called when a collector that was gone answers again. */
export function connectionBanner(back: () => void): HTMLElement {
  whenBack = back;
  return banner;
}

/** Whether it did not answer when it was asked last. */
export function isDown(): boolean {
  return goneSince !== null;
}

/** No answer came. */
export function isGone(): void {
  if (goneSince !== null) return;
  goneSince = Date.now() / 1000;
  show();
  timer = window.setInterval(() => void ask(), AGAIN_SECONDS * 1000);
}

/** An answer came, if only an error. */
export function isThere(): void {
  if (goneSince === null) return;
  goneSince = null;
  window.clearInterval(timer);
  show();
  whenBack();
}

/** Asks how the collector does. */
export async function ask(): Promise<void> {
  try {
    const response = await fetch("healthz", { cache: "no-store", signal: AbortSignal.timeout(5000) });
    const text = await response.text();
    trouble = response.ok ? "" : text.trim();
    isThere();
    if (goneSince === null) show();
  } catch {
    isGone();
  }
}

function show(): void {
  document.body.dataset["connection"] = goneSince === null ? "up" : "down";
  const lines: (Node | string)[] = [];
  if (goneSince !== null) {
    lines.push(
      h("strong", {}, "The collector does not answer"),
      ` since ${clock(goneSince, true)}. What is drawn ends before that; nothing is counted as zero. ` +
        `Asking again every ${AGAIN_SECONDS} s. Clients on its host hold their metrics meanwhile. `,
      h("button", { type: "button", onclick: () => void ask() }, "Ask now"),
    );
  } else if (trouble !== "") {
    lines.push(h("strong", {}, "The collector is not well: "), trouble);
  }
  banner.hidden = lines.length === 0;
  const text = lines.map((line) => (typeof line === "string" ? line : line.textContent)).join("");
  if (banner.textContent !== text) fill(banner, ...lines);
}
