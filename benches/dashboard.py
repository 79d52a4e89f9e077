"""How long the page takes from its address to its pictures, in Chromium, with two weeks of 100 APIs.

`make bench-dashboard` makes the data and runs this; alone: `python benches/dashboard.py DIR`. A collector is started on
the directory, and each page is loaded nine times in a context of its own, so that nothing of it is in a cache of the
browser. Told are medians, in ms from the beginning of the navigation until the head of the page, its first picture (of
the overview: its table) and its last one were seen; and what processor time the collector took for all of it.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "python"))

from browser import Browser
from support import BIN, ROOT, Process

LOADS = 9
PAGES = {
    "overview, 1h": (((), {"range": "1h"}), "table.apis"),
    "overview, 2w": (((), {"range": "2w"}), "table.apis"),
    "an API, 1h": ((("api", "api-4"), {"range": "1h"}), None),
    "an API, 24h": ((("api", "api-4"), {"range": "24h"}), None),
    "an API, 2w": ((("api", "api-4"), {"range": "2w"}), None),
    "custom metrics, 2w": ((("metrics",), {"range": "2w"}), None),
    "a metric by class, 2w": ((("metrics", "predictions_total"), {"range": "2w", "by": "class"}), None),
}

# Notes when things are there first, a frame later: when they are seen.
WATCH = """
window.seen = {};
const note = (name) => {
  if (name in window.seen) return;
  window.seen[name] = null;
  requestAnimationFrame(() => requestAnimationFrame(() => { window.seen[name] = performance.now(); }));
};
const look = () => {
  if (document.querySelector("header nav")) note("frame");
  if (document.querySelector("FIRST")) note("first");
  if (document.body?.dataset.ready === "true") note("all");
};
new MutationObserver(look).observe(document, { subtree: true, childList: true, attributes: true });
"""


def processor_ms(process: Process) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{process.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def main() -> None:
    folder = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as logs:
        log = Path(logs) / "log"
        flags = ("--listen-udp", "127.0.0.1:0", "--listen-http", "127.0.0.1:0", "--data-dir", folder)
        collector = Process(log, BIN / "cortex-collector", *map(str, flags))
        web = collector.line(r"dashboard: +http://(\S+)/")
        browser = Browser()
        try:
            print(f"| page | head | first picture | all pictures | collector's processor | (medians of {LOADS}, ms) |")
            for name, ((path, params), first) in PAGES.items():
                times: dict[str, list[float]] = {"frame": [], "first": [], "all": [], "processor": []}
                for _ in range(LOADS):
                    before = processor_ms(collector)
                    page = browser.page(web)
                    script = WATCH.replace("FIRST", first or "[data-state=drawn]")
                    page.call("addInitScript", {"content": script})
                    page.goto(*path, **params, refresh="off")
                    page.evaluate("async () => { while (!window.seen.all) await new Promise(requestAnimationFrame); }")
                    seen = page.evaluate("() => window.seen")
                    seen["processor"] = processor_ms(collector) - before
                    for what, each in times.items():
                        each.append(seen[what])
                    page.close()
                told = " | ".join(f"{statistics.median(each):.0f}" for each in times.values())
                worst = max(times["first"])
                print(f"| {name} | {told} | first picture at most {worst:.0f} |", flush=True)
            size = sum(file.stat().st_size for file in (ROOT / "dashboard" / "dist").iterdir())
            print(f"the page has {size} bytes; load of the machine: {os.getloadavg()[0]:.1f}")
        finally:
            browser.stop()
            collector.stop()
    model = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout
    print(next((line for line in model.splitlines() if "Model name" in line), ""))


if __name__ == "__main__":
    main()
