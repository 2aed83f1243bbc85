"""The interpreter while a server starts: threads that import beside an event loop that has to answer."""

from __future__ import annotations

import gc
import sys
from types import TracebackType
from typing import Self

_TURN = 0.001
"""Seconds after which a thread that holds the interpreter is asked for it. Python's own 5 ms are long where two threads
import: the loop waits for whichever of them is next, several times for one answer."""


class StartingInterpreter:
    """Short turns and no garbage collection until `settle`, or until the context ends; main thread only.

    Imports make a quarter of a million objects, all to stay, and to look through them again and again takes a seventh
    of their time.
    """

    def __init__(self) -> None:
        self._turn = sys.getswitchinterval()
        self._is_settled = False

    def __enter__(self) -> Self:
        gc.disable()
        sys.setswitchinterval(_TURN)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._restore()

    def settle(self) -> None:
        """What was made stays: a collection that looks through all of it stops every thread. Again does nothing."""
        if not self._is_settled:
            gc.freeze()
            self._restore()

    def _restore(self) -> None:
        self._is_settled = True
        gc.enable()
        sys.setswitchinterval(self._turn)
