"""Who computes what in the next step: pure, no arrays.

A step is a budget of tokens. Every running sequence that only needs its next token gets it; what is left of the budget
is shared out among the prompts that are being read, the short ones first but every one something, so that a long prompt
delays no other and is not starved. Waiting sequences come in by age as soon as blocks for them are there; one that fits
may pass one that does not, but not for ever. When blocks run out, the youngest running sequence gives up its own and is
computed again later.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coldstream.backends.protocol import Copy
from coldstream.engine.kvcache.blocks import Blocks, Chain
from coldstream.engine.pace import ReadingPace

if TYPE_CHECKING:
    from coldstream.engine.vision.encoder import PlacedImage

# Chunks of a prompt end at multiples of this, so that attention computes a token in the same tile however it is cut.
CHUNK_ALIGNMENT = 32
# So many younger sequences may pass one that waits for blocks.
MAX_PASSED = 16
# Of all prompts that are scored: a token's logits are as wide as the vocabulary, and a draw needs those of one.
SCORED_TOKENS = 64


@dataclass(slots=True, eq=False)
class Sequence:
    """A request as the scheduler sees it. `tokens` are prompt and output; the first `computed` are in the cache.

    The tokens of each of `images` see one another, so they are computed in one piece.
    """

    key: str
    tokens: list[int]
    prompt_length: int
    max_length: int
    arrival: int
    deadline: float | None = None
    share_prefix: bool = True
    is_scored: bool = False
    computed: int = 0
    first_cached: int | None = None
    passed: int = 0
    preemptions: int = 0
    chain: Chain = field(default_factory=Chain)
    images: Items[PlacedImage] = ()

    @property
    def missing(self) -> int:
        """Tokens to compute before the next one can be drawn."""
        return len(self.tokens) - self.computed

    @property
    def is_decoding(self) -> bool:
        """Only its newest token is missing."""
        return self.missing == 1 and len(self.tokens) > self.prompt_length


@dataclass(frozen=True, slots=True)
class Piece:
    """`count` tokens of a sequence from `start` on; `draws` when nothing is missing after it: a token can be drawn."""

    sequence: Sequence
    start: int
    count: int
    draws: bool

    @property
    def end(self) -> int:
        """One past its last token."""
        return self.start + self.count


@dataclass(frozen=True, slots=True)
class Step:
    """What to compute together: first the pieces of one token, then the chunks of prompts.

    `copies` are to be made before anything is computed.
    """

    pieces: tuple[Piece, ...] = ()
    copies: tuple[Copy, ...] = ()

    @property
    def tokens(self) -> int:
        """How many tokens go through the model."""
        return sum(piece.count for piece in self.pieces)


@dataclass(slots=True)
class Scheduler:
    """`max_sequences` run at once, with at most `step_tokens` tokens a step, in the blocks of `blocks`.

    Beside sequences that draw, prompts are read at the `pace`.
    """

    blocks: Blocks
    max_sequences: int
    step_tokens: int
    waiting: list[Sequence] = field(default_factory=list)
    running: list[Sequence] = field(default_factory=list)
    preemptions: int = 0
    pace: ReadingPace = field(default_factory=ReadingPace)
    _copies: dict[str, tuple[Copy, ...]] = field(default_factory=dict)

    def add(self, sequence: Sequence) -> None:
        """Queue it by age."""
        bisect.insort(self.waiting, sequence, key=lambda item: item.arrival)

    def has(self, sequence: Sequence) -> bool:
        """Whether it waits or runs."""
        return sequence in self.waiting or sequence in self.running

    @property
    def has_work(self) -> bool:
        """Whether there is anybody to schedule."""
        return bool(self.running or self.waiting)

    def remove(self, sequence: Sequence) -> None:
        """It ended, for whatever reason; its blocks are free from now on. Removing it twice does no harm."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.blocks.release(sequence.key)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def schedule(self) -> Step:
        """The next step; empty when there is nothing to do. Every sequence in it has the blocks that it needs."""
        self._copies.clear()
        self._admit()
        decoding = [item for item in self.running if item.is_decoding]
        reading = [item for item in self.running if not item.is_decoding]
        wanted = [Piece(item, item.computed, 1, True) for item in decoding]
        budget = max(self._budget(len(decoding)), CHUNK_ALIGNMENT)
        for item, count in _shares(reading, min(budget, self.blocks.step)):
            wanted.append(Piece(item, item.computed, count, count == item.missing))
        # By age: the sequence that has to give up its blocks is younger, so its turn has not come yet.
        wanted.sort(key=lambda piece: piece.sequence.arrival)
        pieces = [piece for piece in wanted if piece.count and piece.sequence in self.running and self._grow(piece)]
        copies = tuple(copy for copies in self._copies.values() for copy in copies)
        return Step(tuple(pieces), copies)

    def finish(self, step: Step) -> None:
        """The step was computed; its blocks may be shared now. Call it before new tokens are appended."""
        for piece in step.pieces:
            sequence = piece.sequence
            sequence.computed = piece.end
            if piece.end // self.blocks.size > piece.start // self.blocks.size:
                self.blocks.computed(sequence.key, sequence.tokens, piece.end, sequence.chain)

    def restart_all(self) -> None:
        """Nothing that was computed counts any more: every running sequence goes back to the queue."""
        for sequence in list(self.running):
            self._send_back(sequence)
        self.blocks.forget()

    def _budget(self, decoding: int) -> int:
        left = self.step_tokens - decoding
        return self.pace.tokens(left) if decoding else left

    def _grow(self, piece: Piece) -> bool:
        """Blocks for the piece; the youngest give theirs up while there are too few. False if it had to itself."""
        sequence = piece.sequence
        while not self.blocks.grow(sequence.key, piece.end):
            youngest = max(self.running, key=lambda item: item.arrival)
            self._send_back(youngest)
            self.preemptions += 1
            if youngest is sequence:
                return False
        return True

    def _send_back(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.blocks.release(sequence.key)
        self._copies.pop(sequence.key, None)
        sequence.computed = 0
        sequence.preemptions += 1
        self.add(sequence)

    def _admit(self) -> None:
        blocked: list[Sequence] = []
        for sequence in list(self.waiting):
            if len(self.running) >= self.max_sequences or any(item.passed >= MAX_PASSED for item in blocked):
                return
            if sequence.share_prefix and self.blocks.is_promised(sequence.tokens, sequence.chain):
                continue
            if not self._take(sequence):
                blocked.append(sequence)
                continue
            for item in blocked:
                item.passed += 1

    def _take(self, sequence: Sequence) -> bool:
        # A block is left for each running sequence: the one that comes in must not push another out at once.
        admitted = self.blocks.admit(
            sequence.key,
            sequence.tokens,
            sequence.chain,
            expected=sequence.max_length,
            share=sequence.share_prefix,
            spare=len(self.running),
        )
        if admitted is None:
            return False
        self.waiting.remove(sequence)
        self.running.append(sequence)
        self._copies[sequence.key] = admitted.copies
        sequence.computed = admitted.cached
        if sequence.first_cached is None:
            sequence.first_cached = admitted.cached
        sequence.passed = 0
        return True


def _shares(reading: Items[Sequence], budget: int) -> list[tuple[Sequence, int]]:
    """Share the budget out: equal parts, and what the short ones leave goes to the long ones."""
    shares: list[tuple[Sequence, int]] = []
    ordered = sorted(reading, key=lambda item: (item.missing, item.arrival))
    if budget < CHUNK_ALIGNMENT * len(ordered):
        # Too little for everybody: the oldest gets its part first, or the short ones that keep coming would starve it.
        ordered.sort(key=lambda item: item.arrival)
    scored = _scored(ordered)
    for index, sequence in enumerate(ordered):
        part = budget // (len(ordered) - index)
        if sequence.is_scored:
            part = min(part, scored.get(sequence.key, 0))
            if not part:
                continue
        count = sequence.missing
        if count > part:
            count = min(count, _aligned(sequence.computed, part, budget))
        if sequence.images:
            count = _with_whole_images(sequence, count, budget)
        shares.append((sequence, count))
        budget -= count
    return shares


def _scored(reading: Items[Sequence]) -> dict[str, int]:
    """How many tokens of each scored prompt a step may compute: the oldest come first, so that none is starved."""
    left, shares = SCORED_TOKENS, {}
    for sequence in sorted((item for item in reading if item.is_scored), key=lambda item: item.arrival):
        if left >= CHUNK_ALIGNMENT:
            shares[sequence.key] = left
            left -= min(left, sequence.missing)
    return shares


def _with_whole_images(sequence: Sequence, count: int, budget: int) -> int:
    """The count, so that no image is cut: up to the image, or all of it, even beyond a budget that is not spent yet."""
    end = sequence.computed + count
    for image in sequence.images:
        if image.start < end < image.end:
            before = max(image.start, sequence.computed)
            end = before if before > sequence.computed or budget <= 0 else image.end
    return end - sequence.computed


def _aligned(start: int, part: int, budget: int) -> int:
    """About `part` tokens from `start` on, ending at a multiple of the alignment; 0 when that exceeds the budget."""
    end = max(start + part, start + CHUNK_ALIGNMENT) // CHUNK_ALIGNMENT * CHUNK_ALIGNMENT
    return end - start if end - start <= budget else 0
