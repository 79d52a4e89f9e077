"""The client as its users call it, over a real socket."""

from __future__ import annotations

import collections
import contextlib
import copy
import decimal
import logging
import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
import threading
import types
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cortex_metrics import MetricsClient
from support import Tally, Udp, check_account, until


def sent(udp: Udp, *calls: Any) -> list[str]:
    """The messages that calls `(method, args, kwargs)` of a strict client become."""
    with MetricsClient(udp.url, strict=True) as client:
        for method, args, kwargs in calls:
            getattr(client, method)(*args, **kwargs)
    return sorted(udp.messages())


def test_calls_take_arguments_by_position_and_by_keyword(udp: Udp) -> None:
    assert sent(
        udp,
        ("increment", ("c",), {}),
        ("increment", ("c", 2, {"model": "v1"}), {}),
        ("increment", (), {"metric": "c", "value": 3, "tags": {"model": "v1"}}),
        ("gauge", ("g", 42), {}),
        ("gauge", (), {"metric": "g", "value": 43, "tags": None}),
        ("histogram", (), {"metric": "h", "value": 100, "tags": {"model": "v1"}}),
    ) == ["c:1|c", "c:5|c|#model:v1", "g:43|g", "h:100|h|#model:v1"]


class Floaty:
    def __float__(self) -> float:
        return 1.5


class Indexy:
    def __index__(self) -> int:
        return 7


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "1"),
        (2**40, "1099511627776"),
        (0.1, "0.1"),
        (np.float32(0.5), "0.5"),
        (np.int64(3), "3"),
        (np.array(2.5), "2.5"),
        (Floaty(), "1.5"),
        (Indexy(), "7"),
        (decimal.Decimal("1.25"), "1.25"),
    ],
)
def test_a_value_is_anything_with_float_or_index(udp: Udp, value: Any, text: str) -> None:
    assert sent(udp, ("gauge", ("g", value), {})) == [f"g:{text}|g"]


def test_tags_are_any_mapping_of_text_to_whatever_has_a_text(udp: Udp) -> None:
    tags = {"s": "x", "i": 1, "f": 0.5, "yes": True, "no": False, "gone": None, "o": decimal.Decimal(2)}
    want = "c:1|c|#f:0.5,i:1,no:false,o:2,s:x,yes:true"
    for mapping in (tags, types.MappingProxyType(tags), collections.OrderedDict(tags), collections.UserDict(tags)):
        assert sent(udp, ("increment", ("c", 1, mapping), {})) == [want]


BAD_CALLS: list[tuple[str, tuple[Any, ...], type[Exception], str]] = [
    ("gauge", ("g", float("nan")), ValueError, "not_finite"),
    ("gauge", ("g", float("inf")), ValueError, "not_finite"),
    ("gauge", ("g", 10**400), ValueError, "not_finite"),
    ("gauge", ("g", "5"), TypeError, "bad_value"),
    ("gauge", ("g", None), TypeError, "bad_value"),
    ("gauge", ("g", np.array([1.0, 2.0])), TypeError, "bad_value"),
    ("increment", ("c", -1), ValueError, "negative_increment"),
    ("increment", (5,), TypeError, "bad_name"),
    ("increment", ("",), ValueError, "bad_name"),
    ("increment", ("a\nb:1|c",), ValueError, "bad_name"),
    ("increment", ("\ud800",), ValueError, "bad_name"),
    ("increment", ("a" * 10_000,), ValueError, "too_long"),
    ("increment", ("cortex_api_requests_total",), ValueError, "reserved_name"),
    ("increment", ("cortex.api.requests-total",), ValueError, "reserved_name"),
    ("increment", ("c", 1, ["a:b"]), TypeError, "bad_tags"),
    ("increment", ("c", 1, {1: "b"}), TypeError, "bad_tags"),
    ("increment", ("c", 1, {"a|b": "b"}), ValueError, "bad_tags"),
    ("increment", ("c", 1, {"a": "\ud800"}), ValueError, "bad_tags"),
]


@pytest.mark.parametrize(("method", "arguments", "error", "reason"), BAD_CALLS)
def test_a_bad_call_is_dropped_counted_and_told_once(
    udp: Udp,
    caplog: pytest.LogCaptureFixture,
    method: str,
    arguments: tuple[Any, ...],
    error: type[Exception],
    reason: str,
) -> None:
    with MetricsClient(udp.url) as client:
        for _ in range(3):
            getattr(client, method)(*arguments)
        stats = client.stats()
    assert (stats["called"], stats["dropped"][reason], stats["sent"], stats["held"]) == (3, 3, 0, 0)
    assert udp.messages() == []
    assert len(caplog.records) == 1
    assert caplog.records[0].name == "cortex_metrics"
    assert reason in caplog.text

    with MetricsClient(udp.url, strict=True) as strict, pytest.raises(error, match=r"want|reserved|do not fit"):
        getattr(strict, method)(*arguments)


@pytest.mark.parametrize("count", [1, 8, 9])
def test_tags_that_change_while_they_are_read_count_as_they_were(udp: Udp, count: int) -> None:
    # An iteration over the dict itself panicked here, and the call was in no account.
    class Growing:
        def __str__(self) -> str:
            tags.clear()
            tags.update({f"new{n}": n for n in range(100)})
            return "x"

    def changing() -> dict[str, object]:
        tags.clear()
        tags.update({f"k{n}": Growing() for n in range(count)})
        return tags

    tags: dict[str, object] = {}
    text = ",".join(f"k{n}:x" for n in range(count))
    with MetricsClient(udp.url, strict=True) as client:
        client.increment("c", 1, changing())
    with MetricsClient(udp.url, tags=changing()) as client:
        client.increment("d")
    assert udp.messages() == [f"c:1|c|#{text}", f"d:1|c|#{text}"]


def test_tags_that_another_thread_changes_are_no_error(udp: Udp) -> None:
    tags: dict[str, object] = {"model": "v1"}
    is_over = False

    def change() -> None:
        n = 0
        while not is_over:
            n += 1
            tags[f"k{n % 20}"] = n % 3
            tags.pop(f"k{(n + 7) % 20}", None)

    changer = threading.Thread(target=change)
    with MetricsClient(udp.url, strict=True) as client:
        changer.start()
        for _ in range(20_000):
            client.increment("c", 1, tags)
        is_over = True
        changer.join()
        stats = client.stats()
    assert (stats["called"], sum(stats["dropped"].values())) == (20_000, 0)


def test_what_the_caller_must_see_passes_through() -> None:
    class Interrupted:
        def __float__(self) -> float:
            raise KeyboardInterrupt

    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    with MetricsClient("udp://127.0.0.1:9") as client:
        with pytest.raises(KeyboardInterrupt):
            client.gauge("g", Interrupted())
        client.gauge("g", 1, {"a": Broken()})
        assert client.stats()["dropped"]["bad_tags"] == 1


def test_a_tag_value_cannot_end_its_tag_or_start_a_message(udp: Udp) -> None:
    assert sent(udp, ("increment", ("c", 1, {"a": "x,y|z\nb:1|c"}), {})) == ["c:1|c|#a:x_y_z_b:1_c"]


def test_calls_after_close_are_dropped_and_close_is_idempotent(udp: Udp, caplog: pytest.LogCaptureFixture) -> None:
    client = MetricsClient(udp.url)
    client.increment("c")
    client.close()
    client.close()
    client.increment("c")
    client.flush()
    assert client.stats()["dropped"]["closed"] == 1
    assert "closed" in caplog.text
    assert udp.messages() == ["c:1|c"]


def test_strict_comes_from_the_environment_too(udp: Udp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORTEX_METRICS_STRICT", "1")
    with MetricsClient(udp.url) as client, pytest.raises(ValueError, match="want 0 or more"):
        client.increment("c", -1)


def test_the_environment_says_where_to_send_and_a_bad_value_is_told(
    udp: Udp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CORTEX_METRICS_URL", udp.url)
    monkeypatch.setenv("CORTEX_API_NAME", "iris")
    with MetricsClient(tags={"env": "test"}) as client:
        client.increment("c", tags={"a": "b"})
    assert udp.messages() == ["c:1|c|#a:b,api_name:iris,env:test"]
    monkeypatch.setenv("CORTEX_METRICS_URL", "http://nonsense")
    assert repr(MetricsClient()) == 'MetricsClient("udp://127.0.0.1:9125")'
    assert 'CORTEX_METRICS_URL: got "http://nonsense", want udp://host:port or unix:///path' in caplog.text


@pytest.mark.parametrize(
    "arguments", [{"url": "nonsense"}, {"flush_interval": 0}, {"tags": {"": "x"}}, {"tags": {"a": "x" * 9999}}]
)
def test_a_constructor_argument_out_of_its_range_raises(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="want"):
        MetricsClient(**arguments)


def test_what_a_closed_port_refuses_arrives_when_it_is_open_again(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    client = MetricsClient(f"udp://127.0.0.1:{port}")
    for round_ in range(3):
        client.increment("c", 2)
        client.gauge("g", round_)
        for value in range(100):
            client.histogram("h", 1 + value % 10)
        client.flush()
    stats = client.stats()
    assert (stats["called"], stats["held"], stats["sent"]) == (306, 306, 0)
    refusals = [record for record in caplog.records if "does not take metrics" in record.message]
    assert len(refusals) == 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", port))
        server.setblocking(False)
        client.flush()
        messages = Udp(server).messages()
        assert {"c:6|c", "g:2|g"} <= set(messages)
        weights = 0.0
        total = 0.0
        for message in messages:
            name, _, rest = message.partition(":")
            if name == "h":
                sections = rest.split("|")
                weight = next((round(1 / float(s[1:])) for s in sections if s.startswith("@")), 1)
                values = [float(v) for v in sections[0].split(":")]
                weights += weight * len(values)
                total += weight * sum(values)
        assert weights == 300
        assert total == pytest.approx(1650, rel=1e-12)
        stats = client.stats()
        assert (stats["held"], stats["sent"]) == (0, 306)
        assert "takes metrics again" in caplog.text
        client.close()


def test_a_close_without_a_collector_says_what_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    client = MetricsClient("unix:///nonexistent/metrics.sock")
    client.increment("c")
    client.close()
    stats = client.stats()
    assert (stats["called"], stats["held"], stats["dropped"]["closed"]) == (1, 0, 1)
    assert "1 calls are lost" in caplog.text


def test_payloads_go_to_a_unix_socket(tmp_path: Any) -> None:
    path = tmp_path / "m.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(path))
        server.setblocking(False)
        with MetricsClient(f"unix://{path}") as client:
            client.increment("c")
        assert Udp(server).messages() == ["c:1|c"]


def test_payloads_stay_within_a_datagram_and_are_numbered(udp: Udp) -> None:
    with MetricsClient(udp.url) as client:
        for context in range(1000):
            client.increment("a_counter_with_a_name", 1, {"context": context})
    sizes, sequences, counters = [], [], 0
    while True:
        try:
            payload = udp.socket.recv(65536)
        except BlockingIOError:
            break
        sizes.append(len(payload))
        header, *lines = payload.decode().splitlines()
        name, _, rest = header.partition(":")
        assert name == "cortex_client_payload_sequence"
        sequences.append(int(rest.partition("|")[0]))
        counters += sum(line.startswith("a_counter") for line in lines)
    assert max(sizes) <= 1432
    assert sequences == list(range(1, len(sequences) + 1))
    assert counters == 1000


def test_without_telemetry_nothing_of_ours_is_sent(udp: Udp) -> None:
    with MetricsClient(udp.url, telemetry=False) as client:
        client.increment("c")
    assert udp.all_messages() == ["c:1|c"]


@pytest.mark.parametrize("ending", ["pass", "import sys; sys.exit(3)", "raise RuntimeError"])
def test_the_end_of_the_interpreter_sends_what_is_left(udp: Udp, ending: str) -> None:
    code = f"from cortex_metrics import MetricsClient\nm = MetricsClient({udp.url!r}, flush_interval=60)\nm.increment('c')\n{ending}"
    subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert udp.messages() == ["c:1|c"]


def test_importing_loads_nothing_that_is_not_needed() -> None:
    code = "import cortex_metrics, sys; print(sorted(m for m in ('asyncio', 'logging', 'socket', 'typing') if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import sys; sys.path = " + repr(sys.path) + "; " + code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


def test_a_forked_child_sends_its_own_and_nothing_of_its_parent(udp: Udp) -> None:
    client = MetricsClient(udp.url, flush_interval=60)
    client.increment("parent")
    children = []
    for _ in range(20):
        child = os.fork()
        if child == 0:
            try:
                client.increment("child")
                client.flush()
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    messages = udp.all_messages()
    assert sorted(m for m in messages if not m.startswith("cortex_client_")) == ["child:1|c"] * 20
    ids = {m.rpartition(":")[2] for m in messages if m.startswith("cortex_client_payload_sequence")}
    assert len(ids) == 20, "each process names itself"
    client.close()
    assert udp.messages() == ["parent:1|c"]


def test_the_flusher_sends_without_being_asked(udp: Udp, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client = MetricsClient(udp.url, flush_interval=0.05)
    client.increment("c")
    assert until(udp.messages) == ["c:1|c"]
    client.close()
    assert caplog.records == []


def test_a_client_with_nothing_to_say_says_that_it_lives(udp: Udp) -> None:
    # Only the datagram is asserted, not when it came: it is due 10 s after the last one.
    client = MetricsClient(udp.url, flush_interval=3600)
    client.increment("c")
    client.flush()
    assert udp.messages() == ["c:1|c"]
    header = until(udp.all_messages, 30)
    assert len(header) == 1
    assert header[0].startswith("cortex_client_payload_sequence:2|g|#client_id:")
    client.close()


def _increment(url: str, inherited: MetricsClient | None) -> None:
    client = inherited or MetricsClient(url, flush_interval=60)
    client.increment("child")
    if inherited is None:
        # Kept, so that only the end of the process can send it.
        globals()["kept"] = client


@pytest.mark.parametrize(
    ("method", "is_inherited"), [("fork", False), ("fork", True), ("spawn", False), ("forkserver", False)]
)
def test_a_child_of_multiprocessing_sends_what_it_recorded(udp: Udp, method: str, is_inherited: bool) -> None:
    context: Any = multiprocessing.get_context(method)
    client = MetricsClient(udp.url, flush_interval=60)
    client.increment("parent")
    target: Any = _increment
    children = [context.Process(target=target, args=(udp.url, client if is_inherited else None)) for _ in range(5)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert sorted(udp.messages()) == ["child:1|c"] * 5
    client.close()


def test_a_client_that_nobody_holds_any_more_sends_what_it_has(udp: Udp) -> None:
    client = MetricsClient(udp.url, flush_interval=60)
    client.increment("c")
    del client
    assert udp.messages() == ["c:1|c"]


def test_what_is_held_at_the_end_is_told_to_be_lost() -> None:
    code = "from cortex_metrics import MetricsClient\nm = MetricsClient('unix:///nonexistent/m.sock')\nm.increment('c')"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "1 calls are lost" in done.stderr


def test_what_is_refused_is_refused_every_time(udp: Udp) -> None:
    # Once, arguments that had been refused were learned, and recognized from then on without the checks.
    with MetricsClient(udp.url) as client:
        for _ in range(100):
            client.increment("cortex_api_requests_total", 1, {"model": "v1"})
            client.increment("c", -1, {"model": "v1"})
            client.gauge("bad:name", 1)
        dropped = client.stats()["dropped"]
    assert (dropped["reserved_name"], dropped["negative_increment"], dropped["bad_name"]) == (100, 100, 100)
    assert udp.messages() == []


def test_arguments_that_are_recognized_mean_what_they_say_now(udp: Udp) -> None:
    with MetricsClient(udp.url, flush_interval=3600) as client:
        tags = {"model": "v1"}
        for number in range(200):
            tags["model"] = f"v{number % 3}"
            client.increment("c", 1, tags)
            client.increment("c", 1, {"model": True})
            client.increment("c", 1, {"model": 1})
            client.increment("c", 1, {"model": None})
            client.gauge("c_gauge", number, tags)
    assert sorted(udp.messages()) == [
        "c:200|c",
        "c:200|c|#model:1",
        "c:200|c|#model:true",
        "c:66|c|#model:v2",
        "c:67|c|#model:v0",
        "c:67|c|#model:v1",
        "c_gauge:197|g|#model:v2",
        "c_gauge:198|g|#model:v0",
        "c_gauge:199|g|#model:v1",
    ]


def test_no_reference_is_kept_to_text_of_the_call_alone_and_those_of_constants_are_bounded(udp: Udp) -> None:
    name, value = "".join(["coun", "ter"]), "".join(["v", "1"])
    with MetricsClient(udp.url) as client:
        before = sys.getrefcount(value)
        for _ in range(10_000):
            client.increment(name, 1, {"model": value})
        assert sys.getrefcount(value) <= before + 1
    assert sys.getrefcount(value) == before, "a closed client keeps nothing"


@pytest.mark.parametrize("wanted", [None, 512, 4096])
def test_payloads_are_no_longer_than_wanted_and_no_shorter_than_they_could_be(udp: Udp, wanted: int | None) -> None:
    with MetricsClient(udp.url, payload_bytes_max=wanted) as client:
        for number in range(200):
            client.increment(f"counter_{number}", number, {"model": "v1"})
    lengths = []
    while True:
        try:
            lengths.append(len(udp.socket.recv(65536)))
        except BlockingIOError:
            break
    most = wanted or 1432
    assert all(most - 60 < length <= most for length in lengths[:-1]), lengths
    assert lengths[-1] <= most


def test_contexts_beyond_the_limit_are_counted_and_their_metric_is_named_once(
    udp: Udp, caplog: pytest.LogCaptureFixture
) -> None:
    with MetricsClient(udp.url, contexts_max=10, flush_interval=3600) as client:
        for _ in range(3):
            for number in range(15):
                client.increment("by_user", 1, {"user": number})
        assert client.stats()["dropped"]["context_limit"] == 15
        client.flush()
        client.increment("by_user", 1, {"user": "new"})
    assert len(udp.messages()) == 11
    assert [record.getMessage() for record in caplog.records] == [
        'dropped (context_limit): metric "by_user": more than 10 combinations of name and tags at once; '
        "is a tag unbounded?"
    ]


@pytest.mark.parametrize("bad", [{"contexts_max": 0}, {"payload_bytes_max": 100}, {"payload_bytes_max": 65_508}])
def test_limits_out_of_range_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        MetricsClient(**bad)  # type: ignore[arg-type]


def test_tags_in_another_order_are_the_same_context_and_the_newest_gauge_counts(udp: Udp) -> None:
    assert sent(
        udp,
        ("gauge", ("g", 10, {"a": 1, "b": 2}), {}),
        ("gauge", ("g", 20, {"b": 2, "a": 1}), {}),
        ("increment", ("c", 1, {"b": 2, "a": 1, "c": 3}), {}),
        ("increment", ("c", 1, {"c": 3, "a": 1, "b": 2}), {}),
    ) == ["c:2|c|#a:1,b:2,c:3", "g:20|g|#a:1,b:2"]


def test_of_equal_keys_that_of_the_call_wins(udp: Udp) -> None:
    with MetricsClient(udp.url, tags={"model": "v0", "zone": "eu"}) as client:
        client.increment("c", 1, {"model": "v1"})
    assert udp.messages() == ["c:1|c|#model:v1,zone:eu"]


def test_as_many_contexts_as_are_allowed_arrive_in_every_flush(udp: Udp) -> None:
    with MetricsClient(udp.url, contexts_max=3, flush_interval=3600) as client:
        for _ in range(3):
            # Each refusal becomes a metric of our own account, which takes nobody's room.
            client.increment("c", -1)
            client.gauge("g", float("nan"))
            client.increment("", 1)
            for number in range(4):
                client.increment(f"c{number}")
            client.flush()
            assert sorted(udp.messages()) == ["c0:1|c", "c1:1|c", "c2:1|c"]
        assert client.stats()["dropped"]["context_limit"] == 3


class Shown:
    """Something that is no number, no text and no mapping, and counts how often somebody looks at it."""

    def __init__(self) -> None:
        self.times = 0

    def __repr__(self) -> str:
        self.times += 1
        return "shown"

    def __str__(self) -> str:
        raise RuntimeError


def test_a_refused_call_that_was_told_costs_no_words(udp: Udp) -> None:
    shown = Shown()
    with MetricsClient(udp.url) as client:
        for _ in range(100):
            client.gauge("g", shown)  # type: ignore[arg-type]
            client.increment("c", 1, shown)  # type: ignore[arg-type]
            client.increment("d", 1, {"tag": shown})
        assert sum(client.stats()["dropped"].values()) == 300
    assert shown.times == 3


def test_what_is_told_of_huge_arguments_is_short(udp: Udp, caplog: pytest.LogCaptureFixture) -> None:
    huge = "line\n" * 2_000_000
    with MetricsClient(udp.url) as client:
        client.increment(huge)
        client.gauge("value", list(range(1_000_000)))  # type: ignore[arg-type]
        client.increment("tags", 1, list(range(1_000_000)))  # type: ignore[arg-type]
        client.increment("tag", 1, {huge: 1})
        client.increment("text", 1, {"text": huge})
        assert sum(client.stats()["dropped"].values()) == 5
    assert len(caplog.records) == 5
    assert all(len(record.getMessage()) < 400 for record in caplog.records), caplog.text[:2000]
    assert "a list of 1000000 items" in caplog.text


def test_what_cannot_be_used_is_not_kept(udp: Udp) -> None:
    with MetricsClient(udp.url) as client:
        keys = ["k" * 100_000 + str(number) for number in range(50)]
        for _ in range(20):
            for key in keys:
                client.increment("c", 1, {key: None})
        del key
        held = [key for key in keys if sys.getrefcount(key) > 3]
        assert not held
    assert udp.messages() == ["c:1000|c"]


def test_whoever_wants_to_end_the_program_is_not_held_up(udp: Udp) -> None:
    class Interrupting(logging.Handler):
        def emit(self, _record: logging.LogRecord) -> None:
            raise KeyboardInterrupt

    class Ending:
        def __repr__(self) -> str:
            raise SystemExit(5)

    logger, handler = logging.getLogger("cortex_metrics"), Interrupting()
    with MetricsClient(udp.url) as client:
        logger.addHandler(handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                client.increment("c", -1)
        finally:
            logger.removeHandler(handler)
        with pytest.raises(SystemExit):
            client.gauge("g", Ending())  # type: ignore[arg-type]


def test_a_name_of_the_api_that_is_too_long_is_left_out_and_told(
    udp: Udp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CORTEX_API_NAME", "x" * 700)
    with MetricsClient(udp.url, tags={"env": "test"}) as client:
        client.increment("c")
    assert udp.messages() == ["c:1|c|#env:test"]
    assert "CORTEX_API_NAME: got 700 bytes" in caplog.text


def test_an_argument_decides_before_the_environment(udp: Udp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORTEX_METRICS_STRICT", "1")
    with MetricsClient(udp.url, strict=False) as client:
        client.increment("c", -1)
        assert client.stats()["dropped"]["negative_increment"] == 1


def test_a_client_that_is_pickled_is_made_anew_and_one_that_is_copied_is_the_same(udp: Udp) -> None:
    arguments: dict[str, Any] = {"tags": {"zone": "eu"}, "contexts_max": 7, "payload_bytes_max": 600, "strict": True}
    with MetricsClient(udp.url, **arguments) as client:
        assert copy.copy(client) is client
        assert copy.deepcopy({"metrics": client})["metrics"] is client
        with pickle.loads(pickle.dumps(client)) as other:
            assert other is not client
            assert other.__getnewargs_ex__() == client.__getnewargs_ex__()
            with pytest.raises(ValueError, match="want 0 or more"):
                other.increment("c", -1)
            other.increment("c")
    assert udp.messages() == ["c:1|c|#zone:eu"]


def test_a_client_travels_with_a_task_to_a_pool(udp: Udp) -> None:
    with (
        MetricsClient(udp.url, flush_interval=3600) as client,
        futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool,
    ):
        assert list(pool.map(client.increment, ["a", "b"])) == [None, None]
    assert sorted(udp.messages()) == ["a:1|c", "b:1|c"]


@pytest.mark.parametrize("closers", [1, 2, 4])
def test_whoever_closes_and_how_often_the_account_is_right(tally: Tally, closers: int) -> None:
    for _ in range(20):
        client = MetricsClient(tally.url, flush_interval=3600)
        for number in range(200):
            client.increment(f"c{number}")
        threads = [threading.Thread(target=client.close) for _ in range(closers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        client.close()
        stats = client.stats()
        check_account(stats)
        assert (stats["sent"], stats["held"]) == (200, 0)
    tally.close()
    assert sum(tally.counters[f"c{number}"] for number in range(200)) == 20 * 200


def test_a_client_that_is_let_go_of_holds_up_nobody_else(tmp_path: Path) -> None:
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
        client = MetricsClient(f"unix://{path}", flush_interval=3600)
        client.increment("c")
        steps, is_over = 0, threading.Event()

        def go_on() -> None:
            nonlocal steps
            while not is_over.wait(0.001):
                steps += 1

        other = threading.Thread(target=go_on)
        before = sys.getswitchinterval()
        # From here on the other thread runs only where this one lets go of the interpreter.
        sys.setswitchinterval(1000)
        try:
            other.start()
            before_del = steps
            del client
            assert steps > before_del
        finally:
            sys.setswitchinterval(before)
            is_over.set()
            other.join()
