"""`cortex-serve` as a program: real uvicorn, real HTTP."""

from __future__ import annotations

import json
import signal
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from support import CONFIG, PREDICTOR, Process, Udp, post, until

Serve = Callable[..., Process]

PREDICTORS = """
import time
import cortex_metrics
import numpy as np
print("the file was run", flush=True)
class Echo:
    def predict(self, payload, headers, query_params):
        if payload == "raise":
            raise LookupError("on purpose")
        if payload == "object":
            return object()
        if payload == "nan":
            return float("nan")
        if payload == "numpy":
            return {"a": np.arange(3), "b": np.float32(0.5)}
        if payload == "bytes":
            return b"\\x00\\x01"
        return {"payload": payload.decode() if isinstance(payload, bytes) else dict(payload) if hasattr(payload, "items") else payload,
                "q": query_params, "x": headers.get("x-test")}
class Text:
    async def predict(self, payload):
        return f"got {payload}"
class Raises:
    def __init__(self, config):
        raise TypeError("no weights")
    def predict(self): ...
class Wants:
    def __init__(self, bucket): ...
    def predict(self): ...
class PredictWants:
    def predict(self, payload, data): ...
class Slow:
    def predict(self, payload):
        time.sleep(payload)
class OwnClient:
    def __init__(self):
        # One of its own, never flushed and never closed.
        self.metrics = cortex_metrics.MetricsClient(flush_interval=60)
    def predict(self, payload):
        self.metrics.increment("own")
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "predictors.py"
    path.write_text(PREDICTORS)
    return path


def address(process: Process) -> str:
    return process.line(r"serving \S+ at (http://\S+)")


def test_bodies_are_read_by_their_content_type_and_results_written_by_theirs(
    serve: Serve, file: Path, udp: Udp
) -> None:
    process = serve(f"{file}:Echo", "--api-name", "echo", "--collector-url", udp.url)
    url = address(process)
    assert post(url + "predict?a=b", b'{"k": [1]}') == (200, '{"payload": {"k": [1]}, "q": {"a": "b"}, "x": null}')
    assert json.loads(post(url, b"hello", "text/plain; charset=utf-8")[1])["payload"] == "hello"
    assert json.loads(post(url, b"raw", "application/octet-stream")[1])["payload"] == "raw"
    assert json.loads(post(url, b"a=1&b=2", "application/x-www-form-urlencoded")[1])["payload"] == {"a": "1", "b": "2"}
    assert post(url, b'"numpy"') == (200, '{"a": [0, 1, 2], "b": 0.5}')
    assert post(url, b'"bytes"') == (200, "\x00\x01")
    with urllib.request.urlopen(url) as response:
        about = json.loads(response.read())
    assert about == {"api_name": "echo", "api_id": about["api_id"], "predictor": "Echo"}
    with urllib.request.urlopen(url + "healthz") as response:
        assert response.read() == b"ok"


def test_bad_bodies_are_400_with_the_position_and_bad_results_500_with_the_reason_in_the_log(
    serve: Serve, file: Path, udp: Udp
) -> None:
    process = serve(f"{file}:Echo", "--api-name", "echo", "--collector-url", udp.url)
    url = address(process)
    code, text = post(url, b'{"a": 1,\n "b" 2}')
    assert (code, text) == (400, "malformed JSON: Expecting ':' delimiter at line 2 column 6")
    assert post(url, b"\xff")[0] == 400
    assert post(url, b"[" * 100_000)[0] == 400
    assert post(url, b"1" * 5000) == (400, "malformed JSON: a number has too many digits")
    for body, reason in (
        (b'"raise"', "LookupError: on purpose"),
        (b'"object"', "has no JSON form"),
        (b'"nan"', "not JSON"),
    ):
        assert post(url, body) == (500, "internal server error")
        process.line(f"({reason})")


def test_an_async_predict_is_awaited_and_its_text_is_text(serve: Serve, file: Path, udp: Udp) -> None:
    process = serve(f"{file}:Text", "--api-name", "text", "--collector-url", udp.url)
    assert post(address(process), b"[1]") == (200, "got [1]")


def test_the_predictor_of_the_readme_is_served_unchanged(serve: Serve, udp: Udp) -> None:
    process = serve(PREDICTOR, "--api-name", "text-generator", "--config", CONFIG, "--collector-url", udp.url)
    assert post(address(process), b"{}")[0] == 200
    ready = process.line(r"(serving .*)")
    assert ready.endswith(f'(POST JSON to / or /predict), metrics through MetricsClient("{udp.url}")')
    assert process.stop() == 0
    messages = udp.messages()
    for message in (
        "my_counter:1|c|#api_name:text-generator,model:v1",
        "my_gauge:42|g|#api_name:text-generator,model:v1",
        "my_histogram:100|h|#api_name:text-generator,model:v1",
    ):
        assert message in messages
    assert sum(m.startswith("cortex_api_requests_total:1|c") for m in messages) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.py", "--api-name", "x"], "none.py: no such file"),
        (["{file}:Nobody", "--api-name", "x"], "want a class named Nobody"),
        (["{file}:Wants", "--api-name", "x"], "class Wants: its constructor wants 'bucket'"),
        (["{file}:Raises", "--api-name", "x"], "the predictor's constructor raised TypeError: no weights"),
        (["{file}:Raises", "--api-name", "x", "--workers", "2"], "raised TypeError: no weights"),
        (["{file}:PredictWants", "--api-name", "x"], "class PredictWants: predict wants 'data', which nobody provides"),
        (["{file}:Text", "--api-name", " "], "--api-name: got ' ', want text"),
        (["{file}:Text", "--api-name", "a|b"], "--api-name: got 'a|b', want text"),
        (["{file}:Text", "--api-name", "x", "--config", "none.yaml"], "--config none.yaml"),
        (["{file}:Text", "--api-name", "x", "--collector-url", "nonsense"], '--collector-url: url: got "nonsense"'),
        (["{file}:Text", "--api-name", "x", "--threads", "0"], "got 0, want 1 or more"),
        (["{file}:Text"], "--api-name"),
    ],
)
def test_what_cannot_be_served_stops_the_start_with_exit_code_2(
    serve: Serve, file: Path, arguments: list[str], message: str
) -> None:
    process = serve(*[argument.replace("{file}", str(file)) for argument in arguments])
    assert process.process.wait(30) == 2
    assert message in process.text()
    assert "serving" not in process.text()


def test_a_taken_port_is_told_with_exit_code_1(file: Path, tmp_path: Path) -> None:
    from support import BIN

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        process = Process(tmp_path / "log", BIN / "cortex-serve", f"{file}:Text", "--api-name", "x", "--port", port)
        assert process.process.wait(30) == 1
    assert f"--port {port}: cannot listen" in process.text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_good_order_and_the_predictors_own_client_is_flushed(
    serve: Serve, file: Path, udp: Udp, number: int
) -> None:
    process = serve(f"{file}:OwnClient", "--api-name", "own", "--collector-url", udp.url)
    assert post(address(process), b"1")[0] == 200
    assert process.stop(number) == 0
    assert "Traceback" not in process.text()
    assert "own:1|c|#api_name:own" in udp.messages()


def test_the_predictors_file_runs_once(serve: Serve, file: Path, udp: Udp) -> None:
    process = serve(f"{file}:Text", "--api-name", "once", "--collector-url", udp.url)
    address(process)
    assert process.text().count("the file was run") == 1


@pytest.mark.parametrize("sent", [b"0.2", b"["], ids=["while it is predicted", "in the middle of its body"])
def test_a_client_that_left_counts_as_499_and_leaves_no_traceback(
    serve: Serve, file: Path, udp: Udp, sent: bytes
) -> None:
    process = serve(f"{file}:Slow", "--api-name", "slow", "--collector-url", udp.url)
    host, port = address(process).removeprefix("http://").rstrip("/").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n" + sent)
    messages: list[str] = []

    def counted() -> list[str]:
        messages.extend(udp.messages())
        return [m for m in messages if m.startswith("cortex_api_requests_total:1|c")]

    assert [m.rpartition("response_code:")[2] for m in until(counted)] == ["499"]
    process.stop()
    assert "Traceback" not in process.text()


def test_a_changed_predictor_or_config_is_another_version(serve: Serve, file: Path, tmp_path: Path, udp: Udp) -> None:
    def version(*more: str | Path) -> str:
        process = serve(f"{file}:Text", "--api-name", "x", "--collector-url", udp.url, *more)
        with urllib.request.urlopen(address(process)) as response:
            api_id = json.loads(response.read())["api_id"]
        process.stop()
        return str(api_id)

    config = tmp_path / "c.yaml"
    config.write_text("a: 1\n")
    first = version()
    assert version() == first
    second = version("--config", config)
    assert second != first
    file.write_text(PREDICTORS + "\n# changed\n")
    assert version("--config", config) not in (first, second)
    assert version("--api-id", "mine") == "mine"


def test_several_workers_are_one_replica_and_their_counts_add_up(serve: Serve, file: Path, udp: Udp) -> None:
    process = serve(f"{file}:Text", "--api-name", "many", "--collector-url", udp.url, "--workers", "2")
    url = address(process)
    for _ in range(20):
        assert post(url, b"1") == (200, "got 1")
    messages = udp.messages()
    process.stop()
    messages += udp.messages()
    ok = [m for m in messages if m.startswith("cortex_api_requests_total:") and "response_code:200" in m]
    assert sum(float(m.partition(":")[2].partition("|")[0]) for m in ok) == 20
    starts = [m for m in messages if m.startswith("cortex_api_replica_start_timestamp_seconds:")]
    assert len({m.partition("|#")[2] for m in starts}) == 1
