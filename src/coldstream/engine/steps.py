"""One step: the model, scores of prompts, a token for everybody who is due one, and the events that follow."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor

from coldstream.engine.generation import Finish, Generation
from coldstream.engine.request import SamplingParams, TokenEvent
from coldstream.engine.runner import Runner
from coldstream.engine.sampler import Row, Sampled, sample, token_logprobs
from coldstream.engine.scheduler import Piece, Scheduler, Step
from coldstream.engine.stats import Measured, Meter
from coldstream.engine.transfer import Readback, int64
from coldstream.errors import ColdstreamError, EngineError


class Steps:
    """Computes steps. `send` delivers an event, `end` ends a generation; `as_error` puts any exception into words.

    What goes wrong for one request ends only that one.
    """

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        meter: Meter,
        *,
        send: Callable[[Generation, TokenEvent], None],
        end: Callable[[Generation, Finish], None],
        as_error: Callable[[Exception], ColdstreamError],
    ) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._meter = meter
        self._send = send
        self._end = end
        self._as_error = as_error

    def compute(self, step: Step, active: Mapping[str, Generation]) -> None:
        """Compute a step of some of the generations, by their sequences' keys, and deliver what comes of it.

        Raises:
            Abandoned: everybody in it was closed meanwhile.
        """
        started = time.monotonic()
        generations = {piece.sequence.key: active[piece.sequence.key] for piece in step.pieces}
        for piece in step.pieces:
            generations[piece.sequence.key].computing(piece)
        logits, owners = self._runner.run(
            step,
            every=lambda piece: generations[piece.sequence.key].scores_prompt,
            is_wanted=lambda: not all(generation.is_closed for generation in generations.values()),
        )
        computed = time.monotonic()
        self._scheduler.finish(step)
        readback = Readback()
        scored = [self._score(generations[piece.sequence.key], piece, logits[rows], readback) for piece, rows in owners]
        drawing = [(generations[piece.sequence.key], rows.stop - 1) for piece, rows in owners if piece.draws]
        drawn = self._draw(logits, drawing, readback)
        readback.wait()
        for deliver in (*scored, drawn):
            deliver()
        done = time.monotonic()
        prompt_tokens = sum(piece.count for piece in step.pieces if piece.start < piece.sequence.prompt_length)
        self._meter.step(
            Measured(done, done - started, computed - started, len(step.pieces), prompt_tokens, len(drawing))
        )

    def prove(self) -> None:
        """Compute and draw one token that is no request's, while no sequence holds a block.

        Raises:
            EngineError: there is none to draw; and whatever the device fails with.
        """
        readback = Readback()
        drawn = sample(self._runner.prove(), [Row(SamplingParams(), 0, ())], readback)
        readback.wait()
        (outcome,) = drawn()
        if isinstance(outcome, EngineError):
            raise outcome

    def _score(self, generation: Generation, piece: Piece, logits: Tensor, readback: Readback) -> Callable[[], None]:
        """Prompt logprobs, where they are wanted: the logits of token i score token i + 1."""
        if not generation.scores_prompt:
            return lambda: None
        targets = generation.request.prompt_ids[piece.start + 1 : piece.end + 1]
        top = generation.request.sampling.prompt_logprobs or 0
        scored = token_logprobs(logits[: len(targets)], targets, top, readback)
        return lambda: generation.prompt_scored(piece.start, scored())

    def _draw(self, logits: Tensor, drawing: list[tuple[Generation, int]], readback: Readback) -> Callable[[], None]:
        """A token for everybody who is due one; what is returned delivers the events that follow from it."""
        ready = []
        for generation, row in drawing:
            if self._guarded(generation, generation.constrain):
                ready.append((generation, row))
        if not ready:
            return lambda: None
        rows = [row for _, row in ready]
        last = logits if rows == list(range(len(logits))) else logits[int64(rows, logits.device)]
        drawn = sample(last, [item.row for item, _ in ready], readback)
        return lambda: self._deliver([generation for generation, _ in ready], drawn())

    def _deliver(self, generations: list[Generation], outcomes: list[Sampled | EngineError]) -> None:
        for generation, sampled in zip(generations, outcomes, strict=True):
            if isinstance(sampled, ColdstreamError):
                self._end(generation, Finish("error", error=sampled))
            else:
                self._guarded(generation, partial(self._push, generation, sampled))

    def _push(self, generation: Generation, sampled: Sampled) -> None:
        event, finish = generation.push(sampled)
        if event is not None:
            self._send(generation, event)
        if finish is not None:
            self._end(generation, finish)

    def _guarded(self, generation: Generation, work: Callable[[], None]) -> bool:
        """Do something for one request; if it fails, only this one ends."""
        try:
            work()
        except Exception as exc:
            self._end(generation, Finish("error", error=self._as_error(exc)))
            return False
        return True
