// The address: `#/api/NAME?range=1h&refresh=10s`. It carries all state, so that a link shows what its sender saw.

export interface Route {
  /** Decoded segments: `["api", "NAME"]`; none for the overview. */
  path: string[];
  params: URLSearchParams;
}

/** What all pages share, and links between pages keep. */
const SHARED = ["range", "from", "to", "refresh"] as const;

export function parseRoute(hash: string): Route {
  const text = hash.replace(/^#\/?/, "");
  const at = text.indexOf("?");
  const path = at < 0 ? text : text.slice(0, at);
  return {
    path: path.split("/").filter((segment) => segment !== "").map(decode),
    params: new URLSearchParams(at < 0 ? "" : text.slice(at + 1)),
  };
}

/** A segment that is no percent encoding stands for itself. */
function decode(segment: string): string {
  try {
    return decodeURIComponent(segment);
  } catch {
    return segment;
  }
}

export function formatRoute(path: string[], params: URLSearchParams): string {
  const query = params.toString();
  return `#/${path.map(encodeURIComponent).join("/")}${query === "" ? "" : `?${query}`}`;
}

/** The address of another page, with the shared state of this one. */
export function linkTo(from: Route, path: string[], params: Record<string, string> = {}): string {
  const kept = new URLSearchParams();
  for (const name of SHARED) {
    const value = from.params.get(name);
    if (value !== null) kept.set(name, value);
  }
  for (const [name, value] of Object.entries(params)) kept.set(name, value);
  return formatRoute(path, kept);
}

/** The address of this page with some parameters changed; `null` removes one. */
export function linkWith(from: Route, changes: Record<string, string | null>): string {
  const params = new URLSearchParams(from.params);
  for (const [name, value] of Object.entries(changes)) {
    if (value === null) params.delete(name);
    else params.set(name, value);
  }
  return formatRoute(from.path, params);
}

/** Whether two addresses differ in nothing but the shared state: the page stays, and asks anew. */
export function isSamePage(a: Route, b: Route): boolean {
  const rest = (route: Route) => {
    const params = new URLSearchParams(route.params);
    for (const name of SHARED) params.delete(name);
    return formatRoute(route.path, params);
  };
  return rest(a) === rest(b);
}
