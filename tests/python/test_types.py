"""The types of the installed package, as mypy --strict tells them to a user."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

DECORATED = """
import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from typing import TypeVar, overload
from cortex_metrics import Metrics, MetricsClient, NullClient
from cortex_metrics.testing import CapturingClient

T = TypeVar("T")
metrics = MetricsClient()

@metrics.timer("t")
def function(payload: str, *, top: int = 1) -> list[float]:
    raise NotImplementedError
@metrics.timer("t", {"model": "v1"})
async def coroutine(payload: str) -> int:
    raise NotImplementedError
@metrics.timer("t")
def generator(n: int) -> Generator[int, str, bytes]:
    raise NotImplementedError
@metrics.timer("t")
async def async_generator(n: int) -> AsyncGenerator[int, str]:
    yield n
@metrics.timer("t")
def generic(value: T, *values: T) -> T:
    raise NotImplementedError

class Predictor:
    @metrics.timer("t")
    def method(self, payload: str) -> int:
        raise NotImplementedError
    @metrics.timer("t")
    @classmethod
    def make(cls) -> "Predictor":
        raise NotImplementedError
    @metrics.timer("t")
    @staticmethod
    def help(topic: str) -> bool:
        raise NotImplementedError

reveal_type(function)
reveal_type(coroutine)
reveal_type(generator)
reveal_type(async_generator)
reveal_type(generic)
reveal_type(Predictor().method)
reveal_type(Predictor.make)
reveal_type(Predictor.help)
with metrics.timer("t") as timing:
    reveal_type(timing.tags)
reveal_type(metrics.stats())
reveal_type(metrics.stats()["dropped"])
class Own(MetricsClient): ...
with Own() as own:
    reveal_type(own)
with CapturingClient() as capturing, NullClient() as null:
    reveal_type(capturing)
    reveal_type(capturing.gauge_value("g"))
each: list[Metrics] = [metrics, null, capturing, own]
"""
REVEALED = [
    "def (payload: str, *, top: int =) -> list[float]",
    "def (payload: str) -> Coroutine[Any, Any, int]",
    "def (n: int) -> Generator[int, str, bytes]",
    "def (n: int) -> AsyncGenerator[int, str]",
    "def [T] (value: T, *values: T) -> T",
    "def (payload: str) -> int",
    "def () -> Predictor",
    "def (topic: str) -> bool",
    "dict[str, object]",
    "TypedDict(Stats, {'called': int, 'sent': int, 'held': int, 'dropped': dict[str, int], 'payloads_sent': int, 'payloads_refused': int})",
    "dict[str, int]",
    "Own",
    "CapturingClient",
    "float | None",
]

# Each line is one error.
WRONG = """
metrics.increment(5)
metrics.increment("c", "one")
metrics.gauge("g")
metrics.gauge("g", 1, ["a:b"])
metrics.timer("t", 5)
metrics.stats()["typo"]
metrics.timer("t")(3)
function(5)
MetricsClient("udp://h", 1.0)
not_one: Metrics = object()
"""


def mypy(folder: Path, text: str) -> list[str]:
    path = folder / "users_code.py"
    path.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", folder / "cache", "--config-file", "", path],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_types_are_kept_and_mistakes_are_found(tmp_path: Path) -> None:
    lines = mypy(tmp_path, DECORATED + WRONG)
    notes = [match[1] for line in lines if (match := re.search(r'Revealed type is "(.*)"$', line))]
    assert [re.sub(r"\b(builtins|typing|users_code|cortex_metrics\.\w+)\.", "", note) for note in notes] == REVEALED
    first = DECORATED.count("\n") + 2
    wrong = {int(match[1]) for line in lines if (match := re.match(r"users_code.py:(\d+): error: ", line))}
    assert wrong == set(range(first, first + WRONG.count("\n") - 1)), "\n".join(lines)
