"""Forks: each process sends its own calls, once, and nobody hangs or warns."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import Process, Tally, package_path, pythons, until

EACH_PYTHON = pytest.mark.parametrize("python", pythons(), ids=lambda path: path.parents[1].name)
# Shown, not made an error: Python itself passes over the error that this warning becomes.
ALL_WARNINGS = ("-W", "always")
# Where a process forks while it has threads of its own, or of a server's, Python warns with reason.
ALL_BUT_OF_THREADS = (*ALL_WARNINGS, "-W", "ignore:This process:DeprecationWarning")

FORKS = """
import os, sys, threading
from cortex_metrics import MetricsClient

forks, threads = int(sys.argv[1]), int(sys.argv[2])
client = MetricsClient(flush_interval=0.02)
calls = [0] * threads
is_over = False

def call(place):
    while not is_over:
        client.increment("threads")
        client.histogram("values", 2)
        calls[place] += 1

running = [threading.Thread(target=call, args=(place,)) for place in range(threads)]
for thread in running:
    thread.start()
children = set()
for fork in range(forks):
    client.increment("parent")
    child = os.fork()
    if child == 0:
        client.increment("child")
        if fork % 100 == 99:
            sys.exit(0)
        client.flush()
        stats = client.stats()
        os._exit(0 if (stats["called"], stats["sent"]) == (1, 1) else 1)
    children.add(child)
    if len(children) == 8:
        child, status = os.wait()
        assert status == 0, status
        children.remove(child)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
is_over = True
for thread in running:
    thread.join()
client.close()
stats = client.stats()
assert stats["called"] == stats["sent"] == forks + 2 * sum(calls), stats
print(sum(calls))
"""


def forks(python: Path, tally: Tally, folder: Path, count: int, threads: int) -> None:
    warnings = ALL_BUT_OF_THREADS if threads else ALL_WARNINGS
    done = subprocess.run(
        [python, *warnings, "-c", FORKS, str(count), str(threads)],
        env={**os.environ, "CORTEX_METRICS_URL": tally.url, "PYTHONPATH": package_path(folder)},
        capture_output=True,
        text=True,
        timeout=60 + count / 20,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    tally.close()
    called = int(done.stdout)
    assert tally.counters["child"] == count
    assert tally.counters["parent"] == count
    assert tally.counters["threads"] == called
    assert tally.histograms.get("values", (0, 0)) == (called, 2 * called)
    assert set(tally.payloads.values()) == {1}, "no payload comes twice"
    assert len(tally.clients) == count + 1, "each process names itself"


@EACH_PYTHON
def test_forks_of_a_process_without_threads_lose_double_and_warn_of_nothing(
    tally: Tally, tmp_path: Path, python: Path
) -> None:
    forks(python, tally, tmp_path, 500, 0)


@EACH_PYTHON
def test_forks_while_other_threads_call_lose_and_double_nothing(tally: Tally, tmp_path: Path, python: Path) -> None:
    forks(python, tally, tmp_path, 500, 3)


@pytest.mark.torture
@EACH_PYTHON
@pytest.mark.parametrize("threads", [0, 3])
def test_ten_thousand_forks(tally: Tally, tmp_path: Path, python: Path, threads: int) -> None:
    forks(python, tally, tmp_path, 10_000, threads)


WHILE_IT_IS_TOLD = """
import os, signal, sys, threading
from cortex_metrics import MetricsClient

importing, is_forked = threading.Event(), threading.Event()

class SlowLogging:
    def find_spec(self, name, path=None, target=None):
        if name == "logging" and threading.current_thread() is not threading.main_thread():
            importing.set()
            is_forked.wait(10)

sys.meta_path.insert(0, SlowLogging())
client = MetricsClient()
telling = threading.Thread(target=client.gauge, args=("g", float("nan")))
telling.start()
importing.wait(1)
child = os.fork()
if child == 0:
    signal.alarm(10)
    client.gauge("g", float("nan"))
    os._exit(0)
is_forked.set()
telling.join()
assert os.waitpid(child, 0)[1] == 0
"""


@EACH_PYTHON
def test_a_fork_while_another_thread_is_told_of_a_drop_does_not_hang_the_child(tmp_path: Path, python: Path) -> None:
    # The call's import of logging held the lock of that module in a thread that the child does not have.
    done = subprocess.run(
        [python, *ALL_BUT_OF_THREADS, "-c", WHILE_IT_IS_TOLD],
        env={**os.environ, "CORTEX_METRICS_URL": "udp://127.0.0.1:9", "PYTHONPATH": package_path(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


AFTER_A_FORK = """
import os, sys
from cortex_metrics import MetricsClient

how = sys.argv[1]
if how == "logging":
    import logging
client = MetricsClient(flush_interval=0.3)
import logging  # its hook, which is written in Python, comes after ours if it was not there before
client.gauge("set_before_the_fork", 1)

def fork():
    child = os.fork()
    if child == 0:
        sys.stdin.read()
        os._exit(0)
    os.waitpid(child, 0)

if how == "thread":
    import threading
    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
else:
    fork()
"""


@EACH_PYTHON
@pytest.mark.parametrize("how", ["logging", "later", "thread"])
def test_what_was_recorded_before_a_fork_is_sent_while_the_parent_only_waits_for_its_child(
    tally: Tally, tmp_path: Path, python: Path, how: str
) -> None:
    warnings = ALL_BUT_OF_THREADS if how == "thread" else ALL_WARNINGS
    with subprocess.Popen(
        [python, *warnings, "-c", AFTER_A_FORK, how],
        env={**os.environ, "CORTEX_METRICS_URL": tally.url, "PYTHONPATH": package_path(tmp_path)},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            until(lambda: tally.gauges == {"set_before_the_fork": 1})
            # Now the child may end, and then the parent.
            _, complaints = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, complaints) == (0, "")
    assert len(tally.clients) == 1


LOOK_UPS = """
import os, signal, sys
from cortex_metrics import MetricsClient

for _ in range(200):
    # Its first call has the name looked up, on a thread that the fork meets.
    client = MetricsClient(sys.argv[1])
    client.increment("calls")
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        client.increment("child")
        while client.stats()["held"]:
            client.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    client.close()
"""


@EACH_PYTHON
def test_a_fork_in_the_middle_of_a_look_up_warns_of_nothing_and_hangs_no_child(
    tally: Tally, tmp_path: Path, python: Path
) -> None:
    # The C library's locks were held for ever in a child that was forked while another thread looked up a name: its own
    # look-ups never ended, and it sent nothing.
    done = subprocess.run(
        [python, *ALL_WARNINGS, "-c", LOOK_UPS, tally.url.replace("127.0.0.1", "localhost")],
        env={**os.environ, "PYTHONPATH": package_path(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    # That a look-up takes its time may be told; a warning may not.
    complaints = [line for line in done.stderr.splitlines() if not line.startswith("udp://localhost")]
    assert (done.returncode, complaints) == (0, [])
    tally.close()
    assert tally.counters["calls"] == 200
    assert tally.counters["child"] == 200, "a child looks up for itself"


MULTIPROCESSING = """
import concurrent.futures, multiprocessing, sys
from cortex_metrics import MetricsClient

client = MetricsClient(flush_interval=60)

def work(number):
    client.increment("work", number)
    return number

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    client.increment("parent")
    with concurrent.futures.ProcessPoolExecutor(3, mp_context=context) as pool:
        assert sum(pool.map(work, range(100))) == 4950
    children = [context.Process(target=work, args=(1000,)) for _ in range(5)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    client.increment("parent")
"""


@EACH_PYTHON
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_pools_and_processes_of_multiprocessing_send_what_they_recorded(
    tally: Tally, tmp_path: Path, python: Path, method: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(MULTIPROCESSING)
    done = subprocess.run(
        [python, *ALL_BUT_OF_THREADS, script, method],
        env={**os.environ, "CORTEX_METRICS_URL": tally.url, "PYTHONPATH": package_path(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    tally.close()
    assert {name: total for name, total in tally.counters.items() if not name.startswith("cortex_")} == {
        "parent": 2,
        "work": 4950 + 5000,
    }
    assert set(tally.payloads.values()) == {1}


WSGI = """
from cortex_metrics import MetricsClient

metrics = MetricsClient(flush_interval=3600)
metrics.increment("loaded")

def app(environ, start_response):
    metrics.increment("requests")
    metrics.histogram("values", 3)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""

ASGI = """
from cortex_metrics import MetricsClient

metrics = MetricsClient(flush_interval=3600)
metrics.increment("loaded")

print("loaded", flush=True)

async def app(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("no lifespan")
    metrics.increment("requests")
    metrics.histogram("values", 3)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
"""


# gunicorn itself loses a SIGTERM that comes to a worker before this, and then waits 30 s for that worker.
CONFIG = """
def post_worker_init(worker):
    worker.log.info("Worker is ready")
"""


def request(address: str, count: int) -> None:
    for _ in range(count):
        connection = http.client.HTTPConnection(address, timeout=30)
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"ok"
        connection.close()


@pytest.mark.parametrize("python", [pythons()[0], pythons()[-1]], ids=lambda path: path.parents[1].name)
@pytest.mark.parametrize(
    ("options", "loads"),
    [
        (("-k", "sync"), 6),
        (("-k", "gthread", "--threads", "4"), 6),
        # The parent calls before it forks; on HUP the preloaded app stays as it is.
        (("-k", "sync", "--preload"), 1),
        (("-k", "gthread", "--threads", "4", "--preload"), 1),
    ],
    ids=["sync", "gthread", "sync-preload", "gthread-preload"],
)
def test_gunicorns_workers_send_everything_also_when_they_are_replaced_and_on_sigterm(
    tally: Tally, tmp_path: Path, python: Path, options: tuple[str, ...], loads: int
) -> None:
    (tmp_path / "wsgi.py").write_text(WSGI)
    (tmp_path / "config.py").write_text(CONFIG)
    server = Process(
        tmp_path / "gunicorn.log",
        *(python, *ALL_WARNINGS, "-m", "gunicorn", "-w", "3", "-b", "127.0.0.1:0", "--chdir", tmp_path),
        *("-c", tmp_path / "config.py"),
        "--no-control-socket",  # a thread of its own, of which Python warns
        *(*options, "wsgi:app"),
        env={"CORTEX_METRICS_URL": tally.url, "PYTHONPATH": package_path(tmp_path, "gunicorn", "packaging")},
    )
    address = server.line(r"Listening at: http://(\S+)")
    until(lambda: server.text().count("Worker is ready") == 3)
    request(address, 100)
    server.process.send_signal(signal.SIGHUP)
    until(lambda: server.text().count("Worker exiting") == 3)
    until(lambda: server.text().count("Worker is ready") == 6)
    request(address, 100)
    assert server.stop() == 0
    assert "Traceback" not in server.text(), server.text()
    assert "multi-threaded" not in server.text(), server.text()
    tally.close()
    assert tally.counters["requests"] == 200
    assert tally.histograms["values"] == (200, 600)
    assert tally.counters["loaded"] == loads
    assert set(tally.payloads.values()) == {1}


@pytest.mark.parametrize("worker", ["asgi", "uvicorn.workers.UvicornWorker"])
@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["load", "preload"])
def test_gunicorns_asgi_workers_send_everything_on_sigterm(
    tally: Tally, tmp_path: Path, worker: str, preload: tuple[str, ...]
) -> None:
    (tmp_path / "asgi.py").write_text(ASGI)
    server = Process(
        tmp_path / "gunicorn.log",
        *(sys.executable, "-m", "gunicorn", "-w", "2", "-b", "127.0.0.1:0", "--chdir", tmp_path, "-k", worker),
        *("--no-control-socket", *preload, "asgi:app"),
        env={"CORTEX_METRICS_URL": tally.url},
    )
    address = server.line(r"Listening at: http://(\S+)")
    request(address, 100)
    until(lambda: len(re.findall("ASGI server listening|Started server process", server.text())) == 2)
    assert server.text().count("loaded\n") == (1 if preload else 2)
    assert server.stop() == 0
    assert "Traceback" not in server.text(), server.text()
    tally.close()
    assert tally.counters["requests"] == 100
    assert tally.counters["loaded"] == (1 if preload else 2)
    assert set(tally.payloads.values()) == {1}


def test_uvicorns_workers_send_everything_on_sigterm(tally: Tally, tmp_path: Path) -> None:
    (tmp_path / "asgi.py").write_text(ASGI)
    server = Process(
        tmp_path / "uvicorn.log",
        *(sys.executable, *ALL_WARNINGS, "-m", "uvicorn", "--workers", "3", "--port", "0", "--lifespan", "off"),
        *("--app-dir", tmp_path, "asgi:app"),
        env={"CORTEX_METRICS_URL": tally.url},
    )
    address = server.line(r"Uvicorn running on http://(\S+)")
    until(lambda: server.text().count("Started server process") == 3)
    request(address, 100)
    assert server.stop() == 0
    assert not re.search("Traceback|multi-threaded", server.text()), server.text()
    tally.close()
    assert tally.counters["requests"] == 100
    assert tally.histograms["values"] == (100, 300)
    assert tally.counters["loaded"] == 3
    assert set(tally.payloads.values()) == {1}
