import assert from "node:assert/strict";
import { test } from "node:test";
import { fitting, placeAt } from "./complete.ts";

/** `|` is the cursor. */
function place(text: string): string | null {
  const cursor = text.indexOf("|");
  const found = placeAt(text.replace("|", ""), cursor);
  return found && [found.kind, found.begun, found.metric, found.label].map((part) => part ?? "-").join(" ");
}

test("the place tells what is wanted", () => {
  const cases: [string, string | null][] = [
    ["cort|", "name cort - -"],
    ["sum(rate(cor|[1m]))", "name cor - -"],
    ["rate(x[5|m])", null],
    ["up{|", "label  up -"],
    ["up{job|", "label job up -"],
    ['up{job="|"}', "value  up job"],
    ['up{job=~"a.*|', "value a.* up job"],
    ['up{job="a", inst|', "label inst up -"],
    ['up{job="a"|', null],
    ['up{job="}{", x="b|', "value b up x"],
    ['up{job="\\"|', 'value \\" up job'],
    ["sum by (api|) (x)", "label api - -"],
    ["sum by (api, |) (x)", "label  - -"],
    ["x / on(|", "label  - -"],
    ['label_replace(x, "a|', null],
    ["12|", null],
    ["x + 1.5e|", null],
    ["|", null],
    ["{__name__=~\"x\"} + foo|", "name foo - -"],
  ];
  for (const [text, wanted] of cases) assert.equal(place(text), wanted, text);
});

test("what begins so comes before what has it within", () => {
  assert.deepEqual(fitting(["my_rate", "rate", "irate", "Rated", "x"], "rate", 9), ["Rated", "my_rate", "irate"]);
  assert.deepEqual(fitting(["b", "a"], "", 1), ["b"]);
});
