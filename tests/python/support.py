"""What the tests share: a socket that reads what clients send, and the real collector."""

from __future__ import annotations

import collections
import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cortex_metrics import MetricsClient

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PREDICTOR = ROOT / "examples" / "text_generator" / "predictor.py"
CONFIG = ROOT / "examples" / "text_generator" / "config.yaml"


def until(check: Callable[[], Any], seconds: float = 15.0) -> Any:
    """Waits until `check` gives something true, and gives that."""
    deadline = time.monotonic() + seconds
    while True:
        value = check()
        if value or time.monotonic() > deadline:
            assert value, f"not within {seconds} s"
            return value
        time.sleep(0.05)


def of_debian(package: str) -> Path:
    """The folder of programs of a package of Debian's forky, unpacked beside the system."""
    done = subprocess.run(
        [ROOT / "tests" / "debian-package", package, "forky"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        assert os.environ.get("CI") != "true", done.stderr
        pytest.skip(f"no {package} to be had: {done.stderr.strip()}")
    return Path(done.stdout.strip()) / "usr" / "bin"


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@dataclass
class Udp:
    """A bound socket and what came to it."""

    socket: socket.socket

    @property
    def url(self) -> str:
        return f"udp://127.0.0.1:{self.socket.getsockname()[1]}"

    def messages(self) -> list[str]:
        """All messages that have come since the last call, headers and the client's own counters left out."""
        own = ("cortex_client_",)
        return [line for line in self.all_messages() if not line.startswith(own)]

    def all_messages(self) -> list[str]:
        lines: list[str] = []
        while True:
            try:
                lines += self.socket.recv(65536).decode().splitlines()
            except BlockingIOError:
                return lines


class Recorded:
    """What a middleware has sent since the last look, decoded."""

    def __init__(self, udp: Udp, client: MetricsClient | None = None) -> None:
        if client is not None:
            client.flush()
        self.requests: collections.Counter[str] = collections.Counter()
        self.durations = 0
        self.first_bytes = 0
        self.queued = 0
        self.cpu_seconds = 0.0
        self.gauges: dict[str, float] = {}
        self.labels: dict[str, dict[str, str]] = {}
        self.routes: set[str] = set()
        for line in udp.messages():
            match = re.fullmatch(r"([^:]+):([^|]+)\|(\w+)(?:\|@([^|]+))?(?:\|#(.*))?", line)
            assert match, line
            name, values, kind, rate, tags = match.groups()
            labels = dict(tag.split(":", 1) for tag in tags.split(","))
            self.labels[name] = labels
            self.routes |= {labels["route"]} if "route" in labels else set()
            weight = round(1 / float(rate)) if rate else 1
            if name == "cortex_api_requests_total":
                self.requests[labels["response_code"]] += int(float(values))
            elif name == "cortex_api_request_duration_seconds":
                self.durations += weight * len(values.split(":"))
            elif name == "cortex_api_request_first_byte_seconds":
                self.first_bytes += weight * len(values.split(":"))
            elif name == "cortex_api_request_queue_seconds":
                self.queued += weight * len(values.split(":"))
            elif name == "cortex_api_process_cpu_seconds_total":
                self.cpu_seconds += float(values)
            else:
                assert kind == "g", line
                self.gauges[name] = float(values)


class Tally:
    """A collector in small: a socket that is read all the time, and the totals of what came to it."""

    def __init__(self, bound: socket.socket | None = None) -> None:
        self.socket = bound or socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        if bound is None:
            self.socket.bind(("127.0.0.1", 0))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self.socket.settimeout(0.05)
        self.counters: collections.Counter[str] = collections.Counter()
        self.gauges: dict[str, float] = {}
        self.histograms: dict[str, tuple[float, float]] = {}
        self.payloads: collections.Counter[str] = collections.Counter()
        self._is_ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        if self.socket.family == socket.AF_UNIX:
            return f"unix://{self.socket.getsockname()}"
        return f"udp://127.0.0.1:{self.socket.getsockname()[1]}"

    @property
    def clients(self) -> set[str]:
        """The ids of all that sent something."""
        return {header.rpartition(":")[2] for header in self.payloads}

    def close(self) -> None:
        """Reads what has come, and ends."""
        self._is_ended = True
        self._thread.join()
        self.socket.close()

    def _read(self) -> None:
        while True:
            try:
                payload = self.socket.recv(65536)
            except TimeoutError:
                if self._is_ended:
                    return
                continue
            header, *lines = payload.decode().splitlines()
            assert header.startswith("cortex_client_payload_sequence:"), header
            self.payloads[header] += 1
            for line in lines:
                self._add(line)

    def _add(self, line: str) -> None:
        name, _, rest = line.partition(":")
        values, kind, *more = rest.split("|")
        weight = next((round(1 / float(section[1:])) for section in more if section.startswith("@")), 1)
        for value in map(float, values.split(":")):
            if kind == "c":
                self.counters[name] += round(value * weight)
            elif kind == "g":
                self.gauges[name] = value
            else:
                count, total = self.histograms.get(name, (0, 0))
                self.histograms[name] = (count + weight, total + value * weight)


def check_account(stats: Mapping[str, Any]) -> None:
    """Every call is sent, held, or dropped for a reason."""
    assert stats["called"] == stats["sent"] + stats["held"] + sum(stats["dropped"].values()), stats


def pythons() -> list[Path]:
    """This interpreter, and the others of pyenv that the wheel is for: what a test runs under each."""
    return [Path(sys.executable), *(path for path in pyenv() if path.parents[1] != Path(sys.base_prefix))]


def pyenv() -> list[Path]:
    """The interpreters of pyenv that the wheel is for: those without a GIL (`3.14.0t`) need one of their own."""
    found = sorted(Path.home().glob(".pyenv/versions/3.1[0-9]*/bin/python"))
    return [path for path in found if re.fullmatch(r"3\.\d+\.\d+", path.parents[1].name)]


def package_path(folder: Path, *names: str) -> str:
    """A folder to import the installed `cortex_metrics` from, and other packages without native parts, in any Python."""
    path = folder / "packages"
    path.mkdir(exist_ok=True)
    for name in ("cortex_metrics", *names):
        found = importlib.util.find_spec(name)
        assert found is not None
        assert found.origin is not None
        origin = Path(found.origin)
        target = origin.parent if origin.name == "__init__.py" else origin
        (path / target.name).symlink_to(target)
    return str(path)


def namespaces(folder: Path, etc: Mapping[str, str], *, net: bool = False) -> list[str]:
    """A command prefix for a mount namespace with other files in /etc, which stay those in `folder`, and if so wanted for
    a network namespace with nothing but loopback. Skips the test for those who may not have one, but never in CI as root."""
    for name, text in etc.items():
        (folder / name).write_text(text)
    mounts = "".join(f"mount --bind {folder / name} /etc/{name} && " for name in etc)
    command = ["unshare", "--mount", *(["--net"] if net else []), "sh", "-c"]
    command += [("ip link set lo up && " if net else "") + mounts + 'exec "$@"', "sh"]
    try:
        tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
        why = "" if tried.returncode == 0 else tried.stderr
    except FileNotFoundError as error:
        why = str(error)
    if why:
        assert not (os.environ.get("CI") == "true" and os.geteuid() == 0), why
        pytest.skip(f"no namespaces for this user: {why.strip()}")
    return command


class Process:
    """A program of the package, its output in a file, ended when the test ends."""

    def __init__(self, log: Path, *command: str | Path, env: dict[str, str] | None = None) -> None:
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            )

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def line(self, pattern: str) -> str:
        def found() -> str | None:
            match = re.search(pattern, self.text())
            assert match or self.process.poll() is None, self.text()
            return match[1] if match else None

        return str(until(found, 30))

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(15)
        except subprocess.TimeoutExpired:
            # What each of them waits in, and no process that is left behind to fail a later test.
            tree = _tree(self.process.pid)
            states = []
            for pid in tree:
                waits = {task.name: _proc(task / "wchan") for task in Path(f"/proc/{pid}/task").glob("*")}
                states.append((pid, waits, _proc(Path(f"/proc/{pid}/status"))))
            for pid in tree:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait(15)
            raise AssertionError(f"still there 15 s after signal {number}: {states}\n{self.text()}") from None


def _tree(pid: int) -> list[int]:
    """The process and all that it and its children started and that are there yet."""
    children = [_proc(path) for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [pid, *(below for child in " ".join(children).split() for below in _tree(int(child)))]


def _proc(path: Path) -> str:
    """A file of /proc, empty where its process is gone."""
    try:
        return path.read_text()
    except OSError:
        return ""


class Script:
    """A Python script in a process of its own that answers each line with one of JSON: `answer(lambda line: …)`."""

    PRELUDE = """
import json, os, sys
def answer(function):
    for line in sys.stdin:
        print(json.dumps(function(line.strip())), flush=True)
"""

    def __init__(self, text: str, *before: str | Path, env: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [*before, sys.executable, "-W", "always", "-c", self.PRELUDE + text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )

    def ask(self, line: str = "") -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, self.process.communicate()[1]
        return json.loads(answer)

    def end(self) -> tuple[str, str]:
        """Its last output and its complaints; it has no more lines to answer."""
        out, complaints = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, complaints
        return out, complaints


class Collector(Process):
    """The real `cortex-collector`, with a tick every second."""

    def __init__(self, folder: Path, udp: str = "127.0.0.1:0", web: str = "127.0.0.1:0", *flags: str) -> None:
        log = folder / "collector.log"
        log.write_bytes(b"")
        arguments = ("--listen-udp", udp, "--listen-http", web, "--data-dir", str(folder / "data"), "--interval", "1s")
        super().__init__(log, BIN / "cortex-collector", *arguments, *flags)
        self.folder = folder
        self.flags = flags
        self.udp = self.line(r"metrics in: +udp://(\S+)")
        self.web = self.line(r"dashboard: +http://(\S+)/")

    @property
    def url(self) -> str:
        return f"udp://{self.udp}"

    def again(self) -> Collector:
        """The same collector started again."""
        return Collector(self.folder, self.udp, self.web, *self.flags)

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self.web}{path}", timeout=10) as response:
            return str(response.read().decode())

    def status(self, what: str) -> Any:
        """`ingest` or `clients`: the account of what came in, or of who sends."""
        return json.loads(self.get(f"/api/v1/status/{what}"))["data"]

    def query(self, expression: str) -> dict[str, float]:
        """The values of an instant query by the labels that a test usually tells them apart by."""
        answer = json.loads(self.get("/api/v1/query?" + urllib.parse.urlencode({"query": expression})))
        values = {}
        for series in answer["data"]["result"]:
            labels = {
                k: v for k, v in series["metric"].items() if k not in ("__name__", "api_id", "replica", "process")
            }
            key = ",".join(f"{k}={v}" for k, v in sorted(labels.items()))
            values[key] = float(series["value"][1])
        return values

    def cortex(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        config = self.folder / "config"
        config.mkdir(exist_ok=True)
        (config / "environments.toml").write_text(f'[environment.local]\nurl = "http://{self.web}"\n')
        env = {**os.environ, "CORTEX_CONFIG_DIR": str(config)}
        return subprocess.run([BIN / "cortex", *arguments], env=env, capture_output=True, text=True, check=False)

    def rows(self) -> dict[str, dict[str, Any]]:
        done = self.cortex("get", "-o", "json")
        assert done.returncode == 0, done.stderr
        return {row["api"]: row for row in json.loads(done.stdout)}


def post(url: str, body: bytes, content_type: str = "application/json") -> tuple[int, str]:
    """Posts and gives code and text, errors too."""
    request = urllib.request.Request(url, data=body, headers={"Content-Type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
