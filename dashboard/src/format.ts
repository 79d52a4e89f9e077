// Numbers as the API writes them, and as people read them.

export type Unit = "req/s" | "/s" | "s" | "ms" | "bytes" | "bytes/s" | "cores" | "replicas" | "requests" | "";

/** A number of the API; NaN and the infinities as JavaScript has them. */
export function number(text: string): number {
  switch (text) {
    case "+Inf":
      return Infinity;
    case "-Inf":
      return -Infinity;
    default:
      return Number(text);
  }
}

/** A scale of units: each with how many of the smallest it is, ascending. */
type Scale = readonly (readonly [string, number])[];
const SECONDS: Scale = [["ns", 1e-9], ["µs", 1e-6], ["ms", 1e-3], ["s", 1]];
const MILLISECONDS: Scale = [["ns", 1e-6], ["µs", 1e-3], ["ms", 1], ["s", 1e3]];
const BYTES: Scale = [["B", 1], ["KiB", 2 ** 10], ["MiB", 2 ** 20], ["GiB", 2 ** 30], ["TiB", 2 ** 40]];
const BYTES_PER_SECOND: Scale = BYTES.map(([name, factor]) => [`${name}/s`, factor]);
const COUNT: Scale = [["", 1], ["k", 1e3], ["M", 1e6], ["G", 1e9], ["T", 1e12]];

function scaleOf(unit: Unit): Scale {
  switch (unit) {
    case "s":
      return SECONDS;
    case "ms":
      return MILLISECONDS;
    case "bytes":
      return BYTES;
    case "bytes/s":
      return BYTES_PER_SECOND;
    default:
      return COUNT;
  }
}

/** A number with `digits` that count, without zeros at its end. */
export function short(value: number, digits = 3): string {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e15 || size < 1e-6) return value.toExponential(digits - 1);
  const decimals = Math.max(digits - 1 - Math.floor(Math.log10(size)), 0);
  const text = value.toFixed(Math.min(decimals, 12));
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}

function step(scale: Scale, size: number): readonly [string, number] {
  let found = scale[0] ?? (["", 1] as const);
  // What rounds up to the next unit is written in it: 1 s, not 1000 ms.
  for (const one of scale) if (size * 1.0005 >= one[1]) found = one;
  return found;
}

/** A value with its unit: `24 ms`, `1.2 k`, `3.5 MiB`. The unit of a panel that stands in its title is left out. */
export function format(value: number | null | undefined, unit: Unit): string {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const sign = value < 0 ? "−" : "";
  const size = Math.abs(value);
  const scale = scaleOf(unit);
  if (size === 0) return scale === COUNT ? "0" : `0 ${scale === SECONDS || scale === MILLISECONDS ? unit : (scale[0]?.[0] ?? "")}`;
  if (scale === COUNT && size < 10_000) return sign + short(size, size < 1000 ? 3 : 4);
  // Beyond all prefixes an exponent says it alone.
  const [name, factor] = scale === COUNT && size >= 1e18 ? (["", 1] as const) : step(scale, size);
  return `${sign}${short(size / factor)}${name === "" ? "" : ` ${name}`}`;
}

/** The labels of an axis: all in the unit of the largest, so that they compare at a glance. */
export function axisValues(splits: number[], unit: Unit): string[] {
  const largest = Math.max(...splits.map(Math.abs), 0);
  const scale = scaleOf(unit);
  const [name, factor] = scale === COUNT && largest < 10_000 ? (["", 1] as const) : step(scale, largest || 1);
  // As many digits as it takes to tell neighbours apart.
  const apart = Math.min(...splits.slice(1).map((value, at) => Math.abs(value - (splits[at] ?? value))));
  const digits = apart > 0 && Number.isFinite(largest / apart) ? Math.min(Math.max(Math.ceil(Math.log10(largest / apart)) + 1, 4), 15) : 4;
  return splits.map((value) => {
    if (value === 0) return "0";
    const text = short(Math.abs(value) / factor, digits);
    return `${value < 0 ? "−" : ""}${text}${name === "" ? "" : ` ${name}`}`;
  });
}

/** How long ago or how long, in its largest unit: `12s`, `17m`, `1h`, `3d`, as `cortex get` says it. */
export function age(seconds: number): string {
  const whole = Math.max(Math.floor(seconds), 0);
  if (whole < 60) return `${whole}s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}m`;
  if (whole < 86_400) return `${Math.floor(whole / 3600)}h`;
  return `${Math.floor(whole / 86_400)}d`;
}

/** Every digit of a whole number, in groups of three. */
export function count(value: number): string {
  if (Math.abs(value) >= 1e15) return format(value, "");
  return String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, " ");
}

/** A name from outside in a sentence: one that is written from right to left, or says so, turns nothing but itself. */
export function inSentence(name: string): string {
  return /[\u0590-\u08ff\u200e\u200f\u202a-\u202e\u2066-\u2069\ufb1d-\ufdff\ufe70-\ufefc]/.test(name) ? `\u2068${name}\u2069` : name;
}

/** What a metric's name says about its unit. */
export function unitOf(name: string): Unit {
  const base = name.replace(/_total$/, "");
  if (/_seconds$/.test(base)) return "s";
  if (/_(ms|msec|millis|milliseconds)$/.test(base)) return "ms";
  if (/_bytes$/.test(base)) return "bytes";
  return "";
}

/** The unit of the rate of what is counted in `unit`. */
export function rateUnit(unit: Unit): Unit {
  switch (unit) {
    case "bytes":
      return "bytes/s";
    default:
      return "/s";
  }
}
