"""The collector is away for a while, under load: nothing is lost, and the client's memory stays where it is."""

from __future__ import annotations

import time
from typing import Any

import pytest
from support import Collector, Script, check_account, until

LOAD = """
import threading, time
from cortex_metrics import MetricsClient

client = MetricsClient(sys.argv[1], flush_interval=0.2)
calls = {"total": 0, "contexts": 0, "last": 0.0}
is_over = False

def load():
    number = 0
    while not is_over:
        number += 1
        client.increment("away_total", 1, {"model": "v1"})
        client.increment("away_contexts", 2, {"context": number % 100})
        client.gauge("away_last", number)
        client.histogram("away_values", number % 1000 + 1)
        if number % 1000 == 0:
            time.sleep(0.002)  # for those who share the processor
    return number

thread = threading.Thread(target=lambda: numbers.append(load()))
numbers = []
thread.start()

def rss_bytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")

def respond(line):
    global is_over
    if line == "end":
        is_over = True
        thread.join()
        client.flush()
    return {"number": sum(numbers), "rss_bytes": rss_bytes(), "stats": client.stats()}

answer(respond)
client.close()
"""


def away(collector: Collector, seconds: float) -> None:
    script = Script(LOAD.replace("sys.argv[1]", repr(collector.url)))

    def stats() -> Any:
        answer = script.ask()
        check_account(answer["stats"])
        return answer["stats"]

    until(lambda: stats()["sent"] > 0)
    assert collector.stop() == 0
    until(lambda: stats()["payloads_refused"] > 0)
    before = stats()
    early = script.ask()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.1)
        late = script.ask()
        check_account(late["stats"])
    assert late["stats"]["sent"] == before["sent"], "nobody was there"
    assert late["stats"]["held"] > early["stats"]["held"]
    grown = late["rss_bytes"] - early["rss_bytes"]
    assert grown < 4 << 20, (
        f"{late['stats']['held'] - early['stats']['held']} more calls are held in {grown} more bytes"
    )

    again = collector.again()
    until(lambda: stats()["sent"] > before["sent"])
    end = script.ask("end")
    number, stats_ = end["number"], end["stats"]
    check_account(stats_)
    assert (stats_["called"], stats_["sent"], stats_["held"]) == (4 * number, 4 * number, 0), stats_
    script.end()

    until(lambda: again.query("away_total") == {"model=v1": number})
    whole, rest = divmod(number, 100)
    assert again.query("away_contexts") == {
        f"context={context}": 2 * (whole + (1 <= context <= rest)) for context in range(100)
    }
    assert again.query("away_last") == {"": number}
    assert again.query("away_values_count") == {"": number}
    total = sum(n % 1000 + 1 for n in range(1, number + 1))
    assert again.query("away_values_sum")[""] == pytest.approx(total, rel=1e-12)
    assert again.stop() == 0


def test_what_was_recorded_while_the_collector_was_away_arrives_when_it_is_back(collector: Collector) -> None:
    away(collector, 2)


@pytest.mark.torture
def test_a_collector_that_was_away_for_a_minute(collector: Collector) -> None:
    away(collector, 60)
