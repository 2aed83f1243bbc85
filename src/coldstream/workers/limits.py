"""What work may cost, and how a process holds itself to that."""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_PAGE = resource.getpagesize()
_ADDRESSES = 256 * 1024 * 1024
"""Bytes of addresses beyond the memory: allocators reserve what they never touch."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`seconds` of the processor's time; `memory` bytes beyond what the process has; `output` bytes of answer."""

    seconds: float
    memory: int
    output: int


def give_up_first() -> None:
    """This process is killed before others where memory ends, and leaves no core."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # no such file in every sandbox
        Path("/proc/self/oom_score_adj").write_text("1000")


@contextmanager
def held_to(limits: Limits) -> Iterator[None]:
    """Beyond the time SIGPROF ends the process, in whatever it is; beyond the memory an allocation fails."""
    addresses, data = _sizes()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with (
        _lowered(resource.RLIMIT_DATA, data + limits.memory),
        _lowered(resource.RLIMIT_AS, addresses + limits.memory + _ADDRESSES),
    ):
        signal.setitimer(signal.ITIMER_PROF, limits.seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def _sizes() -> tuple[int, int]:
    """Bytes of addresses, and of private memory that can be written."""
    pages = Path("/proc/self/statm").read_text().split()
    return int(pages[0]) * _PAGE, int(pages[5]) * _PAGE


@contextmanager
def _lowered(kind: int, wanted: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (wanted if soft == resource.RLIM_INFINITY else min(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))
