"""Whose tensors come next, where several models load over one wire."""

from __future__ import annotations

import asyncio
import contextlib

from coldstream.loading.state import LoadState


class Turns:
    """First the tensors of a model that a request waits for, else those of the model that entered first.

    Small files and headers are not ordered; only tensors are, one at a time, so a change of mind costs no more than
    what is in flight, and a model that waits has its first ranges in flight already. For one event loop.
    """

    def __init__(self) -> None:
        self._loads: list[LoadState] = []
        self._changed = asyncio.Event()

    def enter(self, load: LoadState) -> None:
        """From now on it has bytes to come. On the event loop."""
        loop = asyncio.get_running_loop()

        def change() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: every load has ended
                loop.call_soon_threadsafe(self._changed.set)

        self._loads.append(load)
        load.when_wanted(change)

    def leave(self, load: LoadState) -> None:
        """All its bytes are here, or it has failed; again does nothing."""
        if load in self._loads:
            self._loads.remove(load)
            self._changed.set()

    async def come(self, load: LoadState) -> None:
        """Return when it is this model's turn, which has entered."""
        while self._first() is not load:
            self._changed.clear()
            await self._changed.wait()

    def _first(self) -> LoadState:
        return next((load for load in self._loads if load.is_wanted), self._loads[0])
