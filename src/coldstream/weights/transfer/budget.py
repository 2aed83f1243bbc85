"""Bytes in flight: asked for and not yet handed over. Never more than the limit, to the byte."""

from __future__ import annotations

import asyncio


class ByteBudget:
    """Used by one event loop."""

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"a budget needs at least one byte, not {limit}")
        self.limit = limit
        self.used = 0
        self.peak = 0
        self._released = asyncio.Event()

    def try_reserve(self, nbytes: int) -> bool:
        """Take `nbytes` if there is room for them now."""
        if self.used + nbytes > self.limit:
            return False
        self.used += nbytes
        self.peak = max(self.peak, self.used)
        return True

    async def reserve(self, nbytes: int) -> None:
        """Wait for room.

        Raises:
            ValueError: there can never be room.
        """
        if nbytes > self.limit:
            raise ValueError(f"{nbytes} bytes never fit into {self.limit}")
        while not self.try_reserve(nbytes):
            self._released.clear()
            await self._released.wait()

    def release(self, nbytes: int) -> None:
        """Give `nbytes` back."""
        self.used -= nbytes
        self._released.set()
