"""The engine: one thread that turns requests into tokens, step by step, many sequences at a time.

    engine = Engine(backend, tokenizer, config, settings)
    engine.start()
    engine.submit(Request("1", ids), deliver)    # deliver(TokenEvent) is called on the engine's thread
    engine.cancel("1")                           # and here, with the event that ends it
    engine.drain(grace=10.0)
    engine.stop()

A step is: who runs, the model, a token for each, the events (`step`); before it comes what was asked meanwhile.
Whatever happens, a submitted request ends in exactly one event with a `finish_reason`. What computes is behind the
`Backend`; no array is known here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from coldstream.backends.protocol import Abandoned, Backend
from coldstream.engine import limits
from coldstream.engine.generation import Finish, Generation
from coldstream.engine.grammar import Grammars
from coldstream.engine.kvcache.blocks import Blocks
from coldstream.engine.kvcache.budget import affordable
from coldstream.engine.outbox import Outbox, Verified
from coldstream.engine.request import Deliver, Request, TokenEvent
from coldstream.engine.scheduler import Scheduler, Step
from coldstream.engine.stats import Meter, Stats
from coldstream.engine.steps import Emitted, Steps
from coldstream.engine.tokenizer.tokenizer import Tokenizer
from coldstream.engine.tokenizer.turns import refuse_unknown_ids
from coldstream.engine.vision.encoder import ImageEncoder, check_images
from coldstream.errors import ColdstreamError, DeadlineExceeded, EngineError, OutOfMemory
from coldstream.model.memory import BLOCK_SIZE, step_of
from coldstream.settings import EngineSettings
from coldstream.workers.workers import Workers

_log = logging.getLogger(__name__)


class EngineConfig(Protocol):
    """What the engine needs to know of a model; `model.config.ModelConfig` has it."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def max_positions(self) -> int: ...


class Engine:
    """Generates for one model; `backend` becomes this engine's own.

    What is not `verified` is computed, as far as the weights have landed, but no token of it leaves before `release`.
    `stop_ids` None takes the tokenizer's. `max_context`, in tokens, can only lower the model's own limit; what the
    memory for keys and values allows may lower it further. `workers` find out what a grammar costs; without any, the
    engine has its own.

    Raises:
        OutOfMemory: keys and values for one sequence do not fit.
        TokenizerError: every prompt would hold an id that the model's embedding has not.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer,
        config: EngineConfig,
        settings: EngineSettings,
        *,
        stop_ids: frozenset[int] | None = None,
        max_context: int | None = None,
        verified: Verified = Verified.ALL,
        workers: Workers | None = None,
        name: str = "engine",
    ) -> None:
        refuse_unknown_ids(tokenizer, config.vocab_size)
        self.name = name
        self.tokenizer = tokenizer
        self.config = config
        self._backend = backend
        ends = tokenizer.stop_ids if stop_ids is None else stop_ids
        self._stop_ids = frozenset(number for number in ends if 0 <= number < config.vocab_size)
        wanted = min(config.max_positions, max_context or config.max_positions)
        self.blocks = _allocated(backend, settings, context=wanted)
        self.max_context = min(wanted, self.blocks.capacity)
        self._scheduler = Scheduler(self.blocks, settings.max_sequences, settings.native_step_tokens)
        self._grammars = Grammars(tokenizer, vocab_size=config.vocab_size, stop_ids=self._stop_ids, workers=workers)
        vision = backend.vision
        self._encoder = ImageEncoder(vision, thread=backend.thread, name=name) if vision is not None else None
        self._meter = Meter()
        self._outbox = Outbox(name, self._meter, verified=verified, broken=self.cancel)
        self._steps = Steps(backend, self.blocks, self._scheduler, self._meter, as_error=self._as_error)
        self._changed = threading.Condition()
        # Shared, under `_changed`: what the loop is to do next.
        self._inbox: deque[Callable[[], None]] = deque()
        self._arrivals = 0
        self._refusal: ColdstreamError | None = None
        self._stopping = False
        self._drain_until: float | None = None
        self._proof: Future[None] | None = None
        # The loop's own: whose tokens it computes.
        self._active: dict[str, Generation] = {}
        self._thread: threading.Thread | None = None
        self._died = False

    # -- from any thread -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the loop's thread.

        Raises:
            EngineError: it was started before.
        """
        if self._thread is not None:
            raise EngineError(f"{self.name} has been started before; make a new engine")
        self._thread = threading.Thread(target=self._loop, name=f"coldstream-{self.name}", daemon=True)
        self._thread.start()

    def validate(self, request: Request) -> None:
        """Raise what `submit` would raise for the request's own values.

        A grammar is compiled here, which may take a second the first time: call this off the event loop when there is
        one. What was compiled is kept, so that `submit` need not wait for it.

        Raises:
            PromptTooLong: the prompt leaves no room for a token.
            InvalidRequest: a value is out of range, or the grammar is broken.
        """
        limits.check(request, vocab_size=self.config.vocab_size, max_context=self.max_context)
        check_images(request, self._backend.vision)
        if request.sampling.grammar is not None:
            self._grammars.prepared(request.sampling.grammar)

    def submit(self, request: Request, deliver: Deliver) -> None:
        """Queue a request. Either this raises, or `deliver` gets exactly one event with a `finish_reason`.

        After `drain`, `stop` or `fail`, that event comes at once, on the caller's thread.

        Raises:
            PromptTooLong, InvalidRequest: as `validate`, or the id is in use.
        """
        self.validate(request)
        generation = self._generation(request, deliver)
        with self._changed:
            refusal = self._refusal
            if refusal is None:
                self._outbox.add(generation)
                self._arrivals += 1
                generation.sequence.arrival = self._arrivals
                self._post(lambda: self._activate(generation))
        if refusal is not None:
            deliver(TokenEvent(request.id, finish_reason="error", error=refusal))

    def cancel(self, request_id: str) -> None:
        """Its terminal event, "cancelled", is delivered now, by the caller's thread. Unknown ids are ignored.

        Its work stops after the step that is running; a step with no other request in it stops before its next layer.
        """
        generation = self._outbox.find(request_id)
        if generation is None:
            return
        with self._changed:
            self._post(lambda: self._forget(generation))
        self._outbox.close(generation, generation.last_event(Finish("cancelled")))

    def drain(self, grace: float) -> None:
        """Take nothing new, let what runs finish within `grace` seconds, end the rest as cancelled; then stop."""
        with self._changed:
            self._refuse(self._shutting_down())
            self._drain_until = time.monotonic() + grace
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(grace)
        self.stop()

    def stop(self, timeout: float = 5.0) -> None:
        """End everything now; requests that are left get their last event, from here if the loop does not answer."""
        with self._changed:
            self._refuse(self._shutting_down())
            self._stopping = True
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)
        self._outbox.close_all(Finish("cancelled"))
        self._grammars.close()
        if self._encoder is not None:
            self._encoder.close()

    def fail(self, error: ColdstreamError) -> None:
        """The model can never answer (its load failed): all requests get `error`, also those held back."""
        with self._changed:
            self._refuse(error)
            self._stopping = True
            self._changed.notify()
        self._outbox.close_all(Finish("error", error=error))

    def recompute_all(self) -> None:
        """Weights were replaced: forget every key and value, and restart what no token was delivered of."""
        with self._changed:
            self._post(self._restart)

    def release(self) -> None:
        """The weights are verified: let go of what was held back."""
        self._release(Verified.ALL)

    def release_text(self) -> None:
        """The text model's weights are verified: requests with images wait on."""
        self._release(Verified.TEXT)

    def prove(self) -> None:
        """Return once the device has computed a token: a request's, or a probe's while no request waits.

        For where a model that loaded may still be unable to answer: a driver, a kernel that is not for this GPU.

        Raises:
            ColdstreamError: what that token failed with, or why the engine ended before it.
        """
        with self._changed:
            if self._refusal is not None:
                raise self._refusal
            proof = self._proof = Future()
            self._changed.notify()
        proof.result()

    def stats(self) -> Stats:
        """A snapshot; cheap."""
        meter, blocks, rates = self._meter, self.blocks, self._meter.rates()
        running = len(self._scheduler.running)
        return Stats(
            running=running,
            waiting=max(0, len(self._outbox) - running),
            blocks_used=blocks.used,
            blocks_cached=blocks.cached,
            blocks_total=blocks.total,
            prefix_hit_rate=blocks.hit_tokens / blocks.asked_tokens if blocks.asked_tokens else 0.0,
            tokens_per_second=rates.tokens_per_second,
            prompt_tokens_per_second=rates.prompt_tokens_per_second,
            step_seconds=rates.step_seconds,
            engine_seconds=rates.engine_seconds,
            batch_size=rates.batch_size,
            steps=meter.steps,
            prompt_tokens=meter.prompt_tokens,
            cached_tokens=blocks.hit_tokens,
            completion_tokens=meter.completion_tokens,
            finished=meter.finished,
            preemptions=self._scheduler.preemptions,
            errors=meter.errors,
            died=self._died and self._thread is not None and not self._thread.is_alive(),
        )

    def _generation(self, request: Request, deliver: Deliver) -> Generation:
        grammar = request.sampling.grammar
        return Generation(
            request,
            deliver,
            tokenizer=self.tokenizer,
            stop_ids=self._stop_ids,
            max_context=self.max_context,
            matcher=None if grammar is None else self._grammars.prepared(grammar),
        )

    def _release(self, verified: Verified) -> None:
        with self._changed:
            # Behind `recompute_all`, if that was called: a token of the old weights may be on its way.
            self._post(lambda: self._verify(verified))

    def _post(self, work: Callable[[], None]) -> None:
        self._inbox.append(work)
        self._changed.notify()

    def _refuse(self, error: ColdstreamError) -> None:
        if self._refusal is None:
            self._refusal = error

    def _shutting_down(self) -> EngineError:
        return EngineError(f"{self.name} is shutting down; send the request to another instance")

    # -- the loop ------------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        self._died = True
        try:
            with self._backend.thread():
                while self._wait():
                    self._turn()
            self._died = False
        finally:
            with self._changed:
                self._refuse(self._shutting_down())
                if self._proof is not None:
                    self._proof.set_exception(self._refusal or self._shutting_down())
            self._outbox.close_all(Finish("cancelled"))
            for generation in list(self._active.values()):
                self._forget(generation)

    def _wait(self) -> bool:
        """Sleep until there is something to do; False when it is time to go."""
        with self._changed:
            while True:
                now = time.monotonic()
                drained = self._drain_until is not None and (not self._outbox or now >= self._drain_until)
                if self._stopping or drained:
                    return False
                has_work = self._inbox or self._scheduler.has_work or self._proof is not None
                if has_work or self._late(now):
                    return True
                self._changed.wait(self._sleep_limit(now))

    def _sleep_limit(self, now: float) -> float | None:
        until = self._outbox.deadlines()
        if self._drain_until is not None:
            until.append(self._drain_until)
        return max(0.0, min(until) - now) if until else None

    def _turn(self) -> None:
        """The inbox, the deadlines, one step."""
        while self._inbox:
            self._inbox.popleft()()
        for generation in self._late(time.monotonic()):
            error = DeadlineExceeded("the request's deadline passed before it was finished; raise it or ask for less")
            self._end(generation, Finish("deadline", error=error))
        for generation, event in self.step():
            self._send(generation, event)
        if self._proof is not None and (self._meter.steps or not self._scheduler.has_work):
            self._prove(self._proof)

    def step(self) -> list[Emitted]:
        """Compute one step; the events that follow, which are for the caller to send. On the loop's thread."""
        step = Step()
        try:
            step = self._scheduler.schedule()
            if not step.pieces:
                return []
            launched = self._steps.launch(step, self._active)
            outcomes = self._steps.collect(launched)
            return self._steps.emit(launched, outcomes)
        except Abandoned:
            return []  # the inbox says who is to be forgotten
        except Exception as exc:  # whatever it is, it must not end the loop
            return self._failed(step, exc)

    def _prove(self, proof: Future[None]) -> None:
        """A step that was computed is proof enough."""
        with self._changed:
            self._proof = None
        try:
            if not self._meter.steps:
                self._steps.prove()
            proof.set_result(None)
        except Exception as exc:  # whatever it is, the model cannot answer
            proof.set_exception(self._as_error(exc))

    def _as_error(self, exc: Exception) -> ColdstreamError:
        if isinstance(exc, ColdstreamError):
            return exc
        _log.error("%s: a step failed", self.name, exc_info=exc)
        return EngineError(f"{self.name} failed while generating: {exc!r}")

    def _failed(self, step: Step, exc: Exception) -> list[Emitted]:
        """The ends of those to blame; all others are computed again, since it is unknown what was written."""
        error = self._as_error(exc)
        blamed = [self._active[key] for key in _blamed(step, error) or self._active]
        self._scheduler.restart_all()
        return [Emitted(item, item.last_event(Finish("error", error=error))) for item in blamed]

    # -- requests ------------------------------------------------------------------------------------------------------

    def _late(self, now: float) -> list[Generation]:
        late = [item for item in self._active.values() if item.request.deadline is not None]
        return [item for item in late if item.request.deadline is not None and item.request.deadline <= now]

    def _activate(self, generation: Generation) -> None:
        if not generation.is_closed:
            self._active[generation.request.id] = generation
            self._queue(generation)

    def _queue(self, generation: Generation) -> None:
        """Into the schedule; with images only once they have been seen, so that no other request waits for that."""
        images = generation.sequence.images
        if self._encoder is None or not images:
            self._scheduler.add(generation.sequence)
            return

        def seen(error: Exception | None) -> None:
            with self._changed:
                self._post(lambda: self._seen(generation, error))

        self._encoder.look(images, seen)

    def _seen(self, generation: Generation, error: Exception | None) -> None:
        if self._active.get(generation.request.id) is not generation:
            return
        if error is not None:
            self._end(generation, Finish("error", error=self._as_error(error)))
        elif generation.is_seen and not self._scheduler.has(generation.sequence):
            # Said twice, or too early, when the images are looked at again after a restart.
            self._scheduler.add(generation.sequence)

    def _end(self, generation: Generation, finish: Finish) -> None:
        self._send(generation, generation.last_event(finish))

    def _send(self, generation: Generation, event: TokenEvent) -> None:
        """Deliver it; an answer that is complete but held back waits with its end."""
        if event.finish_reason is None:
            self._outbox.send(generation, event)
        elif event.finish_reason in ("stop", "length") and not self._outbox.may_leave(generation):
            self._scheduler.remove(generation.sequence)
            self._outbox.hold_back(generation, event)
        else:
            self._forget(generation)
            self._outbox.close(generation, event)

    def _verify(self, verified: Verified) -> None:
        for generation in self._outbox.verify(verified):
            self._forget(generation)

    def _forget(self, generation: Generation) -> None:
        """No more work for it; its blocks are free."""
        self._scheduler.remove(generation.sequence)
        self._outbox.forget(generation)
        if self._active.get(generation.request.id) is generation:
            del self._active[generation.request.id]

    def _restart(self) -> None:
        self._scheduler.restart_all()
        if self._encoder is not None:
            self._encoder.forget()
        for generation in self._active.values():
            if not generation.was_seen:
                self._scheduler.remove(generation.sequence)
                generation.restart()
                self._queue(generation)


def _allocated(backend: Backend, settings: EngineSettings, *, context: int) -> Blocks:
    """The backend's keys and values for sequences of up to `context` tokens, and who holds which of them."""
    # An image is computed in one piece.
    image = backend.vision.tokens_per_image if backend.vision is not None else 0
    step = step_of(settings.native_step_tokens, image=image, context=context)
    budget = settings.kv_bytes
    if budget is None:
        budget = backend.cache_bytes(step_tokens=step, rows=settings.max_sequences)
    groups = affordable(
        budget,
        windows=backend.windows,
        block_bytes=backend.block_bytes(BLOCK_SIZE),
        sequences=settings.max_sequences,
        context=context,
        step=step,
    )
    backend.allocate(groups, BLOCK_SIZE)
    return Blocks(groups, BLOCK_SIZE, step=step, share=settings.prefix_cache, together=not backend.reads_anywhere)


def _blamed(step: Step, error: ColdstreamError) -> list[str]:
    """The requests of the step; where memory did not suffice, the one with most tokens in it."""
    pieces = step.pieces
    if isinstance(error, OutOfMemory) and pieces:
        pieces = (max(pieces, key=lambda piece: piece.count),)
    return [piece.sequence.key for piece in pieces]
