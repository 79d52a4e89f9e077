import assert from "node:assert/strict";
import { test } from "node:test";
import { parseRoute } from "./route.ts";
import { COLUMNS, duration, POINTS, POINTS_WIDE, RANGES, spanOf, TICK, timesOf, windowOf, zoomTo } from "./time.ts";

test("steps are whole ticks, points are few, and nothing between two points is left out", () => {
  for (const points of [COLUMNS, POINTS, POINTS_WIDE]) {
    for (const [, last] of [...RANGES, ["odd", 12_345] as const]) {
      const window = windowOf({ last }, 1_795_739_836.7, points);
      assert.equal(window.step % TICK, 0);
      assert.equal(window.end % window.step, 0);
      // What is newer than the newest tick can be is not asked for, unless points are a tick apart.
      const newest = 1_795_739_836.7 - (window.step > TICK ? 15 : 0);
      assert.ok(window.end <= newest && window.end > newest - window.step);
      assert.ok(timesOf(window).length <= points + 1);
      assert.ok(window.over >= Math.max(window.step, 60));
      assert.ok(window.start >= 1_795_739_836.7 - last);
    }
  }
});

test("short ranges have every tick and a minute's rate", () => {
  const { step, over } = windowOf({ last: 3600 }, 1_795_739_836, POINTS);
  assert.deepEqual([step, over], [10, 60]);
});

test("a time that is not over ends now", () => {
  const window = windowOf({ from: 1000, to: 9000 }, 5000, POINTS);
  assert.equal(window.end, 5000 - (5000 % window.step));
});

test("durations are PromQL's", () => {
  assert.deepEqual([10, 60, 90, 3600, 86_400, 1_209_600].map(duration), ["10s", "1m", "90s", "1h", "1d", "14d"]);
});

test("a zoom shows whole ticks and never nothing", () => {
  assert.deepEqual(zoomTo(1001, 1302), { from: "1000", to: "1310" });
  assert.deepEqual(zoomTo(1000, 1000), { from: "940", to: "1060" });
  assert.deepEqual(zoomTo(5, 10), { from: "0", to: "70" });
});

test("an address that makes no sense shows the last hour", () => {
  for (const hash of ["", "#/", "#/?range=9z", "#/?from=5&to=4", "#/?from=a&to=b"]) {
    assert.deepEqual(spanOf(parseRoute(hash)), { last: 3600 }, hash);
  }
  assert.deepEqual(spanOf(parseRoute("#/?from=5&to=400")), { from: 5, to: 400 });
});

test("a time beyond all times ends a day ahead", () => {
  const now = 1_795_739_836;
  for (const to of ["99999999999999", "1e300", "Infinity"]) {
    assert.deepEqual(spanOf(parseRoute(`#/?from=-1e300&to=${to}`), now), { from: 0, to: now + 86_400 }, to);
  }
  assert.deepEqual(spanOf(parseRoute("#/?from=1e200&to=1e300"), now), { last: 3600 });
});
