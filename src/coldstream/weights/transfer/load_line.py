"""A load's progress as one line for people."""

from __future__ import annotations

from collections.abc import Callable

from coldstream.progress_line import ProgressLine, duration, is_notebook
from coldstream.weights.transfer.progress import Progress

_BAR = 24


def described(progress: Progress, phase: str) -> str:
    """How far it is: a bar, decimal megabytes, the rate, and what it is at."""
    share = min(max(progress.fraction, 0.0), 1.0)
    bar = "█" * round(share * _BAR)
    size = f"{progress.landed_bytes / 1e6:.1f} of {progress.total_bytes / 1e6:.1f} MB"
    return f"{bar:·<{_BAR}} {share:4.0%}  {size}  {progress.rate / 1e6:.0f} MB/s  {duration(progress.seconds)}  {phase}"


def in_notebook() -> Callable[[Progress], None] | None:
    """What draws a load's progress under a notebook's cell; None elsewhere, where a library says nothing unasked."""
    return LoadLine(ProgressLine(wanted=True)) if is_notebook() else None


class LoadLine:
    """Draws each change of a `Progress`; for its `on_change`."""

    def __init__(self, line: ProgressLine) -> None:
        self._line = line

    def __call__(self, progress: Progress) -> None:
        if progress.phase in ("done", "failed", "cancelled"):
            self._line.end(described(progress, progress.phase))
        else:
            self._line.show(lambda: described(progress, progress.phase))
