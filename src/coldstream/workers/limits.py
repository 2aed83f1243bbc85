"""What work may cost, and how a process holds itself to that."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from coldstream.host.process import end_before_others, sizes

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
    end_before_others()


@contextmanager
def held_to(limits: Limits) -> Iterator[None]:
    """Beyond the time SIGPROF ends the process, in whatever it is; beyond the memory an allocation fails."""
    addresses, data = sizes()
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


@contextmanager
def _lowered(kind: int, wanted: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (wanted if soft == resource.RLIM_INFINITY else min(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))
