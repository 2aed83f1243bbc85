"""How many blocks of keys and values the memory buys."""

from __future__ import annotations

from typing import Protocol

import torch

from coldstream.engine.kv_cache import AttentionConfig, bytes_per_block, windows
from coldstream.engine.kvcache.blocks import Group, divide
from coldstream.errors import OutOfMemory
from coldstream.host.limits import memory_available
from coldstream.settings import EngineSettings

BLOCK_SIZE = 32
"""Tokens of a block."""
# Of the memory that is free when the engine is made, keys and values may take so much, unless something else is said.
_MEMORY_SHARE = 0.4
_FALLBACK_KV_BYTES = 1 << 30
# Of a GPU's memory: libraries' own workspaces, and what lies in pieces.
_GPU_SPARE = 0.05


class Shape(Protocol):
    """What the memory of a step depends on."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...


def kv_bytes(
    config: Shape, settings: EngineSettings, dtype: torch.dtype, device: torch.device, *, step: int, unallocated: int
) -> int:
    """Bytes for keys and values where the settings name none: of the host's memory, or of the GPU's.

    `step` is the most tokens of a step, `unallocated` the bytes that weights will yet take on the device.

    Raises:
        OutOfMemory: the GPU has no room beside the weights.
    """
    if device.type == "cpu":
        available = memory_available()
        return int(available * _MEMORY_SHARE) if available is not None else _FALLBACK_KV_BYTES
    workspace = workspace_bytes(config, tokens=step, rows=settings.max_sequences, item=dtype.itemsize)
    return beside_weights(*torch.cuda.mem_get_info(device), unallocated=unallocated, workspace=workspace)


def workspace_bytes(config: Shape, *, tokens: int, rows: int, item: int) -> int:
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


def affordable(
    config: AttentionConfig, settings: EngineSettings, dtype: torch.dtype, budget: int, *, context: int, step: int
) -> tuple[Group, ...]:
    """As many blocks as `budget` bytes buy, but no more than all sequences together can ever use.

    `context` is the most tokens of a sequence, `step` the most that it may have in one step.

    Raises:
        OutOfMemory: not even two blocks for one sequence.
    """
    each = bytes_per_block(config, BLOCK_SIZE, dtype)
    for sequences in range(settings.max_sequences, 0, -1):
        groups = divide(
            budget,
            block_bytes=each,
            windows=windows(config),
            size=BLOCK_SIZE,
            sequences=sequences,
            context=context,
            step=step,
        )
        if groups is not None:
            return groups
    raise OutOfMemory(
        f"keys and values may take {budget} bytes here, but two blocks of {BLOCK_SIZE} tokens, the least, take "
        f"{2 * sum(each)}; give the process more memory or raise engine.kv_bytes"
    )
