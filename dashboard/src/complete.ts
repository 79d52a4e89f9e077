// What may stand at the cursor of an expression that is being written: looked at only, never parsed.

/** What is wanted there, and which part of the text it replaces. */
export interface Place {
  kind: "name" | "label" | "value";
  from: number;
  /** What is written of it already. */
  begun: string;
  /** The metric whose labels are wanted, if it is written. */
  metric: string | null;
  /** The label whose values are wanted. */
  label: string | null;
}

const AGGREGATIONS = "sum avg count min max group stddev stdvar topk bottomk count_values quantile limitk limit_ratio";
const FUNCTIONS =
  "abs absent absent_over_time avg_over_time ceil changes clamp clamp_max clamp_min count_over_time day_of_month day_of_week " +
  "day_of_year days_in_month delta deriv exp first_over_time floor histogram_avg histogram_count histogram_fraction " +
  "histogram_quantile histogram_quantiles histogram_stddev histogram_stdvar histogram_sum hour idelta increase irate label_join " +
  "label_replace last_over_time ln log10 log2 mad_over_time max_over_time min_over_time minute month predict_linear " +
  "present_over_time quantile_over_time rate resets round scalar sgn sort sort_by_label sort_desc sqrt stddev_over_time " +
  "stdvar_over_time sum_over_time time timestamp vector year";

/** The words of the language that begin an expression. */
export const WORDS: readonly string[] = `${AGGREGATIONS} ${FUNCTIONS}`.split(" ").sort();

/** The place of the cursor; `null` where nothing can be proposed: in a number, a range, a string that is no label's value. */
export function placeAt(text: string, cursor: number): Place | null {
  const before = text.slice(0, cursor);
  let braces = -1;
  let quoteAt = -1;
  let inRange = false;
  for (let at = 0; at < before.length; at += 1) {
    const c = before[at];
    if (quoteAt >= 0) {
      if (c === "\\" && before[quoteAt] !== "`") at += 1;
      else if (c === before[quoteAt]) quoteAt = -1;
    } else if (c === '"' || c === "'" || c === "`") quoteAt = at;
    else if (c === "{") braces = at;
    else if (c === "}") braces = -1;
    else if (c === "[") inRange = true;
    else if (c === "]") inRange = false;
  }
  if (inRange) return null;
  const metric = braces < 0 ? null : (/([a-zA-Z_:][\w:]*)\s*$/.exec(before.slice(0, braces))?.[1] ?? null);
  if (quoteAt >= 0) {
    const label = braces < 0 ? undefined : /([a-zA-Z_]\w*)\s*(?:=~|!~|!=|=)\s*$/.exec(before.slice(0, quoteAt))?.[1];
    return label === undefined ? null : { kind: "value", from: quoteAt + 1, begun: before.slice(quoteAt + 1), metric, label };
  }
  const begun = /[a-zA-Z_:][\w:]*$/.exec(before)?.[0] ?? "";
  const from = cursor - begun.length;
  const rest = before.slice(0, from);
  if (/[\w.]$/.test(rest)) return null;
  if (braces >= 0) return /[{,]\s*$/.test(rest) ? { kind: "label", from, begun, metric, label: null } : null;
  if (/\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^()]*$/.test(rest)) return { kind: "label", from, begun, metric: null, label: null };
  return begun === "" ? null : { kind: "name", from, begun, metric: null, label: null };
}

/** Those of `all` that fit to what is begun, those that begin with it first. */
export function fitting(all: readonly string[], begun: string, most: number): string[] {
  const wanted = begun.toLowerCase();
  const rank = (name: string) => {
    const at = name.toLowerCase().indexOf(wanted);
    return at < 0 ? 2 : Math.min(at, 1);
  };
  const ranked = all.map((name) => [rank(name), name] as const).filter(([rank, name]) => rank < 2 && name !== begun);
  return ranked
    .sort((a, b) => a[0] - b[0])
    .slice(0, most)
    .map(([, name]) => name);
}
