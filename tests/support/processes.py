"""A process's children, from /proc: a bare system has no ps."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path


def children(pid: int) -> list[int]:
    """Those of all its threads, zombies too; none of a process that is no more."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(child) for child in task.read_text().split()]
    return found


def state(pid: int) -> str:
    """One letter, as ps(1) has it; X of a process that is no more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def command(pid: int) -> str:
    """Its command line; empty of a process that is no more, and of a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def left(pids: Iterable[int], *, within: float = 10) -> list[int]:
    """Those that still run after so many seconds. A zombie does not: its new parent has not looked yet."""
    end = time.monotonic() + within
    while (running := [pid for pid in pids if state(pid) not in "ZX"]) and time.monotonic() < end:
        time.sleep(0.02)
    return running
