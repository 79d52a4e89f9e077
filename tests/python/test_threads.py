"""Threads that share a client, its timers and their tags: nothing is lost, doubled or mixed up, with a GIL or without."""

from __future__ import annotations

import threading
from collections.abc import Callable

from cortex_metrics import MetricsClient
from support import Tally, check_account

THREADS = 4
ROUNDS = 4_000


def together(work: Callable[[int], None]) -> None:
    """Does the work in several threads that begin at the same time."""
    gate = threading.Barrier(THREADS)

    def run(number: int) -> None:
        gate.wait()
        work(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_threads_share_a_client_its_timers_and_their_tags(tally: Tally) -> None:
    client = MetricsClient(tally.url, flush_interval=0.02, strict=True)
    timer = client.timer("blocks_seconds", {"model": "v1"})
    shared: dict[str, object] = {"model": "v1"}
    failures: list[BaseException] = []

    @client.timer("function_seconds")
    def function() -> None: ...

    def work(number: int) -> None:
        try:
            for round_ in range(ROUNDS):
                client.increment("known", tags={"model": "v1"})
                client.increment("own", 1, {"thread": f"t{number}", "round": round_ % 100})
                client.increment("changing", 1, shared)
                shared[f"k{round_ % 5}"] = number
                shared.pop(f"k{(round_ + 2) % 5}", None)
                client.gauge("gauge", round_)
                function()
                with timer as timing:
                    timing.tags["thread"] = number
                if round_ % 500 == 0:
                    check_account(client.stats())
        except BaseException as error:
            failures.append(error)

    together(work)
    client.close()
    stats = client.stats()
    tally.close()
    assert failures == []
    calls = THREADS * ROUNDS
    assert (stats["called"], stats["sent"]) == (6 * calls, 6 * calls)
    assert {name: tally.counters[name] for name in ("known", "own", "changing")} == {
        "known": calls,
        "own": calls,
        "changing": calls,
    }
    assert {name: count for name, (count, _) in tally.histograms.items()} == {
        "blocks_seconds": calls,
        "function_seconds": calls,
    }
