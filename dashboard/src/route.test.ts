import assert from "node:assert/strict";
import { test } from "node:test";
import { formatRoute, isSamePage, linkTo, linkWith, parseRoute } from "./route.ts";

test("any name is one segment, as cortex get writes it", () => {
  for (const name of ["a b/ü", "%", "a?b#c&d=e", "<img src=x onerror=alert(1)>\"'"]) {
    const hash = formatRoute(["api", name], new URLSearchParams({ range: "1h" }));
    assert.deepEqual(parseRoute(hash).path, ["api", name]);
    assert.equal(parseRoute(hash).params.get("range"), "1h");
  }
  assert.deepEqual(parseRoute("#/api/a%20b%2F%C3%BC").path, ["api", "a b/ü"]);
  assert.deepEqual(parseRoute("#/api/100%").path, ["api", "100%"]);
});

test("links keep the time, and nothing else", () => {
  const route = parseRoute("#/metrics/x?range=6h&refresh=off&by=model");
  assert.equal(linkTo(route, ["loss"]), "#/loss?range=6h&refresh=off");
  assert.equal(linkWith(route, { by: null, from: "1" }), "#/metrics/x?range=6h&refresh=off&from=1");
});

test("another time is the same page, another tag is not", () => {
  const same = (a: string, b: string) => isSamePage(parseRoute(a), parseRoute(b));
  assert.ok(same("#/api/x?range=1h", "#/api/x?from=1&to=2&refresh=off"));
  assert.ok(!same("#/api/x", "#/api/y"));
  assert.ok(!same("#/metrics/x?by=a", "#/metrics/x?by=b"));
});
