"""What a model takes of memory beside its weights: one arithmetic for a plan and for the engine. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from coldstream.errors import OutOfMemory

BLOCK_SIZE = 32
"""Tokens of a block of keys and values."""

# Of a GPU's memory: libraries' own workspaces, and what lies in pieces.
_GPU_SPARE = 0.05
GRAPH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64)
"""Sequences of a decode step that a GPU has a recording for."""
_SCORED = 64
"""Tokens of a prompt that is scored, whose logits a step holds beside those that draw."""


class WorkspaceShape(Protocol):
    """What the memory of a step depends on."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...


def step_of(step_tokens: int, *, image: int, context: int) -> int:
    """The most tokens that a sequence has in a step; an image, of so many tokens, is computed in one piece."""
    return min(max(step_tokens, image), context)


def blocks_of_context(context: int, size: int = BLOCK_SIZE) -> int:
    """Of a sequence of so many tokens, in the layers that see all of it; one more is written while it grows."""
    return -(-context // size) + 1


def blocks_held(blocks: int, window: int | None, *, step: int, size: int = BLOCK_SIZE) -> int:
    """How many of its `blocks` a sequence holds at most in the layers of a window: that, and a step's."""
    return blocks if window is None else min(blocks, -(-(window + step) // size) + 2)


def sequence_bytes(context: int, *, windows: Sequence[int | None], block_bytes: Sequence[int], step: int) -> int:
    """Keys and values of one sequence; a block has so many bytes in the layers of each of the windows."""
    blocks = blocks_of_context(context)
    return sum(each * blocks_held(blocks, at, step=step) for at, each in zip(windows, block_bytes, strict=True))


def workspace_bytes(shape: WorkspaceShape, *, tokens: int, rows: int, item: int) -> int:
    """What a step holds at most: two hidden and three intermediate states of each token, in items of so many bytes,
    and float32 logits of `rows` (a prompt's that is scored has 64 more), twice."""
    states = tokens * (2 * shape.hidden_size + 3 * shape.intermediate_size) * item
    return states + 2 * (rows + _SCORED) * shape.vocab_size * 4


def graph_bytes(shape: WorkspaceShape, *, rows: int, item: int) -> int:
    """What recorded decode steps of at most `rows` sequences keep: they share their memory, but a larger one may find
    that of the smaller ones too small."""
    most = next((size for size in GRAPH_SIZES if size >= rows), GRAPH_SIZES[-1])
    states = most * (2 * shape.hidden_size + 3 * shape.intermediate_size) * item
    return 2 * (states + most * shape.vocab_size * 4)


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
