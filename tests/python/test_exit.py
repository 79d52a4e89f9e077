"""The end of a process: the last flush is delivered, and without a collector nobody waits for one."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import Process, Tally, check_account, namespaces, package_path, pythons, until

EACH_PYTHON = pytest.mark.parametrize("python", pythons(), ids=lambda path: path.parents[1].name)

ENDS = """
import atexit, json, multiprocessing, os, sys

if __name__ == "__main__":
    # Registered before there is a client: it runs after the last flush.
    atexit.register(lambda: print(json.dumps(client.stats())))

from cortex_metrics import MetricsClient

def work():
    client = globals()["child_client"] = MetricsClient(flush_interval=3600)
    client.increment("child")

if __name__ == "__main__":
    client = MetricsClient(flush_interval=3600)
    for number in range(10):
        client.increment("calls")
        client.gauge("number", number)
    how = sys.argv[1]
    if how == "sys.exit":
        sys.exit(3)
    if how == "exception":
        raise RuntimeError("uncaught")
    if how in ("fork", "spawn", "forkserver"):
        child = multiprocessing.get_context(how).Process(target=work)
        child.start()
        child.join()
        sys.exit(child.exitcode)
"""
CODES = {"end": 0, "sys.exit": 3, "exception": 1, "fork": 0, "spawn": 0, "forkserver": 0}


def run(script: Path, url: str, how: str, python: Path, *before: str | Path) -> tuple[dict[str, int], str]:
    """Runs to the end; gives the account after the last flush, and what was complained of."""
    script.write_text(ENDS)
    done = subprocess.run(
        [*before, python, script, how],
        env={**os.environ, "CORTEX_METRICS_URL": url, "PYTHONPATH": package_path(script.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == CODES[how], done.stderr
    stats = json.loads(done.stdout)
    check_account(stats)
    return stats, done.stderr


@EACH_PYTHON
@pytest.mark.parametrize("how", CODES)
def test_every_end_delivers_the_last_flush(tally: Tally, tmp_path: Path, python: Path, how: str) -> None:
    stats, _ = run(tmp_path / "ends.py", tally.url, how, python)
    assert (stats["called"], stats["sent"], stats["held"]) == (20, 20, 0)
    tally.close()
    assert tally.counters["calls"] == 10
    assert tally.gauges == {"number": 9}
    assert tally.counters["child"] == (how in ("fork", "spawn", "forkserver"))


@pytest.fixture(params=["closed port", "unknown name", "full unix socket", "missing unix socket"])
def nobody(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an endpoint where nobody takes anything."""
    if request.param == "closed port":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind(("127.0.0.1", 0))
            port = server.getsockname()[1]
        yield f"udp://127.0.0.1:{port}"
    elif request.param == "unknown name":
        yield "udp://no-such-host.invalid:9125"
    elif request.param == "missing unix socket":
        yield f"unix://{tmp_path}/missing.sock"
    else:
        path = f"{tmp_path}/full.sock"
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
        ):
            server.bind(path)
            sender.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while sender.sendto(b"a:1|c", path):
                    pass
            yield f"unix://{path}"


@pytest.mark.parametrize("how", CODES)
def test_an_end_without_a_collector_gives_up_in_time_and_tells_what_is_lost(
    nobody: str, tmp_path: Path, how: str
) -> None:
    # That the calls are counted as lost means that the flusher had answered: the end of a process waits 100 ms for it.
    stats, complaints = run(tmp_path / "ends.py", nobody, how, Path(sys.executable))
    assert (stats["called"], stats["sent"], stats["held"]) == (20, 0, 0)
    assert stats["dropped"]["closed"] == 20  # type: ignore[index]
    assert "20 calls are lost" in complaints


MUCH = """
import atexit, json, sys
atexit.register(lambda: print(json.dumps(client.stats())))
from cortex_metrics import MetricsClient
client = MetricsClient(flush_interval=3600, contexts_max=30_000)
for context in range(30_000):
    for value in range(90):
        client.histogram("h", value + 0.123456789012345, {"context": str(context)})
if sys.argv[1] == "busy":
    import threading
    threading.Thread(target=client.flush, daemon=True).start()
"""


@pytest.mark.parametrize("how", ["idle", "busy"])
def test_an_end_with_more_than_can_be_sent_in_time_tells_what_is_lost(tally: Tally, tmp_path: Path, how: str) -> None:
    # Some 17,000 datagrams, and after each 32 the sender rests for a millisecond: they cannot all leave in 100 ms.
    (tmp_path / "much.py").write_text(MUCH)
    done = subprocess.run(
        [sys.executable, tmp_path / "much.py", how],
        env={**os.environ, "CORTEX_METRICS_URL": tally.url},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    stats = json.loads(done.stdout)
    check_account(stats)
    assert stats["called"] == 30_000 * 90
    told = re.search(r"(up to )?(\d+) calls are lost", done.stderr)
    assert told, done.stderr
    if told[1]:
        # A busy machine: the flusher had not come to an end when nobody waited any longer.
        assert int(told[2]) >= stats["held"] + stats["dropped"]["closed"] > 0
    else:
        assert stats["held"] == 0
        assert int(told[2]) == stats["dropped"]["closed"] > 0


DAEMONS = """
import enum, logging, sys, threading, time
from cortex_metrics import MetricsClient

logging.basicConfig()

class Model(enum.Enum):
    V1 = "v1"

    def __str__(self):
        return "-".join(self.value)

client = MetricsClient(flush_interval=0.01)

def work(number):
    while True:
        client.increment("calls")
        client.increment("requests", 1, {"model": Model.V1})
        client.increment(f"bad{time.perf_counter_ns()}", -1)
        if number == 0:
            client.flush()

for number in range(4):
    threading.Thread(target=work, args=(number,), daemon=True).start()
time.sleep(0.05)
"""


@EACH_PYTHON
def test_threads_that_nobody_joins_do_not_bring_down_the_end(tally: Tally, tmp_path: Path, python: Path) -> None:
    script = tmp_path / "daemons.py"
    script.write_text(DAEMONS)
    env = {**os.environ, "CORTEX_METRICS_URL": tally.url, "PYTHONPATH": package_path(tmp_path)}
    for _ in range(5):
        done = subprocess.run([python, script], env=env, capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("how", ["end", "sys.exit", "fork"])
def test_a_name_that_takes_for_ever_to_look_up_does_not_keep_the_process(tmp_path: Path, how: str) -> None:
    before = namespaces(tmp_path, {"resolv.conf": "nameserver 127.0.0.1\n", "nsswitch.conf": "hosts: dns\n"}, net=True)
    silent = tmp_path / "silent.py"
    silent.write_text(
        "import os, socket, sys\n"
        "server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "server.bind(('127.0.0.1', 53))\n"
        "os.set_inheritable(server.fileno(), True)\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    stats, complaints = run(
        tmp_path / "ends.py", "udp://collector:9125", how, Path(sys.executable), *before, sys.executable, silent
    )
    assert (stats["called"], stats["sent"], stats["held"]) == (20, 0, 0)
    assert stats["dropped"]["closed"] == 20  # type: ignore[index]
    assert "host collector: it is being looked up" in complaints


WSGI = """
from cortex_metrics import MetricsClient

metrics = MetricsClient(flush_interval=3600)
metrics.increment("loaded")
print("loaded", flush=True)

def app(environ, start_response):
    start_response("200 OK", [])
    return []
"""


def test_gunicorn_ends_in_good_order_without_a_collector(nobody: str, tmp_path: Path) -> None:
    (tmp_path / "wsgi.py").write_text(WSGI)
    server = Process(
        tmp_path / "gunicorn.log",
        *(sys.executable, "-m", "gunicorn", "-w", "2", "-b", "127.0.0.1:0", "--chdir", tmp_path),
        *("--no-control-socket", "wsgi:app"),
        env={"CORTEX_METRICS_URL": nobody},
    )
    until(lambda: server.text().count("loaded\n") == 2)
    assert server.stop() == 0
    assert "Traceback" not in server.text(), server.text()
    # Each worker had its answer before it ended.
    assert server.text().count("1 calls are lost") == 2, server.text()


KILLED = """
import os, signal, sys, time
from cortex_metrics import MetricsClient

client = MetricsClient(flush_interval=0.05)
for _ in range(1000):
    client.increment("calls")
while client.stats()["held"]:
    time.sleep(0.01)
for _ in range(10):
    client.increment("calls")
os._exit(0) if sys.argv[1] == "_exit" else os.kill(os.getpid(), int(sys.argv[1]))
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["_exit", str(int(signal.SIGTERM)), str(int(signal.SIGKILL))])
def test_an_end_that_runs_nothing_loses_what_came_since_the_last_flush_at_most(tally: Tally, how: str) -> None:
    env = {**os.environ, "CORTEX_METRICS_URL": tally.url}
    done = subprocess.run([sys.executable, "-c", KILLED, how], env=env, check=False, timeout=60)
    assert done.returncode == (0 if how == "_exit" else -int(how))
    tally.close()
    assert 1000 <= tally.counters["calls"] <= 1010


MANY = """
import atexit, json, sys
atexit.register(lambda: print(json.dumps([client.stats() for client in clients])))
from cortex_metrics import MetricsClient

clients = [MetricsClient(url, flush_interval=3600) for url in sys.argv[1:]]
for client in clients:
    client.increment("calls")
"""


def test_clients_that_find_nobody_do_not_take_the_time_of_those_that_do(nobody: str, tally: Tally) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MANY, *[nobody] * 5, tally.url], check=True, capture_output=True, text=True, timeout=60
    )
    accounts = json.loads(done.stdout)
    for stats in accounts:
        check_account(stats)
        assert stats["held"] == 0, "each had its answer in time"
    assert [stats["sent"] for stats in accounts] == [0, 0, 0, 0, 0, 1]
    tally.close()
    assert tally.counters["calls"] == 1
