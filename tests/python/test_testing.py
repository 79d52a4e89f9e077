"""What users have for their own tests: the capturing client and its fixture, and the client that does nothing."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from cortex_metrics import Metrics, MetricsClient, NullClient
from cortex_metrics.testing import Call, CapturingClient
from support import Udp


def test_calls_are_kept_as_they_would_be_sent() -> None:
    client = CapturingClient(tags={"zone": "a", "model": "constant"})
    client.increment("c")
    client.increment("c", Decimal("2.5"), {"model": 7, "canary": True, "none": None})
    client.gauge("g", -1, {"url": "a,b|c"})
    client.histogram("h", 0.5)
    assert client.calls == [
        Call("counter", "c", 1.0, {"zone": "a", "model": "constant"}),
        Call("counter", "c", 2.5, {"model": "7", "canary": "true", "zone": "a"}),
        Call("gauge", "g", -1.0, {"url": "a_b_c", "zone": "a", "model": "constant"}),
        Call("histogram", "h", 0.5, {"zone": "a", "model": "constant"}),
    ]
    assert client.counter_value("c") == 3.5
    assert client.counter_value("c", {"model": 7}) == 2.5
    assert client.counter_value("other") == 0
    assert client.gauge_value("g") == -1
    assert client.gauge_value("c") is None
    assert client.histogram_values("h", {"zone": "a"}) == [0.5]
    assert client.stats()["called"] == 4
    client.clear()
    assert client.calls == []


BAD = [
    ("increment", ("", 1, None)),
    ("increment", (3, 1, None)),
    ("increment", ("a b|c", 1, None)),
    ("increment", ("c", -1, None)),
    ("increment", ("c", "one", None)),
    ("increment", ("c", None, None)),
    ("increment", ("cortex_api_requests_total", 1, None)),
    ("increment", ("c" * 10_000, 1, None)),
    ("gauge", ("g", float("nan"), None)),
    ("gauge", ("g", 10**400, None)),
    ("gauge", ("g", 1, ["model:v1"])),
    ("gauge", ("g", 1, {1: "x"})),
    ("gauge", ("g", 1, {"a,b": "x"})),
    ("histogram", ("h\ud800", 1, None)),
    ("histogram", ("h", 1, {"k": "\ud800"})),
]


@pytest.mark.parametrize(("method", "arguments"), BAD)
def test_it_refuses_what_a_strict_client_refuses_in_the_same_words(udp: Udp, method: str, arguments: Any) -> None:
    with MetricsClient(udp.url, strict=True) as real:
        with pytest.raises((TypeError, ValueError)) as wanted:
            getattr(real, method)(*arguments)
        with pytest.raises((TypeError, ValueError)) as got:
            getattr(CapturingClient(), method)(*arguments)
    assert (got.type, str(got.value)) == (wanted.type, str(wanted.value))


def test_it_refuses_calls_after_close_and_bad_constant_tags() -> None:
    with CapturingClient() as client:
        client.flush()
    with pytest.raises(ValueError, match='metric "c": the client is closed'):
        client.increment("c")
    with pytest.raises(TypeError, match="want a mapping"):
        CapturingClient(tags=["zone:a"])  # type: ignore[arg-type]


def test_threads_may_share_it() -> None:
    client = CapturingClient()

    def work() -> None:
        for _ in range(1000):
            client.increment("c")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.counter_value("c") == 4000


def test_the_fixture_is_there_for_who_asks_for_the_plugin(tmp_path: Path) -> None:
    # The import is what whoever annotates a fixture has; pytest used to warn of it.
    (tmp_path / "conftest.py").write_text(
        "from cortex_metrics.testing import CapturingClient\npytest_plugins = ['cortex_metrics.testing']\n"
    )
    (tmp_path / "test_it.py").write_text(
        "def test_first(metrics_client):\n"
        "    metrics_client.increment('predictions', tags={'model': 'v1'})\n"
        "    assert metrics_client.counter_value('predictions', {'model': 'v1'}) == 1\n"
        "def test_second(metrics_client):\n"
        "    assert metrics_client.calls == []\n"
    )
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", tmp_path], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1].startswith("2 passed in"), done.stdout + done.stderr


def test_capturing_needs_no_pytest() -> None:
    code = "import sys; sys.modules['pytest'] = None; from cortex_metrics.testing import CapturingClient; CapturingClient()"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_null_client_takes_everything() -> None:
    with NullClient() as client:
        client.increment("c", "many")  # type: ignore[arg-type]
        client.gauge("", float("nan"), {"a": object()})
        client.histogram("h", 1)

        @client.timer("t")
        def three() -> int:
            return 3

        assert three() == 3
    client.flush()
    with MetricsClient("udp://127.0.0.1") as real:
        assert client.stats() == real.stats()


@pytest.mark.parametrize("double", [NullClient, CapturingClient, Metrics])
def test_the_doubles_have_the_methods_of_the_real_client(double: type[Any]) -> None:
    public = {name for name in vars(MetricsClient) if not name.startswith("_")}
    assert {"increment", "timer", "stats"} <= public <= set(vars(double))
    for name in public:
        wanted = list(inspect.signature(getattr(MetricsClient, name)).parameters.values())[1:]
        got = list(inspect.signature(getattr(double, name)).parameters.values())[1:]
        assert [(p.name, p.kind, p.default) for p in got] == [(p.name, p.kind, p.default) for p in wanted], name


def test_it_is_made_with_the_arguments_of_the_real_client_and_checks_them() -> None:
    assert list(inspect.signature(CapturingClient).parameters) == list(inspect.signature(MetricsClient).parameters)
    client = CapturingClient("udp://metrics:9125", tags={"zone": "a"}, flush_interval=0.5, strict=False)
    client.increment("c")
    assert client.stats() == {**NullClient().stats(), "called": 1, "held": 1}
    bad: list[dict[str, Any]] = [
        {"url": "http://metrics"},
        {"url": ""},
        {"flush_interval": 0},
        {"tags": ["zone:a"]},
        {"tags": {"": "a"}},
        {"tags": {"a": "x" * 400}},
    ]
    for arguments in bad:
        with pytest.raises((TypeError, ValueError)) as wanted:
            MetricsClient(**arguments)
        with pytest.raises((TypeError, ValueError)) as got:
            CapturingClient(**arguments)
        assert (got.type, str(got.value)) == (wanted.type, str(wanted.value))


def test_reads_take_tags_as_calls_do() -> None:
    client = CapturingClient()
    client.increment("c", 1, {"url": "a,b", "flag": True, "n": 1.0, "none": None})
    for tags in ({"url": "a,b"}, {"url": "a_b"}, {"flag": True}, {"flag": "true"}, {"n": 1.0}, {"none": None}, {}):
        assert client.counter_value("c", tags) == 1, tags
    assert client.counter_value("c", {"none": "None"}) == 0
    with pytest.raises(TypeError, match="want a mapping"):
        client.counter_value("c", ["url:a"])  # type: ignore[arg-type]


def test_no_thread_and_no_socket_is_made() -> None:
    tasks = set(os.listdir("/proc/self/task")) if sys.platform == "linux" else set()
    files = set(os.listdir("/proc/self/fd")) if sys.platform == "linux" else set()
    client = CapturingClient(tags={"zone": "a"})
    for call in (client.increment, client.gauge, client.histogram):
        call("m", 1)
    client.flush()
    assert NullClient().stats()["called"] == 0
    client.close()
    if sys.platform == "linux":
        assert set(os.listdir("/proc/self/task")) <= tasks
        assert set(os.listdir("/proc/self/fd")) <= files


@pytest.mark.parametrize("double", [CapturingClient, NullClient])
def test_the_middleware_takes_the_doubles(double: Any) -> None:
    asgi = pytest.importorskip("cortex_metrics.asgi")

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: dict[str, Any]) -> None: ...

    client = double(tags={"zone": "a"}) if double is CapturingClient else double()
    middleware = asgi.MetricsMiddleware(app, client, api_name="hello")
    asyncio.run(middleware({"type": "http", "path": "/", "method": "GET", "headers": []}, receive, send))
    middleware._metrics.stop()
    if double is CapturingClient:
        tags = {"api_name": "hello", "api_id": "", "response_code": 201}
        assert client.counter_value("cortex_api_requests_total", tags) == 1
        assert not any("zone" in call.tags for call in client.calls), "as with the real client"
        with pytest.raises(ValueError, match="reserved"):
            client.increment("cortex_api_requests_total")


def use(metrics: Metrics) -> dict[str, int]:
    """What a predictor may do with any of them: mypy checks that each is one."""
    metrics.increment("c", tags={"model": "v1"})
    metrics.gauge("g", 1)
    metrics.histogram("h", 0.5)
    with metrics.timer("t"):
        pass
    metrics.flush()
    return metrics.stats()["dropped"]


def test_every_client_is_a_metrics(udp: Udp) -> None:
    for client in (NullClient(), CapturingClient()):
        assert sum(use(client).values()) == 0
    with MetricsClient(udp.url) as real:
        assert sum(use(real).values()) == 0
