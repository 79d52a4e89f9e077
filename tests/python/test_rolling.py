"""Rolling from one version of a predictor to the next and back, as `cortex get` shows it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from support import Collector, Process, post, until

PREDICTOR = """
class PythonPredictor:
    def __init__(self, config):
        self.answer = {answer}
    def predict(self, payload):
        return self.answer
"""


def test_rolling_to_a_new_version_and_back_shows_updating_stale_and_live(
    serve: Callable[..., Process], collector: Collector, tmp_path: Path
) -> None:
    file = tmp_path / "predictor.py"

    def start(answer: int, *more: str) -> Process:
        # Without --api-id: the version is a hash of the file, so that what changed is a new one.
        file.write_text(PREDICTOR.format(answer=answer))
        process = serve(file, "--api-name", "shop", "--collector-url", collector.url, *more)
        assert post(process.line(r"serving \S+ at (http://\S+)"), b"1", "application/json") == (200, str(answer))
        return process

    def row() -> dict[str, Any]:
        return collector.rows().get("shop", {})

    def shows(status: str, up_to_date: int, stale: int) -> bool:
        return (row().get("status"), row().get("up_to_date"), row().get("stale")) == (status, up_to_date, stale)

    first = start(1)
    until(lambda: shows("live", 1, 0))
    second = start(2)
    until(lambda: shows("updating", 1, 1))
    table = collector.cortex("get").stdout.splitlines()
    assert table[0].split()[:6] == ["env", "api", "status", "up-to-date", "stale", "requested"]
    first.stop()
    # Its gauges end 30 s after its last word.
    until(lambda: shows("live", 1, 0), 60)
    assert row()["responses"] == {"200": 2}
    # Back to the old one, whose version is that of before: it is the newest again.
    third = start(1)
    until(lambda: shows("updating", 1, 1))
    second.stop()
    until(lambda: shows("live", 1, 0), 60)
    # Two replicas of three that were asked for.
    fourth = start(1, "--replicas-requested", "3")
    until(lambda: shows("updating", 2, 0))
    assert row()["requested"] == 3
    assert row()["responses"] == {"200": 4}
    third.stop()
    fourth.stop()
    until(lambda: shows("down", 0, 0), 60)
    assert row()["responses"] == {"200": 4}
