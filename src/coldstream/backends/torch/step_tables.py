"""A step's tables as GPU kernels read them: all of its numbers in one tensor, so that one copy brings them there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from coldstream.backends.spans import SequenceSpan

_ALIGNED = 4
"""Numbers: a kernel reads 16 bytes at once."""


@dataclass(frozen=True, slots=True)
class GroupTables:
    """Of the layers of one window: int32 slots `[rows]`, tiles `[tiles, 4]` and blocks. See `cuda.kernels`."""

    slots: Tensor
    tiles: Tensor
    blocks: Tensor


@dataclass(frozen=True, slots=True)
class StepTables:
    """int32 `positions` and `seen`, `[rows]`, and what each group of layers has of its own."""

    positions: Tensor
    seen: Tensor
    groups: tuple[GroupTables, ...]


@dataclass(frozen=True, slots=True)
class TableLayout:
    """Where everything lies in the one tensor: room for `rows` tokens, `tiles`, and so many blocks in each group."""

    rows: int
    tiles: int
    blocks: tuple[int, ...]

    @property
    def size(self) -> int:
        """Numbers in all."""
        return sum(_padded(length) for length in self._lengths())

    def view(self, packed: Tensor) -> StepTables:
        """The tables over int32 `[size]`, wherever it lies."""
        sections, start = [], 0
        for length in self._lengths():
            sections.append(packed[start : start + length])
            start += _padded(length)
        groups = (
            GroupTables(slots, tiles.view(-1, 4), blocks)
            for slots, tiles, blocks in zip(*(sections[first::3] for first in (2, 3, 4)), strict=True)
        )
        return StepTables(sections[0], sections[1], tuple(groups))

    def _lengths(self) -> Iterator[int]:
        yield from (self.rows, self.rows)
        for blocks in self.blocks:
            yield from (self.rows, 4 * self.tiles, blocks)


def layout_of(spans: Sequence[SequenceSpan], *, tile_tokens: int) -> TableLayout:
    """For exactly these."""
    groups = range(len(spans[0].tables))
    return TableLayout(
        rows=sum(span.count for span in spans),
        tiles=sum(-(-span.count // tile_tokens) for span in spans),
        blocks=tuple(sum(len(span.tables[group].blocks) for span in spans) for group in groups),
    )


def pack(spans: Sequence[SequenceSpan], layout: TableLayout, *, size: int, tile_tokens: int) -> Tensor:
    """The tables on the host, int32 `[layout.size]`; rows and tiles that are no span's store and compute nothing.

    `size` is a block's, `tile_tokens` the most tokens of a tile.
    """
    packed = torch.zeros(layout.size, dtype=torch.int32)
    tables = layout.view(packed)
    positions = [place for span in spans for place in range(span.start, span.end)]
    _fill(tables.positions, positions)
    _fill(tables.seen, [end for span in spans for end in span.seen_up_to])
    for group, own in enumerate(tables.groups):
        slots: list[int] = []
        tiles: list[int] = []
        blocks: list[int] = []
        for span in spans:
            table = span.tables[group]
            slots += [table.blocks[at // size - table.first] * size + at % size for at in range(span.start, span.end)]
            for row in range(0, span.count, tile_tokens):
                count = min(tile_tokens, span.count - row)
                tiles += [span.row + row, count, len(blocks), table.first]
            blocks += table.blocks
        own.slots.fill_(-1)
        _fill(own.slots, slots)
        _fill(own.tiles.view(-1), tiles)
        _fill(own.blocks, blocks)
    return packed


def most_parts(spans: Sequence[SequenceSpan], window: int | None, *, part: int) -> int:
    """The most parts of a span of one token, whose keys are read by several programs; 1 where there is none."""
    counts = [1]
    for span in spans:
        if span.count == 1:
            low = 0 if window is None else max(0, span.start + 1 - window)
            counts.append((span.end - 1) // part - low // part + 1)
    return max(counts)


def _fill(target: Tensor, values: Sequence[int]) -> None:
    target[: len(values)] = torch.tensor(values, dtype=torch.int32)


def _padded(length: int) -> int:
    return -(-length // _ALIGNED) * _ALIGNED
