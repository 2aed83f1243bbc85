"""Where tensors wait between the stream's event loop and the thread that puts the model together.

The stream starts long before torch is imported. With a capacity it stops when that many bytes wait (they will be
converted and let go); without one it goes on (they are the model, and stay where they are).
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coldstream.weights.stream import Landed


class TensorQueue:
    """One writer on an event loop, one reader on a thread."""

    def __init__(self, capacity: int | None = None) -> None:
        self.capacity = capacity
        self._queue: queue.SimpleQueue[Landed | Callable[[], None] | BaseException | None] = queue.SimpleQueue()
        self._put_bytes = 0
        self._taken_bytes = 0
        self._room: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def waiting_bytes(self) -> int:
        """Bytes that have landed and were not taken yet."""
        return self._put_bytes - self._taken_bytes

    async def put(self, landed: Landed) -> None:
        """Leave a tensor here; waits for room first. One tensor may always wait, however large."""
        if self._loop is None:
            self._loop, self._room = asyncio.get_running_loop(), asyncio.Event()
        assert self._room is not None
        while self._is_full(len(landed.data)):
            self._room.clear()
            if self._is_full(len(landed.data)):  # the reader may have been faster
                await self._room.wait()
        self._put_bytes += len(landed.data)
        self._queue.put(landed)

    def _is_full(self, more: int) -> bool:
        return self.capacity is not None and self.waiting_bytes > 0 and self.waiting_bytes + more > self.capacity

    def then(self, work: Callable[[], None]) -> None:
        """Do something on the reader's thread, once it has taken all that was put here before."""
        self._queue.put(work)

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more will come: the load is whole and verified, or it failed with `error`."""
        self._queue.put(error)

    def __iter__(self) -> Iterator[Landed]:
        """Tensors as they land, until the end; raises the error that the load failed with."""
        while True:
            item = self._queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                return
            if callable(item):
                item()
                continue
            size = len(item.data)
            yield item
            del item
            self._taken_bytes += size
            self._make_room()

    def _make_room(self) -> None:
        if self._loop is None or self._room is None or self.capacity is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: the writer has nothing left to write
            self._loop.call_soon_threadsafe(self._room.set)
