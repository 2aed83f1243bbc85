"""What `Packing` and `Placing` share: workers that fill matrices, and what hears of those that are filled."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from coldstream.backends.cpu.crew import Crew


class MatrixFilling:
    """`failed` hears of an error on one of the `workers`."""

    def __init__(self, *, workers: int, failed: Callable[[BaseException], None]) -> None:
        self._crew = Crew(workers)
        self._failed = failed
        self._lock = threading.Lock()
        self._filled: list[tuple[str, str]] = []
        self._on_filled: Callable[[str, str], None] | None = None

    def when_filled(self, heard: Callable[[str, str], None]) -> None:
        """Call `heard(parameter, tensor)`, on any thread, for every parameter that is filled, or was before."""
        with self._lock:
            self._on_filled = heard
            filled = list(self._filled)
        for parameter, key in filled:
            heard(parameter, key)

    def settle(self) -> None:
        """Return when everything that was taken is in its place."""
        self._crew.settle()

    def end(self) -> None:
        """Return when everything that was taken is in its place, and the threads are gone."""
        self._crew.end()

    def stop(self) -> None:
        """Begin nothing more; does not wait."""
        self._crew.stop()

    def _count(self, is_filled: Callable[[], Iterable[tuple[str, str]]]) -> None:
        """Count what came, one thread at a time, and tell of the parameters that are filled with it."""
        with self._lock:
            filled = list(is_filled())
            self._filled += filled
            heard = self._on_filled
        if heard is not None:
            for parameter, key in filled:
                heard(parameter, key)
