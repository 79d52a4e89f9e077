// Elements without markup: whatever comes from outside becomes text or an attribute's value, never HTML.

export type Child = Node | string | null | undefined | false;
type Listener = (event: never) => void;
type Props = Record<string, string | number | boolean | undefined | Listener>;

/** An element with attributes (`onclick` and the like are listeners; `false` and `undefined` leave one out) and children. */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  props: Props = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  set(element, props);
  fill(element, ...children);
  return element;
}

/** The same in SVG. */
export function svg(tag: string, props: Props = {}, ...children: Child[]): SVGElement {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  set(element, props);
  fill(element, ...children);
  return element;
}

function set(element: Element, props: Props): void {
  for (const [name, value] of Object.entries(props)) {
    if (typeof value === "function") {
      element.addEventListener(name.slice(2), value as unknown as EventListener);
    } else if (value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
}

/** Puts these in place of what was in it. */
export function fill(element: Element, ...children: Child[]): void {
  element.replaceChildren(...children.filter((child): child is Node | string => child !== null && child !== undefined && child !== false));
}

/** Sets a text, and touches nothing if it is the same: nobody is told twice. */
export function setText(element: Element, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}

let ids = 0;

/** An id that no other element has. */
export function uniqueId(prefix: string): string {
  ids += 1;
  return `${prefix}-${ids}`;
}

/** As `fill`; what was scrolled stays so, and whoever had the focus in it has it again, if there is still the like of it. */
export function refill(element: Element, ...children: Child[]): void {
  const nameOf = (one: Element | null) => one && (one.getAttribute("data-control") ?? one.getAttribute("href") ?? one.getAttribute("aria-label"));
  const name = element.contains(document.activeElement) ? nameOf(document.activeElement) : null;
  const boxes = () => [...element.querySelectorAll<HTMLElement>(".scroll")];
  const before = boxes();
  const [left, focused] = [before.map((box) => box.scrollLeft), before.findIndex((box) => box === document.activeElement)];
  fill(element, ...children);
  boxes().forEach((box, at) => {
    box.scrollLeft = left[at] ?? 0;
    if (at === focused) box.focus({ preventScroll: true });
  });
  if (name === null) return;
  const same = [...element.querySelectorAll<HTMLElement>("a, button, select, summary, input, textarea")].find((one) => nameOf(one) === name);
  same?.focus({ preventScroll: true });
}
