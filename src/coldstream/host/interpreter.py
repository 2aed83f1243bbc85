"""The interpreter of a server: threads that import, parse and write beside an event loop that has to answer."""

from __future__ import annotations

import gc
import sys
from types import TracebackType
from typing import Self

_TURN = 0.001
"""Seconds after which a thread that holds the interpreter is asked for it. Python's own 5 ms are long where another
thread imports, or reads a large body: the loop, and the engine after each of its calls, wait for it again and again."""


class StartingInterpreter:
    """Short turns until the context ends, and no garbage collection until `settle`; main thread only.

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
        self._collect()
        sys.setswitchinterval(self._turn)

    def settle(self) -> None:
        """What was made stays: a collection that looks through all of it stops every thread. Again does nothing."""
        if not self._is_settled:
            gc.freeze()
            self._collect()

    def _collect(self) -> None:
        self._is_settled = True
        gc.enable()
