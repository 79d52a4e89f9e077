"""Names: looked up beside everything else, again and again, and followed when they move."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from support import Script, Tally, check_account, namespaces, until

CALLS = """
import time
from cortex_metrics import MetricsClient

client = MetricsClient(sys.argv[1], flush_interval=0.1)

def respond(line):
    if line == "threads":
        return len(os.listdir("/proc/self/task"))
    if line == "clients":
        for _ in range(200):
            other = MetricsClient(sys.argv[1])
            other.increment("others")
            del other
        return len(os.listdir("/proc/self/task"))
    for _ in range(int(line)):
        client.increment("calls")
    return client.stats()

answer(respond)
client.close()
print(json.dumps(client.stats()))
"""


def script(folder: Path, hosts: str, port: int) -> Script:
    before = namespaces(folder, {"hosts": hosts, "nsswitch.conf": "hosts: files\n"})
    return Script(CALLS.replace("sys.argv[1]", repr(f"udp://collector:{port}")), *before)


def at(address: str, port: int) -> Tally:
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((address, port))
    return Tally(server)


def test_a_name_is_followed_from_nowhere_to_one_address_and_to_the_next(tmp_path: Path) -> None:
    first = at("127.0.0.1", 0)
    port = first.socket.getsockname()[1]
    caller = script(tmp_path, "127.0.0.9 another\n", port)
    until(lambda: caller.ask("1")["payloads_refused"] > 0)
    stats = caller.ask("0")
    check_account(stats)
    assert (stats["sent"], stats["held"]) == (0, stats["called"])

    # The file keeps its inode: it is mounted in the script's namespace.
    (tmp_path / "hosts").write_text("127.0.0.1 collector\n")
    until(lambda: caller.ask("1")["sent"] > 0)
    first.close()
    second = at("127.0.0.2", port)
    (tmp_path / "hosts").write_text("127.0.0.2 collector\n")
    until(lambda: caller.ask("1") and second.counters["calls"] > 0)

    # Where it was known to be, it is still found when nobody knows the name any more.
    (tmp_path / "hosts").write_text("127.0.0.9 another\n")
    second.close()
    until(lambda: caller.ask("1")["held"] > 1)
    third = at("127.0.0.2", port)
    until(lambda: caller.ask("1") and third.counters["calls"] > 0)

    out, _ = caller.end()
    stats = json.loads(out)
    check_account(stats)
    assert (stats["sent"], stats["held"]) == (stats["called"], 0)
    third.close()
    assert sum(each.counters["calls"] for each in (first, second, third)) == stats["called"]
    payloads = first.payloads + second.payloads + third.payloads
    assert set(payloads.values()) == {1}


def test_a_name_with_two_addresses_finds_the_one_that_listens(tmp_path: Path) -> None:
    tally = at("127.0.0.1", 0)
    caller = script(tmp_path, "::1 collector\n127.0.0.1 collector\n", tally.socket.getsockname()[1])
    until(lambda: caller.ask("10")["sent"] > 0)
    out, complaints = caller.end()
    assert "does not take metrics" not in complaints
    tally.close()
    assert tally.counters["calls"] == json.loads(out)["called"]


def test_clients_that_are_gone_leave_no_threads(tmp_path: Path) -> None:
    tally = at("127.0.0.1", 0)
    caller = script(tmp_path, "127.0.0.1 collector\n", tally.socket.getsockname()[1])
    until(lambda: caller.ask("1")["sent"] > 0)
    before = caller.ask("threads")
    caller.ask("clients")
    until(lambda: caller.ask("threads") <= before)
    caller.end()
    tally.close()
    assert tally.counters["others"] == 200


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]"])
def test_addresses_of_both_kinds_are_urls(address: str) -> None:
    from cortex_metrics import MetricsClient

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.socket(family, socket.SOCK_DGRAM)
    try:
        server.bind((address.strip("[]"), 0))
    except OSError as error:
        server.close()
        pytest.skip(f"no {address} on this machine: {error}")
    tally = Tally(server)
    with MetricsClient(f"udp://{address}:{server.getsockname()[1]}") as client:
        client.increment("calls")
    tally.close()
    assert tally.counters["calls"] == 1


NO_ROUTE = """
import socket, subprocess
from cortex_metrics import MetricsClient

server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("0.0.0.0", 0))
server.setblocking(False)
client = MetricsClient(f"udp://10.1.2.3:{server.getsockname()[1]}", flush_interval=3600, telemetry=False)

def respond(change):
    subprocess.run(["ip", "address", change, "10.1.2.3/32", "dev", "lo"], check=True)
    for _ in range(3):
        client.increment("calls")
        client.flush()
    received = []
    try:
        while True:
            received.append(server.recv(2000).decode())
    except BlockingIOError:
        return {"received": received, "stats": client.stats()}

answer(respond)
client.close()
"""


def test_what_finds_no_way_is_held_and_takes_the_way_when_there_is_one_again(tmp_path: Path) -> None:
    caller = Script(NO_ROUTE, *namespaces(tmp_path, {}, net=True))
    assert caller.ask("add")["received"] == ["calls:1|c"] * 3
    away = caller.ask("del")
    assert away["received"] == []
    assert (away["stats"]["sent"], away["stats"]["held"]) == (3, 3)
    back = caller.ask("add")
    assert back["received"] == ["calls:4|c", "calls:1|c", "calls:1|c"]
    check_account(back["stats"])
    assert back["stats"]["sent"] == 9
    _, complaints = caller.end()
    assert "does not take metrics" in complaints
    assert "takes metrics again" in complaints
