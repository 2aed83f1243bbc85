"""Spans since exec: what the process did, when, on which thread. Standard library only; everybody may record.

Times are seconds since the process was started by the kernel, so the interpreter's own start is on the timeline too.
Recording is a list append and needs no lock under the GIL.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from coldstream.host.process import started


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took from `start` to `end`, in seconds since exec. An instant has `start == end`."""

    name: str
    start: float
    end: float
    thread: str
    details: dict[str, str | int | float] = field(default_factory=dict)


class Timeline:
    """An append-only record of spans; safe to use from any thread."""

    def __init__(self, origin: float | None = None) -> None:
        self.origin = started() if origin is None else origin
        self._spans: list[Span] = []

    def now(self) -> float:
        """Seconds since exec."""
        return time.monotonic() - self.origin

    def record(self, span: Span) -> None:
        """Add a span whose times are already known."""
        self._spans.append(span)

    def mark(self, name: str, **details: str | int | float) -> None:
        """Add an instant."""
        now = self.now()
        self.record(Span(name, now, now, threading.current_thread().name, details))

    @contextmanager
    def span(self, name: str, **details: str | int | float) -> Iterator[None]:
        """Time the body of a `with` block; it is recorded also when the body raises."""
        start = self.now()
        try:
            yield
        finally:
            self.record(Span(name, start, self.now(), threading.current_thread().name, details))

    def spans(self) -> tuple[Span, ...]:
        """Everything recorded so far, ordered by start."""
        return tuple(sorted(self._spans, key=lambda span: (span.start, span.end)))
