// Proposals below a field of PromQL: names of metrics, functions and labels, values of labels.

import { fitting, placeAt, WORDS } from "./complete.ts";
import type { Place } from "./complete.ts";
import { fill, h, uniqueId } from "./dom.ts";
import { quote, selector } from "./promql.ts";
import * as prom from "./prom.ts";
import type { TimeWindow } from "./time.ts";

const SHOWN = 8;

/** The list; its keys are the field's: arrows choose, Tab or Enter takes, Escape closes. */
export function suggestions(input: HTMLTextAreaElement, window: () => TimeWindow, signal: AbortSignal): HTMLElement {
  const id = uniqueId("proposals");
  const list = h("ul", { id, class: "proposals", role: "listbox", "aria-label": "Proposals", hidden: true });
  input.setAttribute("role", "combobox");
  input.setAttribute("aria-autocomplete", "list");
  input.setAttribute("aria-controls", id);
  let shown: string[] = [];
  let active = -1;
  let place: Place | null = null;
  // Asked once for as long as the page is there.
  const known = new Map<string, Promise<string[]>>();
  const asked = (key: string, ask: () => Promise<prom.Answer<string[]>>) => {
    const names = known.get(key) ?? ask().then((answer) => answer.data, () => []);
    known.set(key, names);
    return names;
  };
  const all = async (place: Place): Promise<string[]> => {
    const match = place.metric === null ? '{__name__!=""}' : selector(place.metric);
    switch (place.kind) {
      case "name":
        return [...(await asked("names", () => prom.labelValues("__name__", window(), signal))), ...WORDS];
      case "label":
        return (await asked(match, () => prom.labelNames(window(), signal, match))).filter((name) => name !== "__name__");
      case "value":
        return asked(`${match} ${place.label}`, () => prom.labelValues(place.label ?? "", window(), signal, match));
    }
  };
  const show = () => {
    list.hidden = shown.length === 0;
    input.setAttribute("aria-expanded", String(!list.hidden));
    const item = (name: string, at: number) =>
      h(
        "li",
        {
          id: `${id}-${at}`,
          role: "option",
          "aria-selected": at === active ? "true" : "false",
          // Before the field loses the focus.
          onmousedown: (event: Event) => {
            event.preventDefault();
            take(name);
          },
        },
        name,
      );
    fill(list, ...shown.map(item));
    if (active >= 0) input.setAttribute("aria-activedescendant", `${id}-${active}`);
    else input.removeAttribute("aria-activedescendant");
  };
  const close = () => {
    shown = [];
    active = -1;
    show();
  };
  const look = async () => {
    const now = placeAt(input.value, input.selectionStart);
    place = now;
    const names = now === null ? [] : fitting(await all(now), now.begun, SHOWN);
    if (place !== now) return;
    shown = document.activeElement === input ? names : [];
    active = -1;
    show();
  };
  const take = (name: string) => {
    if (place === null) return;
    const text = place.kind === "value" ? quote(name).slice(1, -1) : name;
    const end = place.from + place.begun.length;
    input.setRangeText(text, place.from, end, "end");
    close();
  };
  input.addEventListener("input", () => void look());
  input.addEventListener("blur", close);
  input.addEventListener(
    "keydown",
    (event) => {
      if (list.hidden || event.isComposing) return;
      const chosen = shown[active] ?? (event.key === "Tab" && !event.shiftKey ? shown[0] : undefined);
      if (event.key === "ArrowDown") active = (active + 1) % shown.length;
      else if (event.key === "ArrowUp") active = active <= 0 ? shown.length - 1 : active - 1;
      else if (event.key === "Escape") close();
      else if ((event.key === "Enter" || event.key === "Tab") && chosen !== undefined) take(chosen);
      else return;
      event.preventDefault();
      event.stopImmediatePropagation();
      show();
    },
    { capture: true },
  );
  return list;
}
