"""A real browser for the tests of the collector's page: Debian's Chromium, driven by Playwright in Node."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import threading
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from support import ROOT

FOLDER = ROOT / "tests" / "browser"
CHROMIUM = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)


def missing() -> str | None:
    """What is not there, and how to get it."""
    if shutil.which("node") is None:
        return "Node.js is missing: make node"
    if not (FOLDER / "node_modules" / "playwright-core").exists():
        return "playwright-core is missing: make browser"
    if CHROMIUM is None:
        return "Chromium is missing: apt-get install chromium"
    return None


class Browser:
    """Chromium with its driver (`tests/browser/drive.mjs`), which takes and gives lines of JSON."""

    def __init__(self) -> None:
        reason = missing()
        if reason is not None:
            assert os.environ.get("CI") != "true", reason
            pytest.skip(reason)
        self._process = subprocess.Popen(
            ["node", FOLDER / "drive.mjs", str(CHROMIUM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answers: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def ask(self, page: int, call: str, *args: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"page": page, "call": call, "args": args}) + "\n")
        self._process.stdin.flush()
        line = self._answers.get(timeout=60)
        assert line, f"the driver ended at {call}: {self._process.poll()}"
        answer = json.loads(line)
        assert "error" not in answer, f"{call}{args}: {answer['error']}"
        return answer.get("value")

    def page(self, web: str, **options: Any) -> Page:
        """A page of the collector at `web`, with options of Playwright's `newContext`."""
        return Page(
            self, web, self.ask(0, "open", {"host": web, "viewport": {"width": 1400, "height": 900}, **options})
        )

    def stop(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
            self._process.wait(15)
            self._reader.join(15)
            self._process.stdout.close()


# The values of a panel as they are drawn: of each line by time.
Drawn = dict[str, dict[int, float]]

READ = """async (title) => {
  const panel = [...document.querySelectorAll("section.panel")].find((one) => one.dataset.panel === title);
  if (!panel) return null;
  const details = panel.querySelector("details.data");
  details.open = true;
  while (!details.querySelector("table[data-series]")) await new Promise(requestAnimationFrame);
  const names = [...details.querySelectorAll("thead th[data-series]")].map((one) => one.dataset.series);
  const rows = [...details.querySelectorAll("tr[data-time]")].map((row) => [
    Number(row.dataset.time),
    [...row.querySelectorAll("td[data-series]")].map((cell) => cell.dataset.value),
  ]);
  return { names, rows, state: panel.dataset.state };
}"""


class Page:
    """A page, and whatever goes wrong in it: messages of the console, exceptions, dialogs, requests to others."""

    def __init__(self, browser: Browser, web: str, number: int) -> None:
        self.browser = browser
        self.web = web
        self.number = number

    def call(self, method: str, *args: Any) -> Any:
        """A method of Playwright's page, such as `click` or `mouse.move`."""
        return self.browser.ask(self.number, method, *args)

    def evaluate(self, function: str, argument: Any = None) -> Any:
        """The value of a JavaScript function in the page."""
        return self.call("evaluate", function, argument)

    def complaints(self) -> list[str]:
        """All that went wrong since this was asked last."""
        return list(self.call("complaints"))

    def close(self) -> None:
        complaints = self.complaints()
        assert not complaints, complaints
        self.call("close", self.number)

    def goto(self, *path: str, **params: Any) -> None:
        """Loads a page anew, and waits until all of it is drawn."""
        query = "?" + urlencode({name.rstrip("_"): value for name, value in params.items()}) if params else ""
        self.call("goto", "about:blank")
        self.call("goto", f"http://{self.web}/#/{'/'.join(quote(part, safe='') for part in path)}{query}")
        self.ready()

    def ready(self) -> None:
        self.call("waitForSelector", 'body[data-ready="true"]')

    @property
    def hash(self) -> str:
        return str(self.evaluate("() => location.hash"))

    def text(self, selector: str) -> str:
        """What a reader sees of an element."""
        return str(self.call("innerText", selector))

    def texts(self, selector: str) -> list[str]:
        return list(self.evaluate("(s) => [...document.querySelectorAll(s)].map((one) => one.textContent)", selector))

    def panels(self) -> dict[str, str]:
        """The titles of all panels, with their states."""
        found = self.evaluate(
            '() => [...document.querySelectorAll("section.panel")].map((one) => [one.dataset.panel, one.dataset.state])'
        )
        return dict(found)

    def drawn(self, title: str) -> Drawn:
        """What a panel has drawn, by its table, in the order of time; a gap is not there."""
        found = self.evaluate(READ, title)
        assert found is not None, f"no panel {title} among {list(self.panels())}"
        assert found["state"] in ("drawn", "empty"), (title, found["state"])
        lines: Drawn = {name: {} for name in found["names"]}
        for time, values in sorted(found["rows"]):
            for name, value in zip(found["names"], values, strict=True):
                if value != "":
                    lines[name][time] = float(value)
        return lines

    def times(self, title: str) -> list[int]:
        """The times of a panel's points, gaps too."""
        return sorted(time for time, _ in self.evaluate(READ, title)["rows"])

    def chart(self, title: str) -> dict[str, float]:
        """Where the drawing area of a panel is: x, y, width, height."""
        source = """(title) => {
          const panel = [...document.querySelectorAll("section.panel")].find((one) => one.dataset.panel === title);
          panel.scrollIntoView({ block: "center" });
          const { x, y, width, height } = panel.querySelector(".u-over").getBoundingClientRect();
          return { x, y, width, height };
        }"""
        return dict(self.evaluate(source, title))

    def focused(self) -> str:
        """What has the focus, in a few words: its tag, text and address."""
        source = """() => {
          const one = document.activeElement;
          return `${one.tagName} ${one.textContent.slice(0, 60).trim()} ${one.getAttribute("href") ?? ""}`;
        }"""
        return str(self.evaluate(source))

    def press_until(self, key: str, wanted: str, times: int = 80) -> None:
        """Presses a key until what has the focus begins with these words."""
        seen = []
        for _ in range(times):
            self.call("keyboard.press", key)
            seen.append(self.focused())
            if seen[-1].startswith(wanted):
                return
        raise AssertionError(f"{key} never came to {wanted}: {seen}")

    def act(self, method: str, *args: Any) -> None:
        """Does something after which the page asks, and waits until what was answered is drawn."""
        self.evaluate("() => { document.body.dataset.ready = 'not yet'; }")
        self.call(method, *args)
        self.ready()

    def refreshed(self) -> bool:
        """Asks anew for all that is shown."""
        self.act("click", '[data-control="refresh-now"]')
        return True
