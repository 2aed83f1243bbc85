"""A step of the scheduler -> logits: one flat tensor of tokens through the decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from coldstream.engine.blocks import Blocks
from coldstream.engine.kv_cache import KvCache, Span
from coldstream.engine.scheduler import Piece, Step


class Decoding(Protocol):
    """The model, as the engine sees it; `attend(layer, q, k, v)` is the seam to the keys and values."""

    @property
    def attention_dtype(self) -> torch.dtype:
        """The dtype of q, k and v, in which keys and values are kept."""
        ...

    def forward(
        self, ids: Tensor, positions: Tensor, attend: Callable[[int, Tensor, Tensor, Tensor], Tensor], rows: Tensor
    ) -> Tensor:
        """ids, positions int64 [tokens]; rows int64 [n] -> float32 logits [n, vocab]."""
        ...


class Runner:
    """Runs steps. Not thread-safe: the engine's thread owns it."""

    def __init__(self, decoder: Decoding, cache: KvCache, blocks: Blocks) -> None:
        self._decoder = decoder
        self._cache = cache
        self._blocks = blocks

    def run(self, step: Step, *, every: Callable[[Piece], bool]) -> tuple[Tensor, list[tuple[Piece, slice]]]:
        """Logits float32 [n, vocab], and which of their rows belong to which piece.

        A piece that draws has its last token's row; one for which `every` is true has a row for each of its tokens.
        """
        self._cache.copy(step.copies)
        spans: list[Span] = []
        ids: list[int] = []
        positions: list[int] = []
        rows: list[int] = []
        owners: list[tuple[Piece, slice]] = []
        flat = 0
        for piece in step.pieces:
            sequence = piece.sequence
            spans.append(Span(flat, piece.start, piece.end, self._blocks.table(sequence.key)))
            ids += sequence.tokens[piece.start : piece.end]
            positions += range(piece.start, piece.end)
            wanted = _wanted(piece, flat, every)
            if wanted:
                owners.append((piece, slice(len(rows), len(rows) + len(wanted))))
                rows += wanted
            flat += piece.count
        logits = self._decoder.forward(
            torch.tensor(ids), torch.tensor(positions), self._cache.attend(spans), torch.tensor(rows, dtype=torch.int64)
        )
        return logits, owners


def _wanted(piece: Piece, flat: int, every: Callable[[Piece], bool]) -> Sequence[int]:
    if every(piece):
        return range(flat, flat + piece.count)
    return (flat + piece.count - 1,) if piece.draws else ()
