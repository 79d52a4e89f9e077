// Histograms over time as a grid: exponential buckets merged to bands of which as many fit into a picture.

import { number } from "./format.ts";
import type { Histogram } from "./prom.ts";

/** As many bands as can be told apart. */
export const BANDS_MAX = 40;

export interface Band {
  low: number;
  high: number;
  /** What is in it is zero, or nobody tells it from zero. */
  isZero?: boolean;
}

export interface Grid {
  /** From the lowest values to the highest. */
  bands: Band[];
  /** `counts[column][band]`, a rate as the query gives it; `null` where there is no histogram. */
  counts: (number[] | null)[];
  max: number;
  /** Whether bands are equally wide in the logarithm; they are not where values are negative. */
  isLogarithmic: boolean;
}

interface Cell {
  low: number;
  high: number;
  count: number;
}

function cellsOf(histogram: Histogram): Cell[] {
  return (histogram.buckets ?? []).map(([, low, high, count]) => ({ low: number(low), high: number(high), count: number(count) }));
}

/** The zero bucket, or one of numbers that nobody tells from zero. */
const isZero = (cell: Cell) => cell.low <= 0 && cell.high >= 0;

/** The grid of what a range query gave, a histogram or nothing for each column. */
export function gridOf(histograms: (Histogram | null)[]): Grid {
  const columns = histograms.map((histogram) => (histogram === null ? null : cellsOf(histogram).filter((cell) => cell.count > 0)));
  const cells = columns.flatMap((column) => column ?? []).filter((cell) => !isZero(cell));
  const isLogarithmic = cells.every((cell) => cell.low >= 0);
  const bands = isLogarithmic ? logarithmic(cells) : linear(cells);
  const hasZero = columns.some((column) => column?.some(isZero));
  // Zero has no place on a logarithmic axis: it gets a band of its own below all others.
  if (hasZero && isLogarithmic) {
    const lowest = bands[0]?.low ?? 1;
    const ratio = bands[0] ? bands[0].high / bands[0].low : 2;
    bands.unshift({ low: 0, high: lowest === 0 ? ratio : lowest, isZero: true });
  }
  const counts = columns.map((column) => column && spread(column, bands, isLogarithmic));
  const max = Math.max(0, ...counts.map((column) => (column ? Math.max(0, ...column) : 0)));
  return { bands, counts, max, isLogarithmic };
}

/**
 * Bands on the boundaries of a native schema: powers of 2^(2^-schema). Finer schemas' boundaries are among them, so that a bucket
 * falls into one band whole.
 */
function logarithmic(cells: Cell[]): Band[] {
  if (cells.length === 0) return [];
  const low = Math.min(...cells.map((cell) => cell.low || cell.high / 2));
  const high = Math.max(...cells.map((cell) => cell.high));
  for (let schema = 5; schema >= -8; schema -= 1) {
    const per = 2 ** schema;
    const first = Math.floor(Math.log2(low) * per + 1e-6);
    const last = Math.ceil(Math.log2(high) * per - 1e-6);
    if (last - first > BANDS_MAX && schema > -8) continue;
    return Array.from({ length: Math.max(last - first, 1) }, (_, at) => ({
      low: 2 ** ((first + at) / per),
      high: 2 ** ((first + at + 1) / per),
    }));
  }
  return [];
}

function linear(cells: Cell[]): Band[] {
  const low = Math.min(...cells.map((cell) => cell.low));
  const high = Math.max(...cells.map((cell) => cell.high), 0);
  const width = (high - low) / BANDS_MAX || 1;
  return Array.from({ length: BANDS_MAX }, (_, at) => ({ low: low + at * width, high: low + (at + 1) * width }));
}

function spread(cells: Cell[], bands: Band[], isLogarithmic: boolean): number[] {
  const counts = new Array<number>(bands.length).fill(0);
  for (const cell of cells) {
    const middle = isLogarithmic && !isZero(cell) ? Math.sqrt((cell.low || cell.high / 2) * cell.high) : (cell.low + cell.high) / 2;
    const at = isLogarithmic && isZero(cell) ? 0 : bandAt(bands, middle);
    // Over several linear bands a bucket's count is shared by width.
    if (isLogarithmic || at < 0) counts[Math.max(at, 0)]! += cell.count;
    else share(counts, bands, cell);
  }
  return counts;
}

function share(counts: number[], bands: Band[], cell: Cell): void {
  const width = cell.high - cell.low;
  bands.forEach((band, at) => {
    const overlap = Math.min(band.high, cell.high) - Math.max(band.low, cell.low);
    if (width > 0 && overlap > 0) counts[at]! += (cell.count * overlap) / width;
    else if (width === 0 && cell.low > band.low && cell.low <= band.high) counts[at]! += cell.count;
  });
}

/** Where a value is on an axis of bands: 1.5 is the middle of the second. */
export function placeOf(grid: Grid, value: number): number {
  const { bands, isLogarithmic } = grid;
  const at = bands.findIndex((band) => value <= band.high);
  const band = bands[at];
  if (band === undefined) return bands.length;
  const share = isLogarithmic && band.low > 0 ? Math.log(value / band.low) / Math.log(band.high / band.low) : (value - band.low) / (band.high - band.low);
  return at + Math.min(Math.max(share, 0), 1);
}

/** The band that holds a value, -1 if none does. */
export function bandAt(bands: Band[], value: number): number {
  let [first, last] = [0, bands.length - 1];
  while (first <= last) {
    const middle = (first + last) >> 1;
    const band = bands[middle];
    if (band === undefined) return -1;
    if (value <= band.low && middle > 0) last = middle - 1;
    else if (value > band.high) first = middle + 1;
    else return middle;
  }
  return -1;
}
