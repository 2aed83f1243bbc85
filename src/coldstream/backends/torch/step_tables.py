"""A step's tables as GPU kernels read them: all of its numbers in one tensor, so that one copy brings them there."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from coldstream.backends.spans import SequenceSpan

_ALIGNED = 4
"""Numbers: a kernel reads 16 bytes at once."""


@dataclass(frozen=True, slots=True)
class GroupTables:
    """Of the layers of one window: int32 slots `[rows]` and tiles `[tiles, 4]`. See `cuda.kernels`."""

    slots: Tensor
    tiles: Tensor


@dataclass(frozen=True, slots=True)
class StepTables:
    """int32 `positions` and `seen`, `[rows]`, what each group of layers has of its own, and the blocks of all."""

    positions: Tensor
    seen: Tensor
    groups: tuple[GroupTables, ...]
    blocks: Tensor


@dataclass(frozen=True, slots=True)
class TableLayout:
    """Where everything lies in the one tensor: room for `rows` tokens, `tiles` in each of the groups, and `blocks`.

    The blocks are the last, so that a copy may end behind those that there are.
    """

    rows: int
    tiles: int
    groups: int
    blocks: int

    @property
    def size(self) -> int:
        """Numbers in all."""
        return self.before_blocks + self.blocks

    @property
    def before_blocks(self) -> int:
        """Numbers in front of the first block."""
        return sum(_padded(length) for length in self._lengths())

    def view(self, packed: Tensor) -> StepTables:
        """The tables over int32 `[size]`, or as much of it as there is, wherever it lies."""
        sections, start = [], 0
        for length in self._lengths():
            sections.append(packed[start : start + length])
            start += _padded(length)
        groups = zip(sections[2::2], sections[3::2], strict=True)
        own = tuple(GroupTables(slots, tiles.view(-1, 4)) for slots, tiles in groups)
        return StepTables(sections[0], sections[1], own, packed[start:])

    def _lengths(self) -> Iterator[int]:
        yield from (self.rows, self.rows)
        for _ in range(self.groups):
            yield from (self.rows, 4 * self.tiles)


def layout_of(spans: Sequence[SequenceSpan], *, tile_tokens: int) -> TableLayout:
    """For exactly these."""
    return TableLayout(
        rows=sum(span.count for span in spans),
        tiles=sum(-(-span.count // tile_tokens) for span in spans),
        groups=len(spans[0].tables),
        blocks=sum(len(table.blocks) for span in spans for table in span.tables),
    )


def pack(spans: Sequence[SequenceSpan], layout: TableLayout, *, size: int, tile_tokens: int) -> Tensor:
    """The tables on the host, int32 `[layout.size]`, or up to the last block that there is.

    Rows and tiles that are no span's store and compute nothing. `size` is a block's, `tile_tokens` the most tokens of
    a tile.
    """
    blocks: list[int] = []
    for group in range(layout.groups):
        for span in spans:
            blocks += span.tables[group].blocks
    packed = torch.zeros(layout.before_blocks + len(blocks), dtype=torch.int32)
    tables = layout.view(packed)
    positions = [place for span in spans for place in range(span.start, span.end)]
    _fill(tables.positions, positions)
    _fill(tables.seen, [end for span in spans for end in span.seen_up_to])
    _fill(tables.blocks, blocks)
    begin = 0
    for group, own in enumerate(tables.groups):
        slots: list[int] = []
        tiles: list[int] = []
        for span in spans:
            table = span.tables[group]
            slots += [table.blocks[at // size - table.first] * size + at % size for at in range(span.start, span.end)]
            for row in range(0, span.count, tile_tokens):
                count = min(tile_tokens, span.count - row)
                tiles += [span.row + row, count, begin, table.first]
            begin += len(table.blocks)
        own.slots.fill_(-1)
        _fill(own.slots, slots)
        _fill(own.tiles.view(-1), tiles)
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
    if values:
        # torch reads a list several times as slowly as an array does.
        target[: len(values)] = torch.frombuffer(array("i", values), dtype=torch.int32)


def _padded(length: int) -> int:
    return -(-length // _ALIGNED) * _ALIGNED
