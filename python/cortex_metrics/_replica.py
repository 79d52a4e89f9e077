"""Which replica this process belongs to: one server with all its workers.

Workers stem from one process: gunicorn forks them, uvicorn spawns them. All of them find that process, and from it the
same id. Where ``/proc`` does not tell (on macOS), each process is a replica of its own.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
import time
from pathlib import Path

_PROC = Path("/proc")


def this_replica() -> tuple[str, float]:
    """The id of the replica that this process belongs to, and when it started, in Unix seconds."""
    try:
        pid = _server(os.getpid())
        boot = (_PROC / "sys/kernel/random/boot_id").read_text()
        namespace = os.readlink("/proc/self/ns/pid")
        ticks = int(_stat(pid)[_START_TICKS])
        identity = f"{boot}{namespace} {pid} {ticks}".encode()
        booted = next(line for line in (_PROC / "stat").read_text().splitlines() if line.startswith("btime "))
        started = int(booted.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")
        return hashlib.blake2b(identity, digest_size=4).hexdigest(), started
    except (OSError, ValueError, LookupError, StopIteration):
        return secrets.token_hex(4), time.time()


# Of proc_pid_stat(5), counted from the state, its third field: what is before may have spaces in it.
_PARENT, _START_TICKS, _STACK = 1, 19, 25


def _stat(pid: int) -> list[str]:
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def _server(pid: int) -> int:
    """The process from which this one was spawned by multiprocessing, and that one forked."""
    process = sys.modules.get("multiprocessing.process")
    parent = process.parent_process() if process is not None else None
    if parent is not None and parent.pid is not None:
        pid = parent.pid
    while (parent_pid := int(_stat(pid)[_PARENT])) > 0 and _is_fork(pid, parent_pid):
        pid = parent_pid
    return pid


def _is_fork(pid: int, parent: int) -> bool:
    """Whether a process was forked from another and still runs the same program.

    A fork keeps the address of the stack, which each program gets at random; what runs for another user shows 0 there,
    but still its command line.
    """
    try:
        stack = _stat(pid)[_STACK]
        if stack != "0" and stack == _stat(parent)[_STACK]:
            return True
        command = (_PROC / str(pid) / "cmdline").read_bytes()
        return command != b"" and command == (_PROC / str(parent) / "cmdline").read_bytes()
    except (OSError, LookupError):
        return False
