// Colours, light and dark. Canvases take them as they are; the rest of the page has them from the style sheet.
//
// The lines' are after Okabe and Ito, whose eight keep apart for all kinds of colour blindness, darkened or lightened until
// each has a contrast of 3 : 1 or more with what it is drawn on.

const LIGHT = ["#0067a5", "#c2500a", "#007d5b", "#a8467f", "#8a6a00", "#4f55c9", "#5f5f5f", "#b3282d"];
const DARK = ["#5ab4ef", "#f0a030", "#2fc79a", "#e58fc0", "#e8dc4a", "#a3a8ff", "#b8b8b8", "#ff7f77"];
/** Lines beyond the colours repeat them with dashes. */
const DASHES: readonly (number[] | undefined)[] = [undefined, [6, 3], [2, 3]];

const RAMP_LIGHT = ["#dcecf7", "#9ecbe6", "#4a9bcb", "#1c66a3", "#08306b"];
const RAMP_DARK = ["#123049", "#1d5c86", "#2f93c4", "#7fcdf0", "#f3fbff"];

export interface Theme {
  isDark: boolean;
  text: string;
  grid: string;
  /** From few to many. */
  ramp: string[];
}

const dark = window.matchMedia("(prefers-color-scheme: dark)");

export function theme(): Theme {
  return dark.matches
    ? { isDark: true, text: "#9aa4af", grid: "#2a3139", ramp: RAMP_DARK }
    : { isDark: false, text: "#5b6570", grid: "#e6e9ed", ramp: RAMP_LIGHT };
}

export function onThemeChange(listener: () => void): void {
  dark.addEventListener("change", listener);
}

export function lineColor(at: number): string {
  const colors = theme().isDark ? DARK : LIGHT;
  return colors[at % colors.length] ?? "#888";
}

export function lineDash(at: number): number[] | undefined {
  return DASHES[Math.floor(at / LIGHT.length) % DASHES.length];
}

/** A colour of the ramp, `share` from 0 to 1. */
export function rampColor(ramp: string[], share: number): string {
  const place = Math.min(Math.max(share, 0), 1) * (ramp.length - 1);
  const at = Math.min(Math.floor(place), ramp.length - 2);
  const [low, high] = [channels(ramp[at]), channels(ramp[at + 1])];
  const mixed = low.map((value, channel) => Math.round(value + ((high[channel] ?? value) - value) * (place - at)));
  return `rgb(${mixed.join(",")})`;
}

function channels(hex = "#888888"): number[] {
  return [1, 3, 5].map((at) => Number.parseInt(hex.slice(at, at + 2), 16));
}
