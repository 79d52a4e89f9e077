import assert from "node:assert/strict";
import { test } from "node:test";
import { age, axisValues, count, format, inSentence, number, short, unitOf } from "./format.ts";

test("values have the unit in which they are short", () => {
  const cases: [number | null, Parameters<typeof format>[1], string][] = [
    [0.024, "s", "24 ms"],
    [0.9999, "s", "1 s"],
    [0.000_000_9, "s", "900 ns"],
    [75, "s", "75 s"],
    [1.5, "ms", "1.5 ms"],
    [1500, "ms", "1.5 s"],
    [0, "s", "0 s"],
    [3.5 * 2 ** 20, "bytes", "3.5 MiB"],
    [1023.9, "bytes", "1 KiB"],
    [2048, "bytes/s", "2 KiB/s"],
    [12_345, "req/s", "12.3 k"],
    [9999, "req/s", "9999"],
    [0.1 + 0.2, "", "0.3"],
    [-2.5, "", "−2.5"],
    [null, "s", "–"],
    [NaN, "s", "–"],
    [Infinity, "s", "∞"],
  ];
  for (const [value, unit, text] of cases) assert.equal(format(value, unit), text);
});

test("short numbers are not wrong", () => {
  assert.equal(short(100), "100");
  assert.equal(short(0.000_012_345), "0.0000123");
  assert.equal(short(1e-9), "1.00e-9");
  assert.equal(short(1234.5678, 6), "1234.57");
});

test("the labels of an axis are in one unit", () => {
  assert.deepEqual(axisValues([0, 0.25, 0.5, 1], "s"), ["0", "0.25 s", "0.5 s", "1 s"]);
  assert.deepEqual(axisValues([0, 0.005, 0.01], "s"), ["0", "5 ms", "10 ms"]);
  assert.deepEqual(axisValues([-2, 0, 2], ""), ["−2", "0", "2"]);
  // Neighbours that differ late.
  assert.deepEqual(axisValues([1e9, 1e9 + 5, 1e9 + 10], ""), ["1 G", "1.000000005 G", "1.00000001 G"]);
});

test("the API's numbers are read", () => {
  assert.equal(number("+Inf"), Infinity);
  assert.equal(number("-Inf"), -Infinity);
  assert.equal(number("1e-05"), 0.00001);
  assert.ok(Number.isNaN(number("NaN")));
});

test("a name tells its unit", () => {
  assert.equal(unitOf("batch_bytes_total"), "bytes");
  assert.equal(unitOf("predict_seconds"), "s");
  assert.equal(unitOf("latency_ms"), "ms");
  assert.equal(unitOf("items"), "");
});

test("ages and counts", () => {
  assert.deepEqual([0, 59.9, 60, 7199, 86_400 * 3].map(age), ["0s", "59s", "1m", "1h", "3d"]);
  assert.equal(count(1_234_567), "1 234 567");
  assert.equal(count(1e300), "1.00e+300");
});

test("a name that is written from right to left turns nothing but itself", () => {
  assert.equal(inSentence("text-generator"), "text-generator");
  assert.equal(inSentence("\u202eapi"), "\u2068\u202eapi\u2069");
});
