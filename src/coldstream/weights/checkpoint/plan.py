"""TensorInfo + execution order -> ReadPlan: which byte ranges to ask for, and when. Pure.

Tensors are fetched in the order in which they execute. A read is a run of whole tensors that lie side by side in one
file; only a tensor that is larger than a part is cut, so that several connections carry it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat

from coldstream.weights.checkpoint.header import TensorInfo

MIB = 1024 * 1024
PART_SIZE = 32 * MIB
# The last share of the bytes is read in smaller parts, so that no connection is left alone with a large one.
TAIL_SHARE = 0.12
TAIL_CUT = 4
# The first reads are of growing size: begun together and alike, they would end together, and wait for their first bytes
# together, again and again.
RAMP = 16
# Below this, the time to the first byte costs more than the bytes.
SMALLEST_PART = 2 * MIB

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|layer)\.(\d+)\.")
_VISION = re.compile(r"(?:^|\.)(?:vision_tower|vision_model|visual|audio_tower|multi_modal_projector|embed_vision)\.")
_EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed_tokens|embed_tokens_per_layer|wte|wpe|word_embeddings|tok_embeddings|embed_in)\."
)
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output|score|classifier)\.[^.]+$")
_DIGITS = re.compile(r"(\d+)")

Rank = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Read:
    """One request: bytes `start` to `end` (exclusive) of `file`.

    Either all of `tensors` lie whole in it, side by side, or it is a cut of the single tensor in `tensors`.
    """

    file: str
    start: int
    end: int
    tensors: tuple[TensorInfo, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.end - self.start

    @property
    def whole(self) -> bool:
        """Whether no tensor is cut."""
        return self.start <= self.tensors[0].start and self.tensors[-1].end <= self.end


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """Reads in the order of issue; every byte of every chosen tensor is in exactly one of them.

    Empty tensors need no read: `empty` names them.
    """

    reads: tuple[Read, ...]
    empty: tuple[TensorInfo, ...]
    part_size: int

    @property
    def total_bytes(self) -> int:
        """Bytes that will be read."""
        return sum(read.nbytes for read in self.reads)


def rank(name: str) -> Rank:
    """When a tensor is needed: embedding, then layer by layer, final norm, head; vision tower and projector last.

    A text prompt does not need the tower, so it may land while the first tokens are being computed.
    """
    layer = _LAYER.search(name)
    if _VISION.search(name):
        return (4, int(layer[1]) if layer else -1)
    if layer:
        return (1, int(layer[1]))
    if _EMBEDDING.search(name):
        return (0, 0)
    return (3, 0) if _HEAD.search(name) else (2, 0)


def execution_order(names: Iterable[str]) -> list[str]:
    """Tensor names in the order in which a decoder runs through them; numbers count as numbers (2 before 10)."""
    return sorted(names, key=lambda name: (rank(name), _natural(name)))


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in _DIGITS.split(name)]


def plan(tensors: Iterable[TensorInfo], *, part_size: int = PART_SIZE, max_read: int | None = None) -> ReadPlan:
    """Cut the tensors into reads of about `part_size` bytes, none larger than `max_read`, in execution order.

    Within a layer the order is that of the file, because neighbours make one read. A single tensor of up to
    `part_size` stays whole, unless `max_read` forbids it.
    """
    if part_size < 1 or (max_read is not None and max_read < 1):
        raise ValueError(f"part_size and max_read must be at least 1, not {part_size} and {max_read}")
    ordered = sorted(tensors, key=lambda info: (rank(info.name), info.file, info.start, info.end))
    filled = [info for info in ordered if info.nbytes]
    head, tail = _split_tail(filled, TAIL_SHARE * sum(info.nbytes for info in filled))
    small = max(part_size // TAIL_CUT, min(part_size, SMALLEST_PART))
    reads = (
        *_reads(head, _sizes(part_size), min(part_size, max_read or part_size)),
        *_reads(tail, repeat(small), min(small, max_read or small)),
    )
    return ReadPlan(reads, tuple(info for info in ordered if not info.nbytes), part_size)


def _split_tail(tensors: list[TensorInfo], tail_bytes: float) -> tuple[list[TensorInfo], list[TensorInfo]]:
    """The last tensors that together take about so many bytes, apart; never the greater part of a small model."""
    count = len(tensors)
    taken = 0
    while count and taken + tensors[count - 1].nbytes <= tail_bytes:
        count -= 1
        taken += tensors[count].nbytes
    return tensors[:count], tensors[count:]


def _reads(tensors: list[TensorInfo], sizes: Iterator[int], limit: int) -> Iterator[Read]:
    """Runs of neighbours up to the next of `sizes`; single tensors uncut up to `limit`; nothing larger than that."""
    wanted = (min(size, limit) for size in sizes)
    for run, size in _runs(tensors, wanted):
        yield from _cut(run, size, wanted, limit)


def _sizes(part_size: int) -> Iterator[int]:
    smallest = min(part_size, SMALLEST_PART)
    return chain((max(part_size * step // RAMP, smallest) for step in range(1, RAMP)), repeat(part_size))


def _runs(tensors: list[TensorInfo], sizes: Iterator[int]) -> Iterator[tuple[list[TensorInfo], int]]:
    """Neighbours in a file, together no larger than the size that goes with them."""
    run: list[TensorInfo] = []
    size = 0
    for info in tensors:
        fits = run and run[-1].file == info.file and run[-1].end == info.start and info.end - run[0].start <= size
        if run and not fits:
            yield run, size
            run = []
        if not run:
            size = next(sizes)
        run.append(info)
    if run:
        yield run, size


def _cut(run: list[TensorInfo], size: int, sizes: Iterator[int], limit: int) -> Iterator[Read]:
    first, last = run[0], run[-1]
    if last.end - first.start <= limit:
        yield Read(first.file, first.start, last.end, tuple(run))
        return
    position = first.start
    while position < last.end:
        # Equal cuts of what is left, so that no connection gets a sliver.
        left = last.end - position
        end = position + -(-left // -(-left // size))
        yield Read(first.file, position, end, tuple(run))
        position, size = end, next(sizes)


def part_size_for(total_bytes: int, *, connections: int) -> int:
    """A part small enough that every connection gets several, and large enough to be worth a request."""
    return max(SMALLEST_PART, min(PART_SIZE, total_bytes // (connections * 4)))
