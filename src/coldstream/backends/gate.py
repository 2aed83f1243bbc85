"""A gate that opens once its tensors are there: the engine's thread waits, the loader's thread opens or fails it."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Gate:
    """Closed until `open`; after `fail`, every `wait` raises the error. Safe to use from any thread.

    `passed` is called by each `wait` that the gate lets through, on its thread.
    """

    def __init__(self, name: str, passed: Callable[[], object] | None = None) -> None:
        self.name = name
        self._passed = passed
        self._event = threading.Event()
        self._error: BaseException | None = None

    @property
    def is_open(self) -> bool:
        return self._event.is_set() and self._error is None

    def open(self) -> None:
        """Let everyone through, from now on."""
        self._event.set()

    def fail(self, error: BaseException) -> None:
        """Make every wait, present and future, raise `error`; also behind a gate that was open."""
        self._error = error
        self._event.set()

    def wait(self) -> None:
        """Return when the gate is open; raise the error that it was failed with."""
        self._event.wait()
        if self._error is not None:
            raise self._error
        if self._passed is not None:
            self._passed()
