// PromQL with names and values from outside in it.

/** A string of PromQL. */
export function quote(text: string): string {
  return `"${text.replace(/[\\"]/g, "\\$&").replace(/\n/g, "\\n")}"`;
}

/** What a record from outside has by this name, and not what every object inherits: a label may be called `constructor`. */
export function own<T>(record: Record<string, T>, name: string): T | undefined {
  return Object.hasOwn(record, name) ? record[name] : undefined;
}

const isPlainName = (name: string) => /^[a-zA-Z_:][a-zA-Z0-9_:]*$/.test(name);
const isPlainLabel = (name: string) => /^[a-zA-Z_][a-zA-Z0-9_]*$/.test(name);

/** The name of a label where PromQL wants one: quoted unless it is plain. */
export function labelName(name: string): string {
  return isPlainLabel(name) ? name : quote(name);
}

/** A selector: `name{label="value"}`, or `{"name", "label"="value"}` where the name is not plain. */
export function selector(name: string, matchers: Record<string, string> = {}, more: string[] = []): string {
  const inside = Object.entries(matchers).map(([label, value]) => `${labelName(label)}=${quote(value)}`);
  inside.push(...more);
  // Words of the language are no names at the beginning of a selector.
  if (!isPlainName(name) || WORDS.has(name.toLowerCase())) return `{${[quote(name), ...inside].join(", ")}}`;
  return inside.length === 0 ? name : `${name}{${inside.join(", ")}}`;
}

const WORDS = new Set(
  ("and or unless atan2 sum avg count min max group stddev stdvar topk bottomk count_values quantile limitk limit_ratio " +
    "offset smoothed anchored by without on ignoring group_left group_right fill bool inf nan start end step range").split(" "),
);

/** Whether a metric is one of the users' own. */
export function isCustom(name: string): boolean {
  return !/^cortex_(api|client|collector)_/.test(name);
}

/** Where a parse error is, and what it says: the API's `invalid parameter "query": 1:5: parse error: …`. */
export interface ParseError {
  /** From 0, in UTF-16 units as `String` counts. */
  at: number;
  message: string;
}

export function parseError(expr: string, text: string): ParseError | null {
  const found = /(?:^|: )(\d+):(\d+): ((?:parse error: )?[\s\S]*)$/.exec(text);
  if (!found) return null;
  const [line, column] = [Number(found[1]), Number(found[2])];
  const lines = expr.split("\n");
  if (line < 1 || line > lines.length) return null;
  const before = lines.slice(0, line - 1).reduce((length, one) => length + one.length + 1, 0);
  // Columns are counted in bytes of UTF-8.
  const bytes = new TextEncoder().encode(lines[line - 1]).slice(0, Math.max(column - 1, 0));
  const at = before + new TextDecoder().decode(bytes).length;
  return { at: Math.min(at, expr.length), message: (found[3] ?? "").replace(/^parse error: /, "") };
}
