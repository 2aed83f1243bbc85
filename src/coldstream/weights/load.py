"""The public API: tensors from a URI, for people who run their own model code. Imports torch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator

import torch

from coldstream.weights.checkpoint import open_checkpoint_async
from coldstream.weights.progress import Progress
from coldstream.weights.stream import Select, StreamOptions, stream
from coldstream.weights.tensors import as_tensor


def iter_tensors(
    uri: str,
    *,
    select: Select | None = None,
    options: StreamOptions | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors, about in execution order, as they land; the CPU tensors are views of what was received.

    Verified only when the iterator has ended without an error. Must not be called inside an event loop.

    Raises:
        StoreError, CheckpointError.
    """
    report = Progress(on_change=progress)
    with asyncio.Runner() as runner:
        tensors = _tensors(uri, select, options, report)
        try:
            while (item := runner.run(_next(tensors))) is not None:
                yield item
        finally:
            runner.run(tensors.aclose())


def load_state_dict(
    uri: str,
    *,
    select: Select | None = None,
    options: StreamOptions | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, torch.Tensor]:
    """All tensors by name; see `iter_tensors`. Everything in it is verified, where the store knows a checksum."""
    return dict(iter_tensors(uri, select=select, options=options, progress=progress))


async def _tensors(
    uri: str, select: Select | None, options: StreamOptions | None, progress: Progress
) -> AsyncGenerator[tuple[str, torch.Tensor], None]:
    checkpoint = await open_checkpoint_async(uri, progress=progress)
    async for landed in stream(checkpoint, select=select, options=options, progress=progress):
        yield landed.info.name, as_tensor(landed)


async def _next(tensors: AsyncGenerator[tuple[str, torch.Tensor], None]) -> tuple[str, torch.Tensor] | None:
    return await anext(tensors, None)
