"""What users have for their own tests: the capturing client and its fixture, and the client that does nothing."""

from __future__ import annotations

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
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["cortex_metrics.testing"]\n')
    (tmp_path / "test_it.py").write_text(
        "def test_first(metrics_client):\n"
        "    metrics_client.increment('predictions', tags={'model': 'v1'})\n"
        "    assert metrics_client.counter_value('predictions', {'model': 'v1'}) == 1\n"
        "def test_second(metrics_client):\n"
        "    assert metrics_client.calls == []\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "pytest", "-q", tmp_path], capture_output=True, text=True, check=False
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr


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
    assert client.stats() == {
        "called": 0,
        "sent": 0,
        "held": 0,
        "dropped": {},
        "payloads_sent": 0,
        "payloads_refused": 0,
    }


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
