"""transformers' pipelines around a streamed model. Needs the `transformers` extra."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, get_args

from coldstream.errors import SettingsError
from coldstream.weights.checkpoint.checkpoint import Checkpoint, open_checkpoint
from coldstream.weights.preprocessing import processor, tokenizer, transformers_with_torch
from coldstream.weights.pretrained import from_pretrained
from coldstream.weights.transfer.progress import Progress
from coldstream.weights.transfer.stream import StreamOptions

if TYPE_CHECKING:
    import torch
    from transformers import Pipeline

PipelineTask = Literal["text-generation", "image-text-to-text"]


def pipeline(
    task: PipelineTask,
    uri: str | Checkpoint,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    options: StreamOptions | None = None,
    progress: Callable[[Progress], None] | None = None,
    **kwargs: Any,
) -> Pipeline:
    """`transformers.pipeline` with the model, and what reads its inputs, of one and the same version of the checkpoint.

    Args:
        uri: the checkpoint's folder, or a checkpoint that is open already.
        device, dtype, options, progress: as of `from_pretrained`.
        kwargs: handed to `transformers.pipeline`.

    Raises:
        SettingsError: the task is none of those that a checkpoint is loaded for here.
        MissingExtra, ModelError, StoreError, CheckpointError: as `from_pretrained` and `tokenizer`.
    """
    if task not in get_args(PipelineTask):
        raise SettingsError(f"pipeline: {task!r} is no task here; known: {', '.join(get_args(PipelineTask))}")
    library = transformers_with_torch("coldstream.pipeline")
    checkpoint = uri if isinstance(uri, Checkpoint) else open_checkpoint(uri)
    reads: dict[str, Any] = {"tokenizer": tokenizer(checkpoint)}
    if task == "image-text-to-text":
        reads["processor"] = processor(checkpoint)
    model = from_pretrained(checkpoint, device=device, dtype=dtype, options=options, progress=progress)
    made: Pipeline = library.pipeline(task, model=model, **reads, **kwargs)
    return made
