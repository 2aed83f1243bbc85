"""The public API: tensors from a URI, for people who run their own model code. Imports torch."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing

import torch

from coldstream.timeline import Timeline
from coldstream.weights.checkpoint.checkpoint import Checkpoint, open_checkpoint_async
from coldstream.weights.device import DeviceCopier
from coldstream.weights.tensors import as_tensor, torch_dtype
from coldstream.weights.transfer.background import BackgroundIterator
from coldstream.weights.transfer.progress import Progress
from coldstream.weights.transfer.stream import Select, StreamOptions, chosen, stream_groups, stream_ranges

_log = logging.getLogger(__name__)
Named = tuple[str, torch.Tensor]


def iter_tensors(
    uri: str | Checkpoint,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    select: Select | None = None,
    options: StreamOptions | None = None,
    progress: Callable[[Progress], None] | None = None,
    timeline: Timeline | None = None,
) -> Iterator[Named]:
    """Names and tensors, about in execution order, as they land; more land while the caller computes.

    On the CPU a tensor is a view of what was received, not to be written to, and alive as long as any tensor of its
    range. Verified only when the iterator has ended without an error; a tensor whose file was damaged on the way comes
    a second time, and the later one counts.

    Args:
        uri: the checkpoint's folder, or a checkpoint that is open already.
        device: "cpu" copies nothing; any other device gets each range as it lands, and the host's bytes are let go.
        dtype: floating-point tensors are converted to it.
        select: which tensors; `lambda info: "lora" in info.name`, or rows: `lambda info: info.rows(0, 128)`.
        progress: called with a `Progress` after each range, on the loading thread.

    Raises:
        StoreError, CheckpointError.
    """
    report = Progress(on_change=progress)
    tensors = BackgroundIterator(
        _tensors(uri, torch.device(device), select, options, report, timeline or Timeline()), name="coldstream-load"
    )
    try:
        for group in tensors:
            group.reverse()
            while group:
                name, tensor = group.pop()
                yield name, tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
                del tensor
    finally:
        tensors.close()


def load_state_dict(
    uri: str | Checkpoint,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    select: Select | None = None,
    options: StreamOptions | None = None,
    progress: Callable[[Progress], None] | None = None,
    timeline: Timeline | None = None,
) -> dict[str, torch.Tensor]:
    """All tensors by name, verified where the store knows a checksum; see `iter_tensors`.

    Raises:
        StoreError, CheckpointError.
    """
    tensors = iter_tensors(
        uri, device=device, dtype=dtype, select=select, options=options, progress=progress, timeline=timeline
    )
    return dict(tensors)


async def _tensors(
    uri: str | Checkpoint,
    device: torch.device,
    select: Select | None,
    options: StreamOptions | None,
    progress: Progress,
    timeline: Timeline,
) -> AsyncGenerator[list[Named], None]:
    """In groups, because each has to wake another thread."""
    if isinstance(uri, Checkpoint):
        checkpoint = uri
    else:
        checkpoint = await open_checkpoint_async(uri, progress=progress, timeline=timeline)
    for warning in checkpoint.warnings:
        _log.warning("%s", warning)
    for info in chosen(checkpoint, select):
        torch_dtype(info)  # refused before the first byte is read
    if device.type == "cpu":
        groups = stream_groups(checkpoint, select=select, options=options, progress=progress, timeline=timeline)
        async with aclosing(groups):
            async for group in groups:
                # Handed over out of a list: a name here would keep the group while the caller has it.
                named = [[(landed.info.name, as_tensor(landed)) for landed in group]]
                del group
                yield named.pop()
        return
    copier = DeviceCopier(device)
    for info in chosen(checkpoint, select):
        if not info.nbytes:
            yield [(info.name, torch.empty(info.shape, dtype=torch_dtype(info), device=device))]
    ranges = stream_ranges(checkpoint, select=select, options=options, progress=progress, timeline=timeline)
    async with aclosing(ranges):
        async for part in ranges:
            done = [list(copier.add(part))]
            del part
            yield done.pop()
