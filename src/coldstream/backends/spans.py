"""A batch laid out as one flat row of tokens, sequence behind sequence: what every backend makes of a step first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coldstream.backends.protocol import BlockTable, ImageRun, StepBatch, TokenRun


@dataclass(frozen=True, slots=True)
class SequenceSpan:
    """Tokens `start ... end - 1` of a sequence, at `row` of the step's flat row; its table in each group.

    `images` are the (start, end) of images among them, whose tokens see one another.
    """

    row: int
    start: int
    end: int
    tables: Sequence[BlockTable]
    images: Sequence[tuple[int, int]] = ()

    @property
    def count(self) -> int:
        """How many tokens of the step are the sequence's."""
        return self.end - self.start

    @property
    def seen_up_to(self) -> Sequence[int]:
        """One past the last position that each of its tokens sees: itself, or its image's end."""
        if not self.images:
            return range(self.start + 1, self.end + 1)
        ends = list(range(self.start + 1, self.end + 1))
        for start, end in self.images:
            first, last = max(start, self.start) - self.start, min(end, self.end) - self.start
            ends[first:last] = [min(end, self.end)] * (last - first)
        return ends


@dataclass(frozen=True, slots=True, eq=False)
class SeenImage:
    """Vectors of an image from `skipped` on (those before are in the cache), and the rows that they stand at."""

    rows: range
    image: ImageRun
    skipped: int


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """`ids` and `positions` of all tokens; `rows` are those whose logits are wanted, and `owned[i]` which of these
    belong to run i: a run that draws has its last token's, one that is scored has all of its tokens'."""

    spans: Sequence[SequenceSpan]
    ids: Sequence[int]
    positions: Sequence[int]
    rows: Sequence[int]
    owned: Sequence[range]
    images: Sequence[SeenImage]


def lay_out(batch: StepBatch) -> Layout:
    """The batch's runs, one behind the other."""
    spans: list[SequenceSpan] = []
    ids: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    owned: list[range] = []
    images: list[SeenImage] = []
    for run in batch.runs:
        flat = len(ids)
        spans.append(
            SequenceSpan(flat, run.start, run.end, run.tables, [(image.start, image.end) for image in run.images])
        )
        images += [_seen(image, run, flat) for image in run.images]
        ids += run.token_ids
        positions += range(run.start, run.end)
        wanted = _wanted(run, flat)
        owned.append(range(len(rows), len(rows) + len(wanted)))
        rows += wanted
    return Layout(spans, ids, positions, rows, owned, images)


def _seen(image: ImageRun, run: TokenRun, flat: int) -> SeenImage:
    """The part of an image that is not in the cache yet: to its end, since no run cuts one."""
    assert image.end <= run.end
    first = max(image.start, run.start)
    start = flat + first - run.start
    return SeenImage(range(start, start + image.end - first), image, first - image.start)


def _wanted(run: TokenRun, flat: int) -> range:
    end = flat + len(run.token_ids)
    return range(flat if run.scoring is not None else end - run.draws, end)
