"""One step, from a schedule to events: what the backend is asked, and what follows from its answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from coldstream.backends.protocol import Backend, ImageRun, Outcome, SamplingRow, Scoring, StepBatch, TokenRun
from coldstream.engine.generation import Finish, Generation
from coldstream.engine.kvcache.blocks import Blocks
from coldstream.engine.kvcache.pool import Table
from coldstream.engine.request import SamplingParams, TokenEvent
from coldstream.engine.scheduler import Piece, Scheduler, Step
from coldstream.engine.stats import Measured, Meter
from coldstream.errors import ColdstreamError


class Emitted(NamedTuple):
    """An event that follows from a step; the last one of its request has a `finish_reason`."""

    generation: Generation
    event: TokenEvent


@dataclass(frozen=True, slots=True, eq=False)
class Launched:
    """A step that the backend has begun: `generations` are those of its pieces. Times in `time.monotonic()` seconds."""

    step: Step
    generations: Sequence[Generation]
    started: float
    launched: float


class Steps:
    """Asks the backend; `as_error` puts any exception into words. What goes wrong for one request ends only that one.

    Not thread-safe: the engine's thread owns it.
    """

    def __init__(
        self,
        backend: Backend,
        blocks: Blocks,
        scheduler: Scheduler,
        meter: Meter,
        *,
        as_error: Callable[[Exception], ColdstreamError],
    ) -> None:
        self._backend = backend
        self._blocks = blocks
        self._scheduler = scheduler
        self._meter = meter
        self._as_error = as_error

    def launch(self, step: Step, active: Mapping[str, Generation]) -> Launched:
        """Begin a step of some of the generations, by their sequences' keys; their grammars' masks are made beside it.

        Raises:
            Abandoned: all of them were closed meanwhile. Here, or by `collect`.
        """
        started = time.monotonic()
        generations = [active[piece.sequence.key] for piece in step.pieces]
        for generation, piece in zip(generations, step.pieces, strict=True):
            generation.computing(piece)
        runs = [self._run(generation, piece) for generation, piece in zip(generations, step.pieces, strict=True)]
        batch = StepBatch(runs, step.copies)
        self._backend.launch(batch, lambda: not all(generation.is_closed for generation in generations))
        return Launched(step, generations, started, time.monotonic())

    def collect(self, launched: Launched) -> list[Outcome]:
        """Wait for the step: an outcome for each of its pieces. What it computed may be shared now."""
        failed: dict[int, ColdstreamError] = {}
        rows: list[SamplingRow | None] = []
        for place, (generation, piece) in enumerate(zip(launched.generations, launched.step.pieces, strict=True)):
            if piece.draws:
                try:
                    generation.constrain()
                except Exception as exc:
                    failed[place] = self._as_error(exc)
            rows.append(generation.row if piece.draws and place not in failed else None)
        outcomes = list(self._backend.collect(rows))
        for place, error in failed.items():
            outcomes[place] = Outcome(error, outcomes[place].scored)
        self._scheduler.finish(launched.step)
        return outcomes

    def emit(self, launched: Launched, outcomes: Sequence[Outcome]) -> list[Emitted]:
        """The events that follow, in the order of the pieces."""
        pieces = launched.step.pieces
        emitted = [
            Emitted(generation, event)
            for generation, piece, outcome in zip(launched.generations, pieces, outcomes, strict=True)
            for event in self._events(generation, piece, outcome)
        ]
        self._measure(launched)
        return emitted

    def prove(self) -> None:
        """Compute and draw one token that is no request's, into the first block of each group, which none may hold.

        Raises:
            EngineError: there is none to draw; and whatever the device fails with.
        """
        tables = [Table(0, 0, [0]) for _ in self._backend.windows]
        self._backend.launch(StepBatch([TokenRun([0], 0, tables, draws=True)]), lambda: True)
        (outcome,) = self._backend.collect([SamplingRow(SamplingParams(), 0, ())])
        if isinstance(outcome.sampled, ColdstreamError):
            raise outcome.sampled

    def _run(self, generation: Generation, piece: Piece) -> TokenRun:
        sequence = piece.sequence
        return TokenRun(
            sequence.tokens[piece.start : piece.end],
            piece.start,
            self._blocks.tables(sequence.key),
            images=_images(piece) if sequence.images else (),
            draws=piece.draws,
            scoring=_scoring(generation, piece) if generation.scores_prompt else None,
        )

    def _events(self, generation: Generation, piece: Piece, outcome: Outcome) -> list[TokenEvent]:
        try:
            if generation.scores_prompt:
                generation.prompt_scored(piece.start, outcome.scored)
            if outcome.sampled is None:
                return []
            if isinstance(outcome.sampled, ColdstreamError):
                raise outcome.sampled
            event, finish = generation.push(outcome.sampled)
        except Exception as exc:
            event, finish = None, Finish("error", error=self._as_error(exc))
        events = [] if event is None else [event]
        return events if finish is None else [*events, generation.last_event(finish)]

    def _measure(self, launched: Launched) -> None:
        done, pieces = time.monotonic(), launched.step.pieces
        self._scheduler.pace.took(done - launched.started, read=sum(item.count for item in pieces if item.count > 1))
        self._meter.step(
            Measured(
                done,
                done - launched.started,
                launched.launched - launched.started,
                len(pieces),
                sum(piece.count for piece in pieces if piece.start < piece.sequence.prompt_length),
                sum(piece.draws for piece in pieces),
            )
        )


def _images(piece: Piece) -> list[ImageRun]:
    """Those that the piece holds any part of; the scheduler cuts none at its end."""
    overlapping = [item for item in piece.sequence.images if item.start < piece.end and piece.start < item.end]
    runs = []
    for item in overlapping:
        assert item.vectors is not None
        runs.append(ImageRun(item.start, item.end, item.vectors))
    return runs


def _scoring(generation: Generation, piece: Piece) -> Scoring:
    request = generation.request
    return Scoring(request.prompt_ids[piece.start + 1 : piece.end + 1], request.sampling.prompt_logprobs or 0)
