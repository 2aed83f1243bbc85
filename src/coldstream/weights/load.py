"""The public API: tensors from a URI, for people who run their own model code. As torch's or as numpy's."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import numpy as np

from coldstream.errors import MissingExtra, SettingsError
from coldstream.timeline import Timeline
from coldstream.weights.arrays import as_array, numpy_dtype
from coldstream.weights.checkpoint.checkpoint import Checkpoint, open_checkpoint_async
from coldstream.weights.checkpoint.header import TensorInfo
from coldstream.weights.transfer.background import BackgroundIterator
from coldstream.weights.transfer.load_line import in_notebook
from coldstream.weights.transfer.progress import Progress
from coldstream.weights.transfer.stream import Landed, Select, StreamOptions, chosen, stream_groups, stream_ranges

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[Any]

_log = logging.getLogger(__name__)
Framework = Literal["torch", "numpy"]
Named: TypeAlias = tuple[str, Any]
_FLOAT_KINDS = "fV"
"""numpy's own, and ml_dtypes', which numpy knows as void."""


@overload
def iter_tensors(
    uri: str | Checkpoint,
    *,
    framework: Literal["torch"] = "torch",
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    select: Select | None = None,
    options: StreamOptions | None = None,
    progress: Callable[[Progress], None] | None = None,
    timeline: Timeline | None = None,
) -> Iterator[tuple[str, torch.Tensor]]: ...


@overload
def iter_tensors(
    uri: str | Checkpoint,
    *,
    framework: Literal["numpy"],
    device: Literal["cpu"] = "cpu",
    dtype: np.dtype[Any] | type[np.generic] | None = None,
    select: Select | None = None,
    options: StreamOptions | None = None,
    progress: Callable[[Progress], None] | None = None,
    timeline: Timeline | None = None,
) -> Iterator[tuple[str, Array]]: ...


def iter_tensors(
    uri: str | Checkpoint,
    *,
    framework: Framework = "torch",
    device: Any = "cpu",
    dtype: Any = None,
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
        framework: "torch" gives torch's tensors; "numpy" arrays, on the CPU, without torch: bfloat16 and the 8-bit
            floats have ml_dtypes' dtypes.
        device: "cpu" copies nothing; any other device gets each range as it lands, and the host's bytes are let go.
        dtype: floating-point tensors are converted to it; the framework's own.
        select: which tensors; `lambda info: "lora" in info.name`, or rows: `lambda info: info.rows(0, 128)`.
        progress: called with a `Progress` after each range, on the loading thread; None: in a notebook a line is drawn
            under the cell.

    Raises:
        MissingExtra: torch is not installed.
        SettingsError: numpy has no such device.
        StoreError, CheckpointError.
    """
    makes = _made_by(framework, device)
    report = Progress(on_change=progress or in_notebook())
    tensors = BackgroundIterator(
        _tensors(uri, makes, select, options, report, timeline or Timeline()), name="coldstream-load"
    )
    try:
        for group in tensors:
            group.reverse()
            while group:
                name, tensor = group.pop()
                yield name, makes.converted(tensor, dtype) if dtype is not None else tensor
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
    """All tensors of torch's by name, verified where the store knows a checksum; see `iter_tensors`.

    Raises:
        MissingExtra, StoreError, CheckpointError.
    """
    tensors = iter_tensors(
        uri, device=device, dtype=dtype, select=select, options=options, progress=progress, timeline=timeline
    )
    return dict(tensors)


class _Arrays:
    """numpy's."""

    device = None

    def check(self, info: TensorInfo) -> None:
        """Raises HeaderError for a dtype that there is not."""
        numpy_dtype(info)

    def of(self, landed: Landed) -> Any:
        return as_array(landed)

    def converted(self, array: Array, dtype: Any) -> Array:
        return array.astype(dtype) if array.dtype.kind in _FLOAT_KINDS else array


class _Tensors:
    """torch's; `device` None: the CPU."""

    def __init__(self, device: Any) -> None:
        try:
            import torch
        except ImportError as exc:
            raise MissingExtra(
                "torch's tensors need torch; run: pip install 'coldstream[torch]', "
                'or take iter_tensors(..., framework="numpy")'
            ) from exc
        found = torch.device(device)
        self.device = None if found.type == "cpu" else found

    def check(self, info: TensorInfo) -> None:
        """Raises HeaderError for a dtype that there is not."""
        from coldstream.weights.tensors import torch_dtype

        torch_dtype(info)

    def of(self, landed: Landed) -> Any:
        from coldstream.weights.tensors import as_tensor

        return as_tensor(landed)

    def converted(self, tensor: torch.Tensor, dtype: Any) -> torch.Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _made_by(framework: Framework, device: Any) -> _Arrays | _Tensors:
    if framework == "torch":
        return _Tensors(device)
    if framework != "numpy":
        raise SettingsError(f'iter_tensors: framework must be "torch" or "numpy", not {framework!r}')
    if str(device) != "cpu":
        raise SettingsError(f"iter_tensors: numpy's arrays are on the CPU; device {device} needs framework torch")
    return _Arrays()


async def _tensors(
    uri: str | Checkpoint,
    makes: _Arrays | _Tensors,
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
        makes.check(info)  # refused before the first byte is read
    if makes.device is None:
        groups = stream_groups(checkpoint, select=select, options=options, progress=progress, timeline=timeline)
        async with aclosing(groups):
            async for group in groups:
                # Handed over out of a list: a name here would keep the group while the caller has it.
                named = [[(landed.info.name, makes.of(landed)) for landed in group]]
                del group
                yield named.pop()
        return
    from coldstream.weights.device import DeviceCopier, empty

    copier = DeviceCopier(makes.device)
    for info in chosen(checkpoint, select):
        if not info.nbytes:
            yield [(info.name, empty(info, makes.device))]
    ranges = stream_ranges(checkpoint, select=select, options=options, progress=progress, timeline=timeline)
    async with aclosing(ranges):
        async for part in ranges:
            done = [list(copier.add(part))]
            del part
            yield done.pop()
