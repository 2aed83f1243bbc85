"""Where tensors wait between the stream's event loop and the thread that takes them into the model.

The stream starts long before torch is imported. With a capacity it stops when that many bytes wait (they will be
converted and let go); without one it goes on (they are the model, and stay where they are).
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from coldstream.weights.transfer.stream import Landed


@dataclass(frozen=True, slots=True)
class FileVerified:
    """All tensors of a file were put before this, and are verified, or nothing is published to verify them with.

    `redelivered`: the file was damaged on the way and came again; what was computed with its first tensors is void.
    """

    file: str
    redelivered: bool


@dataclass(frozen=True, slots=True)
class ModelBuilt:
    """The decoder stands: what waited for it can be assigned, also while nothing else lands."""


Event: TypeAlias = FileVerified | ModelBuilt


class TensorQueue:
    """One writer of tensors on an event loop, one reader on a thread; events come in their place between tensors.

    `capacity`: bytes that may wait, None for no bound. One tensor may always wait, however large.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self._capacity = capacity
        self._queue: queue.SimpleQueue[Landed | Event | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._put_bytes = 0
        self._taken_bytes = 0
        self._room = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def waiting_bytes(self) -> int:
        """Bytes that were put and not taken yet."""
        return self._put_bytes - self._taken_bytes

    async def put(self, landed: Landed) -> None:
        """Leave a tensor here; waits for room first."""
        self._loop = asyncio.get_running_loop()
        while self._is_full(len(landed.data)):
            self._room.clear()
            if self._is_full(len(landed.data)):  # the reader may have been faster
                await self._room.wait()
        self._put_bytes += len(landed.data)
        self._queue.put(landed)

    def tell(self, event: Event) -> None:
        """Leave an event behind the tensors that were put; from any thread."""
        self._queue.put(event)

    def end(self) -> None:
        """Nothing more will come: every tensor was put, and is verified."""
        self._queue.put(None)

    def fail(self, error: BaseException) -> None:
        """The load failed: the reader raises the first such error instead of taking anything more. From any thread."""
        if self._error is None:
            self._error = error
        self._queue.put(None)

    def check(self) -> None:
        """Raise what the load failed with."""
        if self._error is not None:
            raise self._error

    def __iter__(self) -> Iterator[Landed | Event]:
        """Tensors and events as they come, until the end; raises the error that the load failed with."""
        while True:
            item = self._queue.get()
            self.check()
            if item is None:
                return
            size = 0 if isinstance(item, Event) else len(item.data)
            yield item
            del item  # kept here until the next one comes, it would hold its read's memory
            self._taken_bytes += size
            self._make_room()

    def _is_full(self, more: int) -> bool:
        return self._capacity is not None and self.waiting_bytes > 0 and self.waiting_bytes + more > self._capacity

    def _make_room(self) -> None:
        if self._loop is None or self._capacity is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: the writer has nothing left to write
            self._loop.call_soon_threadsafe(self._room.set)
