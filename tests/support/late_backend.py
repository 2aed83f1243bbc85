"""A backend without arrays that answers late: a step is computed on a thread of its own, after `launch` has returned.

What follows a token is a hash of all tokens up to it, which are read from the blocks: a key that a sequence should not
see, or that was not copied, makes another answer.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

from coldstream.backends.protocol import (
    Abandoned,
    BlockTable,
    Group,
    Logprob,
    Outcome,
    Sampled,
    SamplingRow,
    StepBatch,
    TokenRun,
    VisionEncoder,
)

LAYERS = 3


class LateBackend:
    """`before(step)` is called on the computing thread before each step, to wait there or to raise."""

    windows: tuple[int | None, ...] = (None, 24)
    reads_anywhere = False
    vision: VisionEncoder | None = None

    def __init__(self, vocab_size: int, before: Callable[[int], None] = lambda step: None) -> None:
        self.steps = 0
        self.layers: list[int] = []
        self._vocab_size, self._before = vocab_size, before
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="late-backend")
        self._answer: Future[list[list[float]]] | None = None
        self._batch = StepBatch([])
        self._block_size = 0
        self._slots: list[dict[tuple[int, int], int]] = []

    def block_bytes(self, block_size: int) -> tuple[int, ...]:
        return (block_size, block_size)

    def cache_bytes(self, *, step_tokens: int, rows: int) -> int:
        return 1 << 16

    def allocate(self, groups: Sequence[Group], block_size: int) -> None:
        assert tuple(group.window for group in groups) == self.windows
        self._block_size = block_size
        self._slots = [{} for _ in groups]

    def thread(self) -> AbstractContextManager[object]:
        return nullcontext()

    def launch(self, batch: StepBatch, is_wanted: Callable[[], bool]) -> None:
        assert self._answer is None, "launched twice"
        self.steps += 1
        self.layers.append(0)
        self._copy(batch)
        runs = [_Run(run, self._places(run)) for run in batch.runs]
        self._batch = batch
        self._answer = self._worker.submit(self._compute, self.steps, runs, is_wanted)

    def collect(self, rows: Sequence[SamplingRow | None]) -> list[Outcome]:
        assert self._answer is not None, "nothing was launched"
        answer, self._answer = self._answer, None
        outcomes = []
        for run, scores, row in zip(self._batch.runs, answer.result(), rows, strict=True):
            assert row is None or run.draws
            sampled = None if row is None else self._draw(scores[-self._vocab_size :], row)
            outcomes.append(Outcome(sampled, self._score(run, scores)))
        return outcomes

    def _places(self, run: TokenRun) -> list[list[tuple[int, int]]]:
        """For each group the slots of all tokens up to the run's end that it still holds, the last one last."""
        return [
            [_slot(table, place, self._block_size) for place in range(table.first * self._block_size, run.end)]
            for table in run.tables
        ]

    def _copy(self, batch: StepBatch) -> None:
        for group, slots in enumerate(self._slots):
            mine = [copy for copy in batch.copies if copy.group == group]
            read = {
                (copy.target, place): slots[copy.source, place]
                for copy in mine
                for place in range(self._block_size)
                if (copy.source, place) in slots
            }
            slots.update(read)

    def _compute(self, step: int, runs: Sequence[_Run], is_wanted: Callable[[], bool]) -> list[list[float]]:
        self._before(step)
        for _ in range(LAYERS):
            if not is_wanted():
                raise Abandoned
            self.layers[-1] += 1
        for item in runs:
            for slots, places in self._held(item):
                tokens = item.run.token_ids
                slots.update(zip(places[-len(tokens) :], tokens, strict=True))
        return [self._logits(item) for item in runs]

    def _logits(self, item: _Run) -> list[float]:
        """Of every token of the run, one behind the other."""
        whole, sliding = ([slots[place] for place in places] for slots, places in self._held(item))
        window = self.windows[1]
        assert window is not None
        logits: list[float] = []
        for place in range(item.run.start, item.run.end):
            back = len(whole) - 1 - place
            seen = sliding[: len(sliding) - back][-window:]
            assert seen == whole[: place + 1][-window:], "the groups hold different tokens"
            digest = hashlib.blake2b(repr(whole[: place + 1]).encode()).digest()
            chance = random.Random(digest)
            logits += [chance.gauss(0.0, 3.0) for _ in range(self._vocab_size)]
        return logits

    def _held(self, item: _Run) -> Iterator[tuple[dict[tuple[int, int], int], list[tuple[int, int]]]]:
        return zip(self._slots, item.places, strict=True)

    def _draw(self, logits: Sequence[float], row: SamplingRow) -> Sampled:
        bias = dict(row.params.logit_bias)
        allowed = [token for token in range(len(logits)) if _allows(row, token)]
        values = {token: logits[token] + bias.get(token, 0.0) for token in allowed}
        if row.params.temperature > 0:
            chance = random.Random(f"{row.seed}.{row.position}")
            weights = [math.exp(value / row.params.temperature) for value in values.values()]
            (token,) = chance.choices(allowed, weights)
        else:
            token = max(values, key=lambda token: values[token])
        wanted = row.params.logprobs
        return Sampled(token, None if wanted is None else _logprob(logits, token, wanted))

    def _score(self, run: TokenRun, logits: Sequence[float]) -> Sequence[Logprob]:
        if run.scoring is None:
            return ()
        size = self._vocab_size
        rows = [logits[start : start + size] for start in range(0, len(logits), size)]
        return [_logprob(row, token, run.scoring.top) for row, token in zip(rows, run.scoring.targets, strict=False)]


class _Run:
    """A run, and where its tokens lie, read when it was launched."""

    def __init__(self, run: TokenRun, places: list[list[tuple[int, int]]]) -> None:
        self.run, self.places = run, places


def _slot(table: BlockTable, place: int, size: int) -> tuple[int, int]:
    return table.blocks[place // size - table.first], place % size


def _allows(row: SamplingRow, token: int) -> bool:
    if row.allowed is None:
        return True
    return token // 8 < len(row.allowed) and bool(row.allowed[token // 8] >> token % 8 & 1)


def _logprob(logits: Sequence[float], token: int, top: int) -> Logprob:
    most = max(logits)
    total = most + math.log(sum(math.exp(value - most) for value in logits))
    best = sorted(range(len(logits)), key=lambda other: -logits[other])[:top]
    return Logprob(token, logits[token] - total, tuple((other, logits[other] - total) for other in best))
