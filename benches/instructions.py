"""Where the instructions of one call go: counted by callgrind, so the same on a busy machine and an idle one.

``make bench-instructions`` runs it; it needs valgrind. Two runs differ in the number of calls alone; what one run has
more than the other, divided by that number, is what a call costs.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

FEW, MANY = 10_000, 30_000

SETUP = """
import sys
from itertools import repeat
import cortex_metrics, empty_method
ours = cortex_metrics.MetricsClient("udp://127.0.0.1:9", flush_interval=3600.0)
empty = empty_method.Empty()
for _ in repeat(None, 1_000): {statement}
for _ in repeat(None, int(sys.argv[1])): {statement}
"""

STATEMENTS = {
    "the dict": '{"model": "v1"}',
    "empty method": 'empty.increment(metric="requests", value=1, tags={"model": "v1"})',
    "increment": 'ours.increment(metric="requests", value=1, tags={"model": "v1"})',
    "gauge": 'ours.gauge(metric="temperature", value=1, tags={"model": "v1"})',
    "histogram": 'ours.histogram(metric="latency", value=0.25, tags={"model": "v1"})',
}

# A line of callgrind_annotate: instructions, share, file:function [object]; the object may be missing.
LINE = re.compile(r"^\s*([\d,]+)\s+\(\s*[\d.]+%\)\s+(\S*:.+)$")


def place(function: str) -> str:
    """Whose instructions they are."""
    if re.search(r"extract_argument|trampoline|pymethod|pyo3", function):
        return "pyo3"
    if re.search(r"cortex_metrics|empty_method|/rustc/", function):
        return "our code"
    if re.search(r"python", function, re.IGNORECASE):
        return "the interpreter"
    return "libc"


def run(statement: str, number: int, folder: Path) -> Counter[str]:
    out = folder / "callgrind.out"
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", sys.executable, "-c"]
    subprocess.run([*command, SETUP.format(statement=statement), str(number)], check=True, capture_output=True)
    annotated = subprocess.run(
        ["callgrind_annotate", "--threshold=100", "--show-percs=yes", str(out)],
        check=True,
        capture_output=True,
        text=True,
    )
    counts: Counter[str] = Counter()
    for line in annotated.stdout.splitlines():
        if match := LINE.match(line):
            counts[place(match[2])] += int(match[1].replace(",", ""))
    return counts


def main() -> None:
    print(f"{'instructions a call':<24}{'all':>8}{'the interpreter':>18}{'pyo3':>8}{'our code':>10}{'libc':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for name, statement in STATEMENTS.items():
            few, many = (run(statement, number, Path(folder)) for number in (FEW, MANY))
            calls = {key: (many[key] - few[key]) / (MANY - FEW) for key in many}
            print(
                f"{name:<24}{sum(calls.values()):>8.0f}{calls.get('the interpreter', 0):>18.0f}"
                f"{calls.get('pyo3', 0):>8.0f}{calls.get('our code', 0):>10.0f}{calls.get('libc', 0):>8.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
