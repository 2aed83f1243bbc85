"""How many blocks of keys and values the memory buys."""

from __future__ import annotations

from collections.abc import Sequence

from coldstream.backends.protocol import Group
from coldstream.engine.kvcache.blocks import divide
from coldstream.errors import OutOfMemory
from coldstream.model.memory import BLOCK_SIZE


def affordable(
    budget: int,
    *,
    windows: Sequence[int | None],
    block_bytes: Sequence[int],
    sequences: int,
    context: int,
    step: int,
) -> tuple[Group, ...]:
    """As many blocks as `budget` bytes buy, but no more than all `sequences` together can ever use.

    A group has the layers of one of `windows`, and blocks of so many bytes. `context` is the most tokens of a sequence,
    `step` the most that it may have in one step.

    Raises:
        OutOfMemory: not even two blocks for one sequence.
    """
    for together in range(sequences, 0, -1):
        groups = divide(
            budget,
            block_bytes=block_bytes,
            windows=windows,
            size=BLOCK_SIZE,
            sequences=together,
            context=context,
            step=step,
        )
        if groups is not None:
            return groups
    raise OutOfMemory(
        f"keys and values may take {budget} bytes here, but two blocks of {BLOCK_SIZE} tokens, the least, take "
        f"{2 * sum(block_bytes)}; give the process more memory or raise engine.kv_bytes"
    )
