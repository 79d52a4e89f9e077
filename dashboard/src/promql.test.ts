import assert from "node:assert/strict";
import { test } from "node:test";
import { isCustom, labelName, parseError, quote, selector } from "./promql.ts";

test("what comes from outside stays a string", () => {
  assert.equal(quote('a"} or vector(1) #\\\n'), '"a\\"} or vector(1) #\\\\\\n"');
  assert.equal(selector("up", { job: 'x"' }), 'up{job="x\\""}');
});

test("names that are not plain are quoted", () => {
  assert.equal(selector("up"), "up");
  assert.equal(selector("http.requests", { "a b": "c" }), '{"http.requests", "a b"="c"}');
  assert.equal(labelName("größe"), '"größe"');
  // A word of the language where an expression begins is not a name.
  assert.equal(selector("sum"), '{"sum"}');
  assert.equal(selector("m", {}, ['code=~"2.."']), 'm{code=~"2.."}');
});

test("ours and the users' metrics are told apart", () => {
  assert.deepEqual(["cortex_api_info", "cortex_client_calls_total", "cortex_collector_series", "cortex_other", "up"].map(isCustom), [false, false, false, true, true]);
});

test("an error is at its place, in characters although the API counts bytes", () => {
  const at = (expr: string, text: string) => parseError(expr, text)?.at;
  assert.equal(at("sum by (", 'invalid parameter "query": 1:9: parse error: unclosed left parenthesis'), 8);
  assert.equal(at('{a="ü"} ! 1', 'invalid parameter "query": 1:10: parse error: unexpected character: \'!\''), 8);
  assert.equal(at("sum(\n x) ?", 'invalid parameter "query": 2:5: parse error: x'), 9);
  assert.equal(parseError("x", 'invalid parameter "query": 1:1: parse error: a: 2:3: b')?.message, "a: 2:3: b");
  assert.equal(parseError("x", "query timed out in query queue"), null);
  assert.equal(parseError("x", "7:1: parse error: a line that is not there"), null);
});
