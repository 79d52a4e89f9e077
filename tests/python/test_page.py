"""The page as it is served and built: its bytes, headers and rows. What it draws is tested in a browser."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest
from support import Collector, until

ROOT = Path(__file__).resolve().parent.parent.parent
DASHBOARD = ROOT / "dashboard"
FILES = {"/": "index.html", "/app.js": "app.js", "/app.css": "app.css"}


@pytest.fixture
def npm() -> str:
    """The program, with what the page is built with; `make test` has seen to that where it could."""
    program = shutil.which("npm")
    if program is None or not (DASHBOARD / "node_modules" / ".installed").exists():
        reason = "npm is missing: make node" if program is None else "the page's tools are missing: make npm"
        assert os.environ.get("CI") != "true", reason
        pytest.skip(reason)
    return program


def run(*command: str | Path) -> None:
    done = subprocess.run(command, cwd=DASHBOARD, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_bundle_is_that_of_the_sources(npm: str, tmp_path: Path) -> None:
    run(Path(npm).with_name("node"), "build.mjs", tmp_path)
    for name in FILES.values():
        is_same = (tmp_path / name).read_bytes() == (DASHBOARD / "dist" / name).read_bytes()
        assert is_same, f"dashboard/dist/{name} is stale: run make dashboard and commit it"
    assert sorted(path.name for path in (DASHBOARD / "dist").iterdir()) == sorted(FILES.values())


def test_the_pages_types_and_unit_tests_hold(npm: str) -> None:
    run(npm, "run", "--silent", "check")
    run(npm, "run", "--silent", "test")


def test_nothing_in_the_sources_makes_markup_of_text() -> None:
    makers = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|\beval\b"
    )
    sources = list((DASHBOARD / "src").rglob("*.ts"))
    assert len(sources) > 20
    assert [path.name for path in sources if makers.search(path.read_text())] == []


def fetch(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(url, headers={name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, {k.lower(): v for k, v in response.headers.items()}, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()


def send(collector: Collector, lines: bytes) -> None:
    host, _, port = collector.udp.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(lines, (host, int(port)))


def test_the_page_is_one_of_less_than_150_kb_that_asks_nobody_else(collector: Collector) -> None:
    size = 0
    for path, name in FILES.items():
        status, headers, body = fetch(f"http://{collector.web}{path}")
        assert (status, body) == (200, (DASHBOARD / "dist" / name).read_bytes())
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-cache"
        size += len(body)
        # Nothing of it is elsewhere: the names of XML's kinds and examples on this machine are no places that are asked.
        places = set(re.findall(rb"https?://[^/\s\"'`\\)]+", body)) - {b"http://www.w3.org", b"http://127.0.0.1:8080"}
        assert not places, places
    assert size < 150_000


def test_a_page_that_is_known_is_not_sent_again(collector: Collector) -> None:
    for path in FILES:
        url = f"http://{collector.web}{path}"
        _, headers, plain = fetch(url)
        status, again, body = fetch(url, if_none_match=headers["etag"])
        assert (status, body, again["etag"]) == (304, b"", headers["etag"])
        assert "content-security-policy" in again
        assert fetch(url, if_none_match='"another"')[0] == 200
        status, zipped, body = fetch(url, accept_encoding="gzip")
        assert zipped["content-encoding"] == "gzip"
        assert gzip.decompress(body) == plain


def test_the_rows_are_those_of_cortex_get(collector: Collector) -> None:
    hostile = '<img src=x onerror=alert(1)>"\\'
    for name in ("iris", hostile):
        lines = "\n".join(
            [
                f"cortex_api_requests_total:3|c|#api_name:{name},api_id:v1,response_code:200",
                f"cortex_api_requests_total:1|c|#api_name:{name},api_id:v1,response_code:500",
                f"cortex_api_request_duration_seconds:0.25|h|#api_name:{name},api_id:v1",
                f"cortex_api_replica_start_timestamp_seconds:1790000000|g|#api_name:{name},api_id:v1,replica:r1",
            ]
        )
        send(collector, lines.encode())
    until(lambda: len(collector.rows()) == 2)
    ages = ("last_update_seconds",)

    def both() -> bool:
        by_page = {row["api"]: row for row in collector.status("apis")}
        by_command = {api: {k: v for k, v in row.items() if k != "env"} for api, row in collector.rows().items()}
        assert by_page.keys() == by_command.keys() == {"iris", hostile}
        strip = [
            {api: {k: v for k, v in row.items() if k not in ages} for api, row in rows.items()}
            for rows in (by_page, by_command)
        ]
        assert {k for row in by_page.values() for k in row} == {k for row in by_command.values() for k in row}
        return strip[0] == strip[1]

    # The one may be asked just before a tick and the other just after it.
    until(both)
    [row] = [row for row in collector.status("apis?since=1h") if row["api"] == "iris"]
    assert row["responses"] == {"200": 3, "500": 1}
    assert row["avg_request_seconds"] == 0.25


@pytest.mark.parametrize("since", ["0s", "soon", "1h] or vector(1"])
def test_a_window_that_is_none_is_refused(collector: Collector, since: str) -> None:
    status, _, body = fetch(f"http://{collector.web}/api/v1/status/apis?since={quote(since)}")
    answer = json.loads(body)
    assert (status, answer["status"], answer["errorType"]) == (400, "error", "bad_data")
    assert answer["error"].startswith('invalid parameter "since": got ')


def test_many_at_once_get_the_same_rows(collector: Collector) -> None:
    send(collector, b"cortex_api_requests_total:3|c|#api_name:iris,api_id:v1,response_code:200")
    until(lambda: collector.status("apis"))
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda since: collector.status(f"apis?since={since}"), ["2w", "1d"] * 16))
    assert all([row["api"] for row in rows] == ["iris"] for rows in answers)
