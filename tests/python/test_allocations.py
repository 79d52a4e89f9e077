"""A call in steady state allocates nothing: every ``malloc`` of the calling thread is counted, Python's own included."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "fixtures" / "allocations.c"

# Each statement runs many times after a while of running; what its bare arguments allocate is taken off.
PROGRAM = r"""
import ctypes, itertools, json, socket, time
import cortex_metrics

sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sink.bind(("127.0.0.1", 0))
c = cortex_metrics.MetricsClient(f"udp://127.0.0.1:{sink.getsockname()[1]}", flush_interval=0.05, tags={"zone": "a"})
four = '{"model": "v1", "region": "eu", "tier": "free", "device": "gpu"}'
one = '{"model": "v1"}'
anew = '{"model": f"v{one}"}'
subjects = {
    "increment": (f'c.increment(metric="requests", value=1, tags={one})', one),
    "increment, no tags": ('c.increment("requests")', "None"),
    "increment, four tags": (f'c.increment("requests", 1, {four})', four),
    "increment, text made anew": (f'c.increment("requests", 1, {anew})', anew),
    "gauge": (f'c.gauge("temperature", 0.5, {one})', one),
    "histogram": (f'c.histogram("latency", next(values), {one})', f'(next(values), {one})[0]'),
}
allocations = ctypes.CDLL(None).allocations
allocations.restype = ctypes.c_ulong
scope = {"c": c, "one": one, "values": itertools.cycle([0.001 * 1.01**i for i in range(700)])}

def loop(text):
    exec(f"def run(n):\n for _ in repeat(None, n): {text}", names := {**scope, "repeat": itertools.repeat})
    return names["run"]

def count(run, n):
    before = allocations()
    run(n)
    return allocations() - before

figures = {}
for name, (text, bare) in subjects.items():
    run, nothing = loop(text), loop(bare)
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:  # to the steady state, over ten flushes
        run(1_000)
    # The swap of a flush may fall into a loop: the least of several.
    calls = min(count(run, 11_000) - count(run, 1_000) for _ in range(20))
    figures[name] = calls - (count(nothing, 11_000) - count(nothing, 1_000))
figures["(bytes)"] = count(loop("bytes(2_000)"), 10_000)
print(json.dumps(figures))
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not os.path.exists("/lib64/ld-linux-x86-64.so.2"), reason="glibc's malloc"
)
def test_a_call_in_steady_state_allocates_nothing(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    assert compiler is not None, "cargo needs one too"
    counter = tmp_path / "allocations.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", counter, SOURCE], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(counter), "PYTHONMALLOC": "malloc"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures.pop("(bytes)") >= 10_000, "the counter counts"
    assert figures == dict.fromkeys(figures, 0)
