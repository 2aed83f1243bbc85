"""How many blocks of keys and values the memory buys."""

from __future__ import annotations

import torch

from coldstream.engine.blocks import Group, divide
from coldstream.engine.kv_cache import AttentionConfig, bytes_per_block, windows
from coldstream.errors import OutOfMemory
from coldstream.host.limits import memory_available
from coldstream.settings import EngineSettings

BLOCK_SIZE = 32
"""Tokens of a block."""
# Of the memory that is free when the engine is made, keys and values may take so much, unless something else is said.
_MEMORY_SHARE = 0.4
_FALLBACK_KV_BYTES = 1 << 30


def affordable(
    config: AttentionConfig, settings: EngineSettings, dtype: torch.dtype, *, context: int, step: int
) -> tuple[Group, ...]:
    """As many blocks as the memory budget buys, but no more than all sequences together can ever use.

    `context` is the most tokens of a sequence, `step` the most that it may have in one step.

    Raises:
        OutOfMemory: not even two blocks for one sequence.
    """
    budget = settings.kv_bytes
    if budget is None:
        available = memory_available()
        budget = int(available * _MEMORY_SHARE) if available is not None else _FALLBACK_KV_BYTES
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
