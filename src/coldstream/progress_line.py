"""One line for people that is written over again and again, on a terminal and under a notebook's cell.

Both go back to a line's beginning at a carriage return, so that neither needs a library. Standard library only.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TextIO

_PAUSE = 0.1
"""Seconds between two drawings."""


def is_terminal(stream: TextIO) -> bool:
    """Whether a person looks at what is written there as it comes."""
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):  # replaced by something that is no file, or closed
        return False


def is_notebook() -> bool:
    """Whether this is a notebook's kernel, whose output has no terminal and is looked at all the same."""
    return "ipykernel" in sys.modules


class ProgressLine:
    """Writes to `stream`, None being the process's stderr as it is then; nothing, where it is not `wanted`.

    `wanted` None: where a person looks on, on a terminal or in a notebook. Used by one thread at a time.
    """

    def __init__(
        self,
        *,
        wanted: bool | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream or sys.stderr
        self.is_shown = (is_notebook() or is_terminal(self._stream)) if wanted is None else wanted
        self._clock = clock
        self._next = 0.0
        self._width = 0

    def show(self, text: Callable[[], str]) -> None:
        """Draw it, unless that was done a moment ago."""
        now = self._clock()
        if self.is_shown and now >= self._next:
            self._next = now + _PAUSE
            self._draw(text(), "")

    def end(self, text: str) -> None:
        """Draw it as the last state, and leave the line."""
        if self.is_shown:
            self._draw(text, "\n")
        self._next, self._width = 0.0, 0

    def _draw(self, text: str, end: str) -> None:
        self._stream.write(f"\r{text.ljust(self._width)}{end}")
        self._stream.flush()
        self._width = len(text)


def duration(seconds: float) -> str:
    """Minutes and seconds, hours where there are any: 0:07, 12:40, 1:02:03."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
