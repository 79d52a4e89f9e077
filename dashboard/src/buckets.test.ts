import assert from "node:assert/strict";
import { test } from "node:test";
import { bandAt, BANDS_MAX, gridOf, placeOf } from "./buckets.ts";
import type { Bucket, Histogram } from "./prom.ts";

/** A histogram of schema 5 with these counts by bucket number. */
function exponential(counts: [number, number][], more: Bucket[] = []): Histogram {
  const buckets = counts.map(([at, n]): Bucket => [0, String(2 ** ((at - 1) / 32)), String(2 ** (at / 32)), String(n)]);
  return { count: "0", sum: "0", buckets: [...more, ...buckets] };
}

const sum = (counts: number[] | null | undefined) => (counts ?? []).reduce((all, one) => all + one, 0);

test("bands hold every count once, and are not more than can be told apart", () => {
  const counts = Array.from({ length: 400 }, (_, at): [number, number] => [at - 300, 1 + (at % 7)]);
  const grid = gridOf([exponential(counts), null, exponential([[5, 3]])]);
  assert.ok(grid.isLogarithmic && grid.bands.length <= BANDS_MAX && grid.bands.length > BANDS_MAX / 4);
  assert.equal(sum(grid.counts[0]), counts.reduce((all, [, n]) => all + n, 0));
  assert.equal(grid.counts[1], null);
  assert.equal(sum(grid.counts[2]), 3);
  const at = grid.counts[2]?.findIndex((n) => n > 0) ?? -1;
  const [band, value] = [grid.bands[at], 2 ** (4.5 / 32)];
  assert.ok(band !== undefined && band.low < value && value < band.high);
});

test("few neighbouring buckets are bands as they are", () => {
  const grid = gridOf([exponential([[1, 2], [2, 5], [3, 1]])]);
  assert.deepEqual(grid.counts[0], [2, 5, 1]);
  assert.ok(Math.abs((grid.bands[0]?.low ?? 0) - 1) < 1e-9);
});

test("zero has a band below", () => {
  const zero: Bucket = [3, "-1e-128", "1e-128", "4"];
  const grid = gridOf([exponential([[1, 2]], [zero])]);
  assert.deepEqual(grid.counts[0], [4, 2]);
  assert.equal(grid.bands[0]?.low, 0);
  assert.deepEqual(gridOf([exponential([], [zero])]).counts[0], [4]);
});

test("negative values make the axis linear, and nothing gets lost", () => {
  const grid = gridOf([exponential([[1, 2], [100, 6]], [[1, "-2", "-1.9", "5"]])]);
  assert.ok(!grid.isLogarithmic);
  assert.ok(Math.abs(sum(grid.counts[0]) - 13) < 1e-9);
});

test("nothing is an empty grid", () => {
  assert.deepEqual(gridOf([null, { count: "0", sum: "0" }]), { bands: [], counts: [null, []], max: 0, isLogarithmic: true });
});

test("values have their place on the axis", () => {
  const grid = gridOf([exponential([[1, 1], [33, 1]])]);
  assert.equal(bandAt(grid.bands, 2 ** (0.5 / 32)), 0);
  assert.equal(bandAt(grid.bands, 1e9), -1);
  assert.ok(Math.abs(placeOf(grid, grid.bands[3]?.high ?? 0) - 4) < 1e-6);
});
