"""A Unix datagram socket that is full, missing, dead or replaced: what it does not take is held, and sent later."""

from __future__ import annotations

import socket
from pathlib import Path

from cortex_metrics import MetricsClient
from support import Tally, check_account, until


def bound(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.bind(str(path))
    return server


def call(client: MetricsClient, round_: int, contexts: int) -> None:
    for context in range(contexts):
        client.increment("calls", 1, {"context": f"{context:050}"})
        client.histogram("values", 2, {"context": context})
    client.gauge("round", round_)
    client.flush()
    check_account(client.stats())


def check(client: MetricsClient, tally: Tally, rounds: int, contexts: int) -> None:
    """All of it came, once, whatever was in the way."""

    def held() -> int:
        client.flush()
        return client.stats()["held"]

    until(lambda: held() == 0)
    stats = client.stats()
    check_account(stats)
    client.close()
    tally.close()
    assert stats["called"] == stats["sent"] == rounds * (2 * contexts + 1)
    assert stats["payloads_refused"] > 0
    assert tally.counters["calls"] == rounds * contexts
    assert tally.histograms["values"] == (rounds * contexts, 2 * rounds * contexts)
    assert tally.gauges == {"round": rounds - 1}
    assert set(tally.payloads.values()) == {1}


def test_what_a_full_socket_does_not_take_is_held_merged_and_sent_when_there_is_room(tmp_path: Path) -> None:
    # More than any queue holds: 20,000 contexts of some 80 bytes, in payloads of 8192, need 200 payloads and more.
    server = bound(tmp_path / "m.sock")
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    client = MetricsClient(f"unix://{tmp_path}/m.sock", flush_interval=3600)
    for round_ in range(3):
        call(client, round_, 4000)
    assert client.stats()["held"] > 0
    check(client, Tally(server), 3, 4000)


def test_a_missing_then_dead_then_replaced_socket_gets_everything_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    client = MetricsClient(f"unix://{path}", flush_interval=3600)
    call(client, 0, 100)
    assert client.stats()["sent"] == 0
    bound(path).close()
    call(client, 1, 100)
    stats = client.stats()
    assert (stats["sent"], stats["dropped"]["late_refusal"]) == (0, 0)
    path.unlink()
    check(client, Tally(bound(path)), 2, 100)


def test_a_socket_that_is_replaced_while_the_old_one_lives_gets_what_comes_next(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    old = Tally(bound(path))
    client = MetricsClient(f"unix://{path}", flush_interval=3600)
    call(client, 0, 1)
    path.unlink()
    new = Tally(bound(path))
    call(client, 1, 1)
    client.close()
    old.close()
    new.close()
    assert (old.gauges, new.gauges) == ({"round": 0}, {"round": 1})
