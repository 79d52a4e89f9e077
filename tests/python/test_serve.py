"""`cortex-serve` as a program: real uvicorn, real HTTP."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from support import CONFIG, PREDICTOR, Collector, Process, Recorded, Udp, post, until

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
                "q": dict(query_params), "x": headers.get("X-Test")}
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
class After:
    def predict(self, payload):
        return {"got": payload}
    def post_predict(self, response, payload, query_params):
        print("after", response, payload, dict(query_params), flush=True)
        raise LookupError("in post_predict")
class Pieces:
    def predict(self, payload):
        yield from payload["before"]
        if payload.get("raise"):
            raise LookupError("in the stream")
        while payload.get("for ever"):
            time.sleep(0.01)
            yield "x" * 1000
        print("the stream ended", flush=True)
    def post_predict(self):
        print("after the stream", flush=True)
class AsyncPieces:
    async def predict(self, payload):
        for piece in payload:
            yield piece
class Answers:
    def predict(self, payload):
        from starlette.responses import JSONResponse
        return JSONResponse({"status": payload}, status_code=payload)
class Busy:
    def predict(self, payload):
        time.sleep(0.3)
        return payload
class ONNXPredictor:
    def __init__(self, onnx_client, config, metrics_client):
        self.client = onnx_client
    def predict(self, payload):
        return self.client(payload)
class WantsAfter:
    def predict(self): ...
    def post_predict(self, prediction): ...
class Length:
    def predict(self, payload):
        return str(len(payload["a"] if hasattr(payload, "items") else payload))
def exits(payload):
    if isinstance(payload, str):
        import asyncio
        import builtins
        raise getattr(builtins, payload, asyncio.CancelledError)
class Exits:
    def predict(self, payload):
        exits(payload)
        return payload
class AsyncExits:
    async def predict(self, payload):
        exits(payload)
        return payload
class ExitsInStream:
    def predict(self, payload):
        yield str(payload)
        exits(payload)
class ExitsInAsyncStream:
    async def predict(self, payload):
        yield str(payload)
        exits(payload)
class AsyncHangs:
    async def predict(self):
        import asyncio
        try:
            yield "a"
            await asyncio.Event().wait()
        finally:
            print("the stream was closed", flush=True)
class Configured:
    def __init__(self, config):
        self.config = config
    def predict(self):
        return f"{self.config[1]} {self.config['two']}"
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
    assert json.loads(post(url, "olé".encode("latin-1"), "text/plain; charset=latin-1")[1])["payload"] == "olé"
    for kind in ("application/octet-stream", "text/csv", "", "application/vnd.api+json"):
        assert json.loads(post(url, b"raw", kind)[1])["payload"] == "raw", kind
    form = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--\r\n'
    assert json.loads(post(url, form, "multipart/form-data; boundary=x")[1])["payload"] == {"a": "1"}
    assert json.loads(post(url, b"a=1&b=2", "application/x-www-form-urlencoded")[1])["payload"] == {"a": "1", "b": "2"}
    assert post(url, b'"numpy"') == (200, '{"a": [0, 1, 2], "b": 0.5}')
    assert post(url, b'"bytes"') == (200, "\x00\x01")
    with urllib.request.urlopen(url) as response:
        about = json.loads(response.read())
    assert about == {"api_name": "echo", "api_id": about["api_id"], "predictor": "Echo"}
    with urllib.request.urlopen(url + "healthz") as response:
        assert response.read() == b"ok"
    process.stop()
    assert +Recorded(udp).requests == {"200": 11}, "who looks what is served asks for no prediction"


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
    assert post(url, b"\xff", "text/plain") == (400, "malformed text: not utf-8 at byte 0")
    assert post(url, b"a", "text/plain; charset=none") == (400, "malformed text: its charset is not known")
    for body, reason in (
        (b'"raise"', "LookupError: on purpose"),
        (b'"object"', "has no JSON form"),
        (b'"nan"', "not JSON"),
    ):
        assert post(url, body) == (500, "internal server error")
        process.line(f"({reason})")
    assert "in predict\n" in process.text()
    assert "_serving.py" not in process.text(), "how it was called is not the predictor's affair"


def test_a_body_that_is_too_long_is_413_and_a_long_field_of_a_form_is_none(serve: Serve, file: Path, udp: Udp) -> None:
    process = serve(f"{file}:Length", "--api-name", "x", "--collector-url", udp.url, "--body-bytes-max", "3000000")
    url = address(process)
    form = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n%s\r\n--x--\r\n'
    assert post(url, form % (b"1" * 2_000_000), "multipart/form-data; boundary=x") == (200, "2000000")
    assert post(url, b"1" * 3_000_000, "application/octet-stream") == (200, "3000000")
    too_long = (413, "the body is longer than 3000000 bytes (--body-bytes-max)")
    for kind in ("application/octet-stream", "multipart/form-data; boundary=x", "application/json"):
        # Told by its length, before any of it is read; else when so much has come.
        host, port = url.removeprefix("http://").rstrip("/").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=30)
        connection.putrequest("POST", "/")
        connection.putheader("content-type", kind)
        connection.putheader("content-length", "3000001")
        connection.endheaders()
        response = connection.getresponse()
        assert (response.status, response.read().decode()) == too_long
        connection.close()
        connection.request("POST", "/", iter([form % (b"1" * 100_000)] * 31), {"content-type": kind})
        response = connection.getresponse()
        assert (response.status, response.read().decode()) == too_long
        connection.close()


@pytest.mark.parametrize("name", ["Exits", "AsyncExits", "ExitsInStream", "ExitsInAsyncStream"])
def test_an_exit_that_a_predictor_makes_ends_its_request_and_not_the_server(
    serve: Serve, file: Path, udp: Udp, name: str
) -> None:
    process = serve(f"{file}:{name}", "--api-name", "x", "--collector-url", udp.url)
    url = address(process)
    errors = ("SystemExit", "KeyboardInterrupt", "CancelledError", "StopIteration")
    for error in errors:
        if "Stream" in name:
            with pytest.raises(http.client.IncompleteRead):
                post(url, json.dumps(error).encode())
        else:
            code, text = post(url, json.dumps(error).encode())
            assert (code, text.lower()) == (500, "internal server error")
        process.line(f"({error})")
    assert post(url, b"1") == (200, "1")
    assert process.stop() == 0
    assert +Recorded(udp).requests == {"200": 1, "500": len(errors)}


def test_an_async_stream_whose_client_goes_is_cancelled(serve: Serve, file: Path, udp: Udp) -> None:
    process = serve(f"{file}:AsyncHangs", "--api-name", "x", "--collector-url", udp.url)
    host, port = address(process).removeprefix("http://").rstrip("/").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 200"
    process.line("(the stream was closed)")
    assert process.stop() == 0
    assert +Recorded(udp).requests == {"499": 1}


def test_any_mapping_is_a_config(serve: Serve, file: Path, tmp_path: Path, udp: Udp) -> None:
    config = tmp_path / "c.yaml"
    # Keys of two types, a date, a loop, and a bomb: what is a mapping is the predictor's affair.
    rows = "".join(f"{name}: &{name} [{', '.join([f'*{chr(ord(name) - 1)}'] * 9)}]\n" for name in "bcdefghijklmno")
    config.write_text("1: one\ntwo: 2026-11-27\nloop: &loop [*loop]\na: &a [1]\n" + rows)
    process = serve(f"{file}:Configured", "--api-name", "x", "--collector-url", udp.url, "--config", config)
    assert post(address(process), b"1") == (200, "one 2026-11-27")


def test_an_async_predict_is_awaited_and_its_text_is_text(serve: Serve, file: Path, udp: Udp) -> None:
    process = serve(f"{file}:Text", "--api-name", "text", "--collector-url", udp.url)
    assert post(address(process), b"[1]") == (200, "got [1]")


def test_what_is_provided_is_made_of_config_and_client_and_injected_by_name(
    serve: Serve, file: Path, tmp_path: Path, udp: Udp
) -> None:
    (tmp_path / "clients.py").write_text(
        "def onnx(config, metrics_client):\n"
        "    metrics_client.increment('made')\n"
        "    return lambda payload: payload * config['factor']\n"
    )
    (tmp_path / "c.yaml").write_text("factor: 3\n")
    more = ("--provide", "onnx_client=clients:onnx", "--config", tmp_path / "c.yaml", "--collector-url", udp.url)
    process = serve(file, "--api-name", "x", *more)
    assert post(address(process), b"14") == (200, "42")
    process.stop()
    assert "made:1|c|#api_name:x" in udp.messages()


def test_post_predict_runs_after_the_response_and_its_errors_are_in_the_log(serve: Serve, file: Path, udp: Udp) -> None:
    process = serve(f"{file}:After", "--api-name", "x", "--collector-url", udp.url)
    assert post(address(process) + "?a=b", b"[1]") == (200, '{"got": [1]}')
    assert process.line(r"(after .*)\n") == "after {'got': [1]} [1] {'a': 'b'}"
    process.line("(LookupError: in post_predict)")
    assert post(address(process), b"2")[0] == 200
    process.stop()
    counted = [m for m in udp.messages() if m.startswith("cortex_api_requests_total:") and ":0|" not in m]
    assert {m.rpartition("response_code:")[2] for m in counted} == {"200"}


def test_what_a_generator_gives_is_streamed(serve: Serve, file: Path, udp: Udp) -> None:
    process = serve(f"{file}:Pieces", "--api-name", "x", "--collector-url", udp.url)
    url = address(process)
    assert post(url, b'{"before": ["a", "b", ""]}') == (200, "ab")
    assert post(url, b'{"before": [{"a": 1}, [2]]}') == (200, '{"a": 1}\n[2]\n')
    assert post(url, b'{"before": []}') == (200, "")
    process.line("(after the stream)")
    assert post(url, b'{"before": [], "raise": true}') == (500, "internal server error")
    with pytest.raises(http.client.IncompleteRead):
        post(url, b'{"before": ["a"], "raise": true}')
    process.line("(LookupError: in the stream)")
    # A client that goes ends the stream, and with it the thread is free for the next.
    body = b'{"before": [], "for ever": true}'
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        client.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        assert client.recv(12) == b"HTTP/1.1 200"
    assert post(url, b'{"before": ["a"]}') == (200, "a")
    process.stop()
    counted = Recorded(udp)
    assert +counted.requests == {"200": 4, "500": 2, "499": 1}
    assert counted.first_bytes == counted.queued == 7


def test_an_async_generator_is_streamed_and_a_response_is_the_response(serve: Serve, file: Path, udp: Udp) -> None:
    process = serve(f"{file}:AsyncPieces", "--api-name", "x", "--collector-url", udp.url)
    assert post(address(process), b'["a", "b"]') == (200, "ab")
    process = serve(f"{file}:Answers", "--api-name", "x", "--collector-url", udp.url)
    assert post(address(process), b"418") == (418, '{"status":418}')


def test_requests_that_wait_for_a_thread_are_seen(serve: Serve, file: Path, collector: Collector) -> None:
    process = serve(f"{file}:Busy", "--api-name", "busy", "--threads", "2", "--collector-url", collector.url)
    url = address(process)
    asking = [threading.Thread(target=post, args=(url, b"1")) for _ in range(6)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    until(lambda: collector.query("sum(cortex_api_requests_total)") == {"": 6})
    queue = "histogram_count(cortex_api_request_queue_seconds)"
    assert collector.query(queue) == {"api_name=busy": 6}
    # Two at once, 0.3 s each: the second pair waited that long, the third twice that.
    assert collector.query("histogram_sum(cortex_api_request_queue_seconds)")["api_name=busy"] > 4 * 0.3
    assert collector.query("histogram_fraction(0.5, Inf, cortex_api_request_queue_seconds)")["api_name=busy"] >= 0.3
    assert collector.query("sum(cortex_api_process_resident_memory_bytes)")[""] > 1e7
    assert collector.query("sum(cortex_api_process_cpu_seconds_total)")[""] > 0.1


TASK = """
class Task:
    def __init__(self, metrics_client):
        self.metrics = metrics_client
    def __call__(self, config):
        print("task with", config, flush=True)
        self.metrics.increment("trained", config.get("models", 1))
        if config.get("raise"):
            raise LookupError("no data")
"""


def test_a_task_runs_once_and_its_metrics_are_sent(serve: Serve, tmp_path: Path, udp: Udp) -> None:
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "c.json").write_text('{"models": 7}')
    task = ("--api-name", "train", "--collector-url", udp.url)
    process = serve(tmp_path / "task.py", *task, "--config", tmp_path / "c.json")
    assert process.process.wait(30) == 0, process.text()
    assert process.text().count("task with {'models': 7}") == 1
    assert "trained:7|c|#api_name:train" in udp.messages()
    (tmp_path / "c.json").write_text('{"raise": 1}')
    process = serve(tmp_path / "task.py", *task, "--config", tmp_path / "c.json")
    assert process.process.wait(30) == 1
    assert "LookupError: no data" in process.text()
    assert "trained:1|c|#api_name:train" in udp.messages(), "also what it counted before it failed"


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
        (["{file}:Raises", "--api-name", "x"], "predictors.py: the constructor of Raises raised TypeError: no weights"),
        (["{file}:Raises", "--api-name", "x", "--workers", "2"], "raised TypeError: no weights"),
        (["{file}:WantsAfter", "--api-name", "x"], "class WantsAfter: post_predict wants 'prediction', which nobody"),
        (["{file}", "--api-name", "x"], "class ONNXPredictor: its constructor wants 'onnx_client', which nobody"),
        (["{file}", "--api-name", "x", "--provide", "onnx_client"], "got 'onnx_client', want name=module:factory"),
        (["{file}", "--api-name", "x", "--provide", "onnx_client=none:f"], "none:f: cannot be imported: Module"),
        (["{file}", "--api-name", "x", "--provide", "onnx_client=json:none"], "json:none: json has no function none"),
        (
            ["{file}", "--api-name", "x", "--provide", "onnx_client=json:loads"],
            "json:loads: it wants 's', which nobody provides: have config, metrics_client",
        ),
        (["{file}:PredictWants", "--api-name", "x"], "class PredictWants: predict wants 'data', which nobody provides"),
        (["{file}:Text", "--api-name", " "], "--api-name: got ' ', want text"),
        (["{file}:Text", "--api-name", "ü" * 101], "--api-name: got 202 bytes, want 200 at most"),
        (["{file}:Text", "--api-name", "a|b"], "--api-name: got 'a|b', want text"),
        (["{file}:Text", "--api-name", "x", "--config", "none.yaml"], "--config none.yaml"),
        (["{file}:Text", "--api-name", "x", "--collector-url", "nonsense"], '--collector-url: url: got "nonsense"'),
        (["{file}:Text", "--api-name", "x", "--threads", "0"], "got '0', want a whole number of 1 or more"),
        (["{file}:Text", "--api-name", "x", "--port", "http"], "--port: got 'http', want 0 to 65535"),
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
        client.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 3\r\n\r\n" + sent
        )
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
