"""Who computes what in the next step: pure, no torch.

A step is a budget of tokens. Every running sequence that only needs its next token gets it; what is left of the budget
is shared out among the prompts that are being read, the short ones first but every one something, so that a long prompt
delays nobody and is not starved. Waiting sequences come in by age as soon as blocks for them are there; one that fits
may pass one that does not, but not for ever. When blocks run out, the youngest running sequence gives up its own and is
computed again later.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from coldstream.engine.blocks import Admitted, Blocks

# Chunks of a prompt end at multiples of this, so that attention computes a token in the same tile however it is cut.
CHUNK_ALIGNMENT = 32
# So many younger sequences may pass one that waits for blocks.
MAX_PASSED = 16


@dataclass(slots=True, eq=False)
class Sequence:
    """A request as the scheduler sees it. `tokens` are prompt and output; the first `computed` are in the cache."""

    key: str
    tokens: list[int]
    prompt_length: int
    max_length: int
    arrival: int
    deadline: float | None = None
    share_prefix: bool = True
    max_chunk: int | None = None
    computed: int = 0
    first_cached: int | None = None
    passed: int = 0
    preemptions: int = 0

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

    `copies` are (from, to) blocks to copy before anything is computed.
    """

    pieces: tuple[Piece, ...] = ()
    copies: tuple[tuple[int, int], ...] = ()

    @property
    def tokens(self) -> int:
        """How many tokens go through the model."""
        return sum(piece.count for piece in self.pieces)


@dataclass(slots=True)
class Scheduler:
    """`max_sequences` run at once, with at most `step_tokens` tokens a step, in the blocks of `blocks`."""

    blocks: Blocks
    max_sequences: int
    step_tokens: int
    waiting: list[Sequence] = field(default_factory=list)
    running: list[Sequence] = field(default_factory=list)
    preemptions: int = 0

    def add(self, sequence: Sequence) -> None:
        """Queue it by age."""
        bisect.insort(self.waiting, sequence, key=lambda item: item.arrival)

    def remove(self, sequence: Sequence) -> None:
        """It ended, for whatever reason; its blocks are free from now on. Removing it twice does no harm."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.blocks.release(sequence.key)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def schedule(self) -> Step:
        """The next step; empty when there is nothing to do. Every sequence in it has the blocks that it needs."""
        self._make_room()
        copies = self._admit()
        decoding = [item for item in self.running if item.is_decoding]
        budget = max(self.step_tokens - len(decoding), CHUNK_ALIGNMENT)
        reading = [item for item in self.running if not item.is_decoding]
        pieces = [Piece(item, item.computed, 1, True) for item in decoding]
        pieces += [
            Piece(item, item.computed, count, count == item.missing)
            for item, count in _shares(reading, budget)
            if count
        ]
        return Step(tuple(pieces), copies)

    def finish(self, step: Step) -> None:
        """The step was computed; its blocks may be shared now. Call it before new tokens are appended."""
        for piece in step.pieces:
            sequence = piece.sequence
            sequence.computed = piece.end
            if piece.end // self.blocks.size > piece.start // self.blocks.size:
                self.blocks.computed(sequence.key, sequence.tokens[: piece.end])

    def restart_all(self) -> None:
        """Nothing that was computed counts any more: every running sequence goes back to the queue."""
        for sequence in list(self.running):
            self._send_back(sequence)
        self.blocks.forget()

    def _make_room(self) -> None:
        """A block for the next token of everybody who runs; the youngest give theirs up while there are too few."""
        for sequence in sorted(self.running, key=lambda item: item.arrival):
            while sequence in self.running and not self.blocks.grow(sequence.key, len(sequence.tokens)):
                self._send_back(max(self.running, key=lambda item: item.arrival))
                self.preemptions += 1

    def _send_back(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.blocks.release(sequence.key)
        sequence.computed = 0
        sequence.preemptions += 1
        self.add(sequence)

    def _admit(self) -> tuple[tuple[int, int], ...]:
        blocked: list[Sequence] = []
        copies: list[tuple[int, int]] = []
        for sequence in list(self.waiting):
            if len(self.running) >= self.max_sequences or any(item.passed >= MAX_PASSED for item in blocked):
                break
            if self.running and self.blocks.is_promised(sequence.tokens) and sequence.share_prefix:
                continue
            # Room to grow by a block for each of the others: who comes in must not push somebody out at once.
            spare = len(self.running) if self.running else 0
            admitted = None
            if self.blocks.needed(len(sequence.tokens)) + spare <= self.blocks.available:
                admitted = self._take(sequence)
            if admitted is None:
                blocked.append(sequence)
                continue
            copies += admitted.copies
            for item in blocked:
                item.passed += 1
        return tuple(copies)

    def _take(self, sequence: Sequence) -> Admitted | None:
        admitted = self.blocks.admit(
            sequence.key, sequence.tokens, expected=sequence.max_length, share=sequence.share_prefix
        )
        if admitted is None:
            return None
        self.waiting.remove(sequence)
        self.running.append(sequence)
        sequence.computed = admitted.cached
        if sequence.first_cached is None:
            sequence.first_cached = admitted.cached
        sequence.passed = 0
        return admitted


def _shares(reading: Items[Sequence], budget: int) -> list[tuple[Sequence, int]]:
    """Share the budget out: equal parts, and what the short ones leave goes to the long ones."""
    shares: list[tuple[Sequence, int]] = []
    by_length = sorted(reading, key=lambda item: (item.missing, item.arrival))
    for index, sequence in enumerate(by_length):
        part = budget // (len(by_length) - index)
        if sequence.max_chunk is not None:
            part = min(part, sequence.max_chunk)
        count = sequence.missing if sequence.missing <= part else _aligned(sequence.computed, part, budget)
        shares.append((sequence, count))
        budget -= count
    return shares


def _aligned(start: int, part: int, budget: int) -> int:
    """About `part` tokens from `start` on, ending at a multiple of the alignment; 0 when that exceeds the budget."""
    end = max(start + part, start + CHUNK_ALIGNMENT) // CHUNK_ALIGNMENT * CHUNK_ALIGNMENT
    return end - start if end - start <= budget else 0
