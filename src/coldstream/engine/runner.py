"""A step of the scheduler -> logits: one flat tensor of tokens through the decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from coldstream.backends.torch.decoder import Embeds
from coldstream.engine.kv_cache import Attending, KvCache, Span
from coldstream.engine.kvcache.blocks import Blocks
from coldstream.engine.kvcache.pool import Table
from coldstream.engine.scheduler import Piece, Step
from coldstream.engine.transfer import int64
from coldstream.engine.vision.encoder import PlacedImage


class Decoding(Protocol):
    """The model, as the engine sees it; `attend(layer, q, k, v)` is the seam to the keys and values."""

    @property
    def attention_dtype(self) -> torch.dtype:
        """The dtype of q, k and v, in which keys and values are kept."""
        ...

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        attend: Callable[[int, Tensor, Tensor, Tensor], Tensor],
        rows: Tensor,
        *,
        embeds: Embeds | None = None,
    ) -> Tensor:
        """ids, positions int64 [tokens]; rows int64 [n] -> float32 logits [n, vocab]; `embeds` are images' vectors."""
        ...


class Abandoned(Exception):
    """The step was given up between two layers: everybody whose it was has left. No error."""


class Runner:
    """Runs steps. Not thread-safe: the engine's thread owns it."""

    def __init__(self, decoder: Decoding, cache: KvCache, blocks: Blocks) -> None:
        self._decoder = decoder
        self._cache = cache
        self._blocks = blocks

    def run(
        self, step: Step, *, every: Callable[[Piece], bool], is_wanted: Callable[[], bool]
    ) -> tuple[Tensor, list[tuple[Piece, slice]]]:
        """Logits float32 [n, vocab], and which of their rows belong to which piece.

        A piece that draws has its last token's row; one for which `every` is true has a row for each of its tokens.
        `is_wanted` is asked before each layer's attention: the layer may have waited long for its bytes.

        Raises:
            Abandoned: the step is not wanted any more; nothing of it counts.
        """
        self._cache.copy(step.copies)
        spans: list[Span] = []
        ids: list[int] = []
        positions: list[int] = []
        rows: list[int] = []
        owners: list[tuple[Piece, slice]] = []
        seen: list[_Seen] = []
        flat = 0
        for piece in step.pieces:
            sequence = piece.sequence
            images = _images_in(piece)
            tables = self._blocks.tables(sequence.key)
            spans.append(Span(flat, piece.start, piece.end, tables, tuple((item.start, item.end) for item in images)))
            seen += [_vectors(item, piece, flat) for item in images]
            ids += sequence.tokens[piece.start : piece.end]
            positions += range(piece.start, piece.end)
            wanted = _wanted(piece, flat, every)
            if wanted:
                owners.append((piece, slice(len(rows), len(rows) + len(wanted))))
                rows += wanted
            flat += piece.count
        placed = partial(int64, device=self._cache.device)
        forward = self._decoder.forward
        if seen:
            at = [row for item in seen for row in item.rows]
            forward = partial(forward, embeds=Embeds(placed(at), torch.cat([item.vectors for item in seen])))
        attend = _while_wanted(self._cache.attend(spans), is_wanted)
        return forward(placed(ids), placed(positions), attend, placed(rows)), owners

    def prove(self) -> Tensor:
        """Logits, float32 [1, vocab], of one token that is no request's. It is written to the first block of each
        group, which no sequence may hold."""
        zero = int64([0], self._cache.device)
        span = Span(0, 0, 1, tuple(Table(0, 0, [0]) for _ in self._cache.groups))
        return self._decoder.forward(zero, zero, self._cache.attend([span]), zero)


def _while_wanted(attend: Attending, is_wanted: Callable[[], bool]) -> Attending:
    def attending(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not is_wanted():
            raise Abandoned
        return attend(layer, q, k, v)

    return attending


def _images_in(piece: Piece) -> Sequence[PlacedImage]:
    return [item for item in piece.sequence.images if item.start < piece.end and piece.start < item.end]


class _Seen(NamedTuple):
    """Vectors of an image, on the device, and the rows of the step that they stand at."""

    rows: range
    vectors: Tensor


def _vectors(placed: PlacedImage, piece: Piece, flat: int) -> _Seen:
    """The part of an image that is not in the cache yet: to its end, since the scheduler cuts none."""
    assert placed.vectors is not None
    assert placed.end <= piece.end
    first = max(placed.start, piece.start)
    start = flat + first - piece.start
    return _Seen(range(start, start + placed.end - first), placed.vectors[first - placed.start :])


def _wanted(piece: Piece, flat: int, every: Callable[[Piece], bool]) -> Sequence[int]:
    if every(piece):
        return range(flat, flat + piece.count)
    return (flat + piece.count - 1,) if piece.draws else ()
