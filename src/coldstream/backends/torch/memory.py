"""Memory for keys and values: a part of the host's, or what a GPU has beside the weights and a step."""

from __future__ import annotations

from typing import Protocol

import torch

from coldstream.backends.host_memory import host_kv_bytes
from coldstream.errors import OutOfMemory

# Of a GPU's memory: libraries' own workspaces, and what lies in pieces.
_GPU_SPARE = 0.05


class WorkspaceShape(Protocol):
    """What the memory of a step depends on."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...


def kv_bytes(
    config: WorkspaceShape, dtype: torch.dtype, device: torch.device, *, step_tokens: int, rows: int, unallocated: int
) -> int:
    """Bytes for keys and values where the settings name none: of the host's memory, or of the GPU's.

    A step has at most `step_tokens` tokens and `rows` sequences; weights will yet take `unallocated` bytes there.

    Raises:
        OutOfMemory: the GPU has no room beside the weights.
    """
    if device.type == "cpu":
        return host_kv_bytes()
    workspace = workspace_bytes(config, tokens=step_tokens, rows=rows, item=dtype.itemsize)
    return beside_weights(*torch.cuda.mem_get_info(device), unallocated=unallocated, workspace=workspace)


def workspace_bytes(config: WorkspaceShape, *, tokens: int, rows: int, item: int) -> int:
    """What a step holds at most: two hidden and three intermediate states of each token, in items of so many bytes,
    and float32 logits of `rows` (a prompt's that is scored has 64 more), twice."""
    return (
        tokens * (2 * config.hidden_size + 3 * config.intermediate_size) * item
        + 2 * (rows + 64) * config.vocab_size * 4
    )


def beside_weights(free: int, total: int, *, unallocated: int, workspace: int) -> int:
    """What a GPU has left for keys and values, in bytes.

    Raises:
        OutOfMemory: nothing; with the numbers.
    """
    spare = int(total * _GPU_SPARE)
    left = free - unallocated - workspace - spare
    if left > 0:
        return left
    raise OutOfMemory(
        f"no room for keys and values: {free / 1e9:.2f} of the GPU's {total / 1e9:.2f} GB are free, weights will take "
        f"{unallocated / 1e9:.2f} of them, a step {workspace / 1e9:.2f}, and {spare / 1e9:.2f} are left to CUDA; take "
        "a smaller model, or lower engine.step_tokens or engine.max_sequences"
    )
