"""Landed bytes into a GPU's memory through a ring of page-locked buffers, beside what the GPU computes meanwhile.

The loader's thread writes one buffer while the GPU copies out of the others, on a stream of its own; it waits where all
are still read. A step that needs the bytes is queued behind the copies (`join`, through a layer's gate), so that the
host waits for none of them. What the ring takes of the host is the same for every model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

SLOT = 16 << 20
"""Bytes of a buffer."""
SLOTS = 8


class CopyQueue(Protocol):
    """A device's own order of copies, beside the order of its steps."""

    def buffer(self, size: int) -> Tensor:
        """uint8 `[size]` that the device reads without the host."""
        ...

    def scope(self) -> AbstractContextManager[object]:
        """What is queued within comes behind the copies, in their order."""
        ...

    def copy(self, target: Tensor, staged: Tensor) -> None:
        """Queue a copy."""
        ...

    def mark(self) -> Callable[[], object]:
        """What waits until all that was queued until now is done."""
        ...

    def join(self) -> None:
        """What the calling thread queues from now on comes behind all copies that were queued."""
        ...


class CudaCopies:
    """On a CUDA stream; what was queued when it is made comes first."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(device))

    def buffer(self, size: int) -> Tensor:
        """See `CopyQueue.buffer`."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def scope(self) -> AbstractContextManager[object]:
        """See `CopyQueue.scope`."""
        return torch.cuda.stream(self._stream)

    def copy(self, target: Tensor, staged: Tensor) -> None:
        """See `CopyQueue.copy`."""
        with self.scope():
            target.copy_(staged, non_blocking=True)

    def mark(self) -> Callable[[], object]:
        """See `CopyQueue.mark`."""
        synchronize: Callable[[], object] = self._stream.record_event().synchronize
        return synchronize

    def join(self) -> None:
        """See `CopyQueue.join`."""
        torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)


class Staging:
    """`target.copy_(source)` for targets on a GPU. One thread copies, the loader's; any may `join`.

    `queue` makes the device's order of copies, when the first one comes.
    """

    def __init__(self, queue: Callable[[], CopyQueue], *, size: int = SLOT, slots: int = SLOTS) -> None:
        self._make, self._size, self._slots = queue, size, slots
        self._queue: CopyQueue | None = None
        self._is_open = False
        self._read: deque[tuple[Tensor, Callable[[], object]]] = deque()

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Fill the target, contiguous, with a source of its shape and any dtype, which may be let go on return.

        Converted on the way: a whole tensor is never held on the host twice.
        """
        queue, into, out_of = self._opened(), target.view(-1), source.reshape(-1)
        step = self._size // target.itemsize
        for start in range(0, into.numel(), step):
            slot, piece = self._slot(queue), into[start : start + step]
            staged = slot.view(target.dtype)[: piece.numel()]
            staged.copy_(out_of[start : start + step])
            queue.copy(piece, staged)
            self._read.append((slot, queue.mark()))

    def scope(self) -> AbstractContextManager[object]:
        """What is queued within comes behind what was copied, and `join` comes behind it."""
        return self._opened().scope()

    def join(self) -> None:
        """What the calling thread queues from now on finds the targets filled."""
        queue = self._queue
        if self._is_open and queue is not None:
            queue.join()

    def end(self) -> None:
        """Wait for all of it, and give the buffers back; a later copy takes them anew."""
        if self._queue is not None:
            self._queue.mark()()
        self._is_open = False
        self._read.clear()

    def _opened(self) -> CopyQueue:
        if self._queue is None:
            self._queue = self._make()
        self._is_open = True
        return self._queue

    def _slot(self, queue: CopyQueue) -> Tensor:
        """A buffer that nothing reads: a new one, or the one that has been read for the longest."""
        if len(self._read) < self._slots:
            return queue.buffer(self._size)
        slot, wait = self._read.popleft()
        wait()
        return slot
