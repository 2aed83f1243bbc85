"""What a load is doing, readable from any thread at any moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Phase = Literal["waiting", "listing", "headers", "streaming", "verifying", "done", "failed", "cancelled"]


@dataclass(slots=True)
class Counters:
    """What happened to the requests of a load.

    `wasted_bytes` arrived and were thrown away; what came of a read that broke before its one buffer was handed over is
    not known, and not among them.
    """

    requests: int = 0
    retries: int = 0
    resumes: int = 0
    stalls: int = 0
    hedges: int = 0
    hedged_bytes: int = 0
    throttles: int = 0
    refetches: int = 0
    wasted_bytes: int = 0


@dataclass(slots=True)
class Progress:
    """Bytes that landed of the bytes to read. Written by the stream only, each field in one assignment.

    `verified` and `unverified_files` are names, of files that arrived whole: their checksum was right, or none was
    published. A name is added once all of its file's tensors have been handed to the stream's consumer.

    `on_change`, when given, is called with this object after each range and each file, on the stream's thread; it must
    be quick.
    """

    total_bytes: int = 0
    landed_bytes: int = 0
    phase: Phase = "waiting"
    started: float | None = None
    finished: float | None = None
    counters: Counters = field(default_factory=Counters)
    verified: tuple[str, ...] = ()
    unverified_files: tuple[str, ...] = ()
    on_change: Callable[[Progress], None] | None = None

    @property
    def verified_files(self) -> int:
        """How many files were verified."""
        return len(self.verified)

    @property
    def settled(self) -> frozenset[str]:
        """The files of which nothing more will come."""
        return frozenset(self.verified + self.unverified_files)

    @property
    def seconds(self) -> float:
        """Since streaming began; stands still when it is over."""
        if self.started is None:
            return 0.0
        return (self.finished if self.finished is not None else time.monotonic()) - self.started

    @property
    def rate(self) -> float:
        """Bytes a second since streaming began."""
        seconds = self.seconds
        return self.landed_bytes / seconds if seconds > 0 else 0.0

    @property
    def fraction(self) -> float:
        """0 to 1."""
        return self.landed_bytes / self.total_bytes if self.total_bytes else float(self.phase == "done")

    def enter(self, phase: Phase) -> None:
        """Move on to a phase."""
        self.phase = phase
        if phase == "streaming" and self.started is None:
            self.started = time.monotonic()
        if phase in ("done", "failed", "cancelled"):
            self.finished = time.monotonic()
        self.notify()

    def landed(self, count: int) -> None:
        """`count` more bytes are here (fewer, when an object is fetched again)."""
        self.landed_bytes += count
        self.notify()

    def notify(self) -> None:
        """Tell the callback, if there is one."""
        if self.on_change is not None:
            self.on_change(self)
