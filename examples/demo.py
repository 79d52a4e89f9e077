"""The main job on real input: a collector, two models behind `cortex-serve`, real requests, and the table.

`make demo` runs it. Everything it starts it stops again; data and logs are kept in `.demo/`. On a terminal it stays up
until Ctrl-C, otherwise it ends by itself.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sklearn.datasets import load_digits, load_iris

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / ".demo"
BIN = Path(sys.executable).parent
START_SECONDS = 60
STORED_SECONDS = 25
FORGOTTEN_SECONDS = 60
STOP_SECONDS = 10


class DemoError(Exception):
    """Something did not work; the message says what, and shows the end of the log."""


@dataclass
class Program:
    """A program that the demo started, with its log."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    def line(self, pattern: str) -> str:
        """Waits for a line of the program and gives the first group of the pattern."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            found = re.search(pattern, self.log.read_text(errors="replace"))
            if found:
                return found[1]
            if self.process.poll() is not None:
                raise DemoError(f"{self.name} ended with exit code {self.process.returncode}:\n{self.tail()}")
            time.sleep(0.05)
        raise DemoError(f"{self.name} did not start within {START_SECONDS} s:\n{self.tail()}")


@dataclass
class Programs:
    """Everything that was started, and how to stop it."""

    environment: dict[str, str]
    running: list[Program] = field(default_factory=list)

    def start(self, name: str, *command: str | Path) -> Program:
        log = DEMO / f"{name}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, env=self.environment, start_new_session=True
            )
        program = Program(name, process, log)
        self.running.append(program)
        return program

    def stop(self) -> None:
        # The last started first: the collector takes the last metrics of the models.
        for program in reversed(self.running):
            program.process.terminate()
            try:
                program.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                program.process.kill()
                program.process.wait()
        self.running.clear()


def free_port(kind: socket.SocketKind, wanted: int) -> int:
    """The wanted port of 127.0.0.1 if it is free, else any free one."""
    for port in (wanted, 0):
        with socket.socket(socket.AF_INET, kind) as probe:
            if kind is socket.SOCK_STREAM:
                # As servers do: a port whose last connections are just closing counts as free.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise DemoError("no free port")


@dataclass(frozen=True)
class Request:
    """What is posted, and the response code that it is to get."""

    body: bytes
    code: int


def send(program: Program, port: int, requests: list[Request]) -> dict[str, int]:
    """Posts each request, with progress, and counts the response codes."""
    codes: dict[str, int] = {}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    is_terminal = sys.stdout.isatty()
    for done, request in enumerate(requests, 1):
        try:
            connection.request("POST", "/predict", request.body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise DemoError(f"{program.name}: request {done} got no answer: {error}\n{program.tail()}") from None
        if response.status != request.code:
            got = f"got {response.status} {text[:80]!r}, want {request.code}"
            raise DemoError(f"{program.name}: request {done}: {got}\n{program.tail()}")
        codes[str(response.status)] = codes.get(str(response.status), 0) + 1
        if done == len(requests) or done % (10 if is_terminal else 100) == 0:
            progress = f"  {program.name}: {done}/{len(requests)} requests"
            print(f"\r{progress}" if is_terminal else progress, end="" if is_terminal else "\n", flush=True)
    if is_terminal:
        print()
    connection.close()
    return codes


def iris_requests() -> list[Request]:
    """Each flower twice, four malformed bodies, and one with a measurement missing, which makes the predictor raise."""
    fields = ("sepal_length", "sepal_width", "petal_length", "petal_width")
    rows = load_iris().data.tolist()
    flowers = [Request(json.dumps(dict(zip(fields, row, strict=True))).encode(), 200) for row in rows]
    malformed, incomplete = Request(b'{"sepal_length": 5.1,', 400), Request(b'{"sepal_length": 5.1}', 500)
    return [*flowers, *[malformed] * 4, incomplete, *flowers]


def digit_requests() -> list[Request]:
    """400 images, three malformed bodies, and one image that is too small, which makes the predictor raise."""
    images = [Request(json.dumps({"image": image}).encode(), 200) for image in load_digits().images[:400].tolist()]
    malformed, too_small = Request(b"not json", 400), Request(b'{"image": [[1, 2], [3, 4]]}', 500)
    return [*images[:200], *[malformed] * 3, too_small, *images[200:]]


def cortex(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run([BIN / "cortex", *arguments], env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DemoError(f"cortex {' '.join(arguments)} failed: {done.stderr.strip()}")
    return done.stdout


def table(environment: dict[str, str]) -> list[dict[str, Any]]:
    """What `cortex get` says: a row for each API."""
    rows: list[dict[str, Any]] = json.loads(cortex(environment, "get", "-e", "local", "-o", "json"))
    return rows


def responses(environment: dict[str, str]) -> dict[str, dict[str, int]]:
    """Per API the responses by code."""
    return {row["api"]: row["responses"] for row in table(environment)}


def wait_until_stored(environment: dict[str, str], wanted: dict[str, dict[str, int]]) -> None:
    """Whoever else sends to these ports is none of the demo's."""

    def stored() -> dict[str, dict[str, int]]:
        return {name: codes for name, codes in responses(environment).items() if name in wanted}

    deadline = time.monotonic() + STORED_SECONDS
    while (got := stored()) != wanted:
        if time.monotonic() > deadline:
            raise DemoError(f"after {STORED_SECONDS} s `cortex get` says {got}, want {wanted}")
        time.sleep(0.5)


def wait_until_forgotten(environment: dict[str, str], names: Iterable[str]) -> None:
    """After a run just before this one the collector still counts its replicas, until they were silent for 30 s."""
    deadline = time.monotonic() + FORGOTTEN_SECONDS
    is_told = False
    while any(row["up_to_date"] + row["stale"] > 1 for row in table(environment) if row["api"] in names):
        if not is_told:
            print("waiting until the replicas of the run before count as gone (30 s after they were last heard)")
            is_told = True
        if time.monotonic() > deadline:
            raise DemoError(f"after {FORGOTTEN_SECONDS} s there are replicas that nobody started")
        time.sleep(0.5)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Lets SIGTERM end the demo like Ctrl-C: what was started is stopped."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(programs: Programs, environment: dict[str, str]) -> None:
    udp, web = free_port(socket.SOCK_DGRAM, 9125), free_port(socket.SOCK_STREAM, 9102)
    print("starting cortex-collector")
    collector = programs.start(
        "collector",
        BIN / "cortex-collector",
        *("--listen-udp", f"127.0.0.1:{udp}", "--listen-http", f"127.0.0.1:{web}", "--data-dir", str(DEMO / "data")),
    )
    address = collector.line(r"dashboard: +(http://\S+)")
    environment["CORTEX_METRICS_URL"] = f"udp://127.0.0.1:{udp}"
    cortex(environment, "env", "add", "local", address)
    models = {"iris-classifier": (8080, iris_requests()), "digit-classifier": (8081, digit_requests())}
    before = responses(environment)
    served: dict[str, tuple[Program, int]] = {}
    for name, (wanted_port, _) in models.items():
        folder = ROOT / "examples" / name.replace("-", "_")
        port = free_port(socket.SOCK_STREAM, wanted_port)
        program = programs.start(
            name,
            BIN / "cortex-serve",
            *(str(folder / "predictor.py"), "--api-name", name, "--config", str(folder / "config.yaml")),
            *("--port", str(port), "--replicas-requested", "1"),
        )
        address_of_model = program.line(r"serving \S+ at (http://[^ ]+)")
        print(f"serving {name} at {address_of_model}")
        served[name] = (program, port)

    print("sending requests")
    wanted = {name: dict(codes) for name, codes in before.items() if name in models}
    for name, (_, requests) in models.items():
        for code, count in send(*served[name], requests).items():
            codes = wanted.setdefault(name, {})
            codes[code] = codes.get(code, 0) + count

    print("waiting until the collector has stored them (it stores every 10 s)")
    try:
        wait_until_stored(environment, wanted)
        wait_until_forgotten(environment, models)
    except DemoError as error:
        raise DemoError(f"{error}\n{collector.tail()}") from None
    for arguments in (["get"], ["get", "iris-classifier"]):
        print(f"\n$ cortex {' '.join(arguments)}\n{cortex(environment, *arguments)}", end="")
    is_staying = sys.stdout.isatty()
    if is_staying:
        print(f"\nopen {address}")
    else:
        print(f"\nall of it stops now; to look at it again: {BIN / 'cortex-collector'} --data-dir {DEMO / 'data'}")
    if is_staying and any(port != default for port, default in ((udp, 9125), (web, 9102))):
        print(f"(a default port was taken: metrics go to udp://127.0.0.1:{udp})")
        print(f"for `cortex get` of your own: {BIN / 'cortex'} env add demo {address}")
    if is_staying:
        print("\nCtrl-C stops everything", flush=True)
        with suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)
        print("\nstopping")


def main() -> int:
    DEMO.mkdir(exist_ok=True)
    environment = {**os.environ, "CORTEX_CONFIG_DIR": str(DEMO / "config"), "PYTHONUNBUFFERED": "1"}
    for name in ("CORTEX_API_NAME", "CORTEX_API_ID", "CORTEX_REPLICA_ID", "CORTEX_METRICS_STRICT"):
        environment.pop(name, None)
    # Ports and data are the demo's own, whatever the variables of this shell say.
    for name in [name for name in environment if name.startswith("CORTEX_COLLECTOR_")]:
        del environment[name]
    programs = Programs(environment)
    with stopped_by_signals():
        try:
            run(programs, environment)
        except KeyboardInterrupt:
            print("\ndemo: interrupted before it was through", file=sys.stderr)
            return 1
        except DemoError as error:
            print(f"demo: {error}", file=sys.stderr)
            return 1
        finally:
            # A second Ctrl-C must not leave a program behind.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            programs.stop()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
