"""What is to be closed with a model, also where it comes to be after the load was given up."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Closing:
    """Closers, called once each, the last one first. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closers: list[Callable[[], None]] = []
        self._is_closed = False

    def add(self, close: Callable[[], None]) -> None:
        """Call it when `close` is called; at once, if that was before."""
        with self._lock:
            if not self._is_closed:
                self._closers.append(close)
                return
        close()

    def close(self) -> None:
        """Close everything that is here, and everything that comes."""
        with self._lock:
            self._is_closed = True
            closers, self._closers = self._closers, []
        for close in reversed(closers):
            close()
