"""From a checkpoint into the tensor queue: its tensors, and behind the last one of a file that it is verified."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING

from coldstream.loading.tensor_queue import FileVerified, TensorQueue

if TYPE_CHECKING:
    from coldstream.timeline import Timeline
    from coldstream.weights.checkpoint.checkpoint import Checkpoint
    from coldstream.weights.checkpoint.header import TensorInfo
    from coldstream.weights.transfer.progress import Progress
    from coldstream.weights.transfer.stream import Pieces, StreamOptions


async def fetch_tensors(
    checkpoint: Checkpoint,
    tensors: TensorQueue,
    *,
    pieces: Pieces | None,
    options: StreamOptions,
    progress: Progress,
    timeline: Timeline,
    turn: Callable[[], Awaitable[None]],
) -> None:
    """Put every tensor into the queue and end it; after each, `turn` is awaited: another model may come first.

    Raises:
        StoreError: see `coldstream.weights.transfer.stream.stream`.
    """
    from coldstream.weights.transfer.stream import stream

    seen: set[TensorInfo] = set()
    redelivered: set[str] = set()
    verified: set[str] = set()

    def tell_verified(progress: Progress) -> None:
        for file in progress.settled - verified:
            verified.add(file)
            tensors.tell(FileVerified(file, redelivered=file in redelivered))

    progress.on_change = tell_verified
    arriving = stream(checkpoint, pieces=pieces, options=options, progress=progress, timeline=timeline)
    async with aclosing(arriving):
        async for landed in arriving:
            if landed.info in seen:
                redelivered.add(landed.info.file)
            seen.add(landed.info)
            await tensors.put(landed)
            del landed  # the queue has it; kept here, it would outlive its conversion
            await turn()
    tensors.end()
