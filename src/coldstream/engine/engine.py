"""The engine: one thread that turns requests into tokens, step by step, many sequences at a time.

    engine = Engine(decoder, tokenizer, config, settings)
    engine.start()
    engine.submit(Request("1", ids), deliver)    # deliver(TokenEvent) is called on the engine's thread
    engine.cancel("1")                           # and here, with the event that ends it
    engine.drain(grace=10.0)
    engine.stop()

A step is: what came in, who runs, the model, a token for each, the events. Whatever happens, a submitted request ends
in exactly one event with a `finish_reason`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

import torch

from coldstream.backends.cpu.library import load
from coldstream.backends.cpu.packed import is_built
from coldstream.backends.device import naming_out_of_memory, out_of_memory
from coldstream.engine import limits
from coldstream.engine.generation import Deliver, Finish, Generation
from coldstream.engine.grammar import Grammars
from coldstream.engine.kv_cache import AttentionConfig, KvCache
from coldstream.engine.kvcache.blocks import Blocks
from coldstream.engine.kvcache.budget import BLOCK_SIZE, affordable, kv_bytes
from coldstream.engine.outbox import Outbox
from coldstream.engine.request import Request, TokenEvent
from coldstream.engine.runner import Abandoned, Decoding, Runner
from coldstream.engine.scheduler import Scheduler, Step
from coldstream.engine.stats import Meter, Stats
from coldstream.engine.steps import Steps
from coldstream.engine.tokenizer.tokenizer import Tokenizer
from coldstream.engine.tokenizer.turns import refuse_unknown_ids
from coldstream.engine.vision.encoder import ImageEncoder, Sees, check_images
from coldstream.errors import ColdstreamError, DeadlineExceeded, EngineError, OutOfMemory
from coldstream.host.limits import cpu_limit
from coldstream.settings import EngineSettings
from coldstream.workers.workers import Workers

# `hold` is somebody else's event: nobody wakes the loop when it is set, unless it is by `release`.
_HOLD_POLL_SECONDS = 0.05

_log = logging.getLogger(__name__)


class EngineConfig(AttentionConfig, Protocol):
    """What the engine needs to know of a model; `model.config.ModelConfig` has it."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def max_positions(self) -> int: ...


class Engine:
    """Generates for one model.

    `hold`: no token leaves before it is set (weights still landing or unverified); computing goes on meanwhile, as far
    as the model's own gates let it. `hold_images` is the same for requests with images, whose tower lands later; None:
    what holds text holds them. `stop_ids` None takes the tokenizer's. `max_context`, in tokens, can only lower the
    model's own limit; what the memory for keys and values allows may lower it further. `sees` is the vision tower of a
    model that takes images. `unallocated` are the bytes that the weights will yet take on a GPU. `workers` find out
    what a grammar costs; without any, the engine has its own.

    Raises:
        OutOfMemory: keys and values for one sequence do not fit.
        TokenizerError: every prompt would hold an id that the model's embedding has not.
    """

    def __init__(
        self,
        decoder: Decoding,
        tokenizer: Tokenizer,
        config: EngineConfig,
        settings: EngineSettings,
        *,
        stop_ids: frozenset[int] | None = None,
        max_context: int | None = None,
        hold: threading.Event | None = None,
        hold_images: threading.Event | None = None,
        sees: Sees | None = None,
        device: torch.device | str = "cpu",
        unallocated: int = 0,
        workers: Workers | None = None,
        name: str = "engine",
    ) -> None:
        refuse_unknown_ids(tokenizer, config.vocab_size)
        self.name = name
        self.tokenizer = tokenizer
        self.config = config
        self._settings = settings
        self._hold, self._hold_images = hold, hold_images or hold
        ends = tokenizer.stop_ids if stop_ids is None else stop_ids
        self._stop_ids = frozenset(number for number in ends if 0 <= number < config.vocab_size)
        wanted = min(config.max_positions, max_context or config.max_positions)
        # An image is computed in one piece.
        step = min(max(settings.step_tokens, sees.tokens_per_image if sees is not None else 0), wanted)
        dtype, device = decoder.attention_dtype, torch.device(device)
        budget = settings.kv_bytes
        if budget is None:
            budget = kv_bytes(config, settings, dtype, device, step=step, unallocated=unallocated)
        groups = affordable(config, settings, dtype, budget, context=wanted, step=step)
        kernels = load() if is_built() else None
        with naming_out_of_memory(f"{name}: keys and values of {budget / 1e9:.2f} GB"):
            cache = KvCache(config, groups, size=BLOCK_SIZE, dtype=dtype, device=device, kernels=kernels)
        share, together = settings.prefix_cache, not cache.reads_anywhere
        self.blocks = Blocks(groups, BLOCK_SIZE, step=step, share=share, together=together)
        self.max_context = min(wanted, self.blocks.capacity)
        self._scheduler = Scheduler(self.blocks, settings.max_sequences, settings.step_tokens)
        self._grammars = Grammars(tokenizer, vocab_size=config.vocab_size, stop_ids=self._stop_ids, workers=workers)
        self._sees = sees
        threads = settings.threads or cpu_limit()
        self._encoder = ImageEncoder(sees, threads=threads, name=name) if sees is not None else None
        self._meter = Meter()
        self._outbox = Outbox(name, self._meter, hold=hold, hold_images=self._hold_images, broken=self.cancel)
        self._steps = Steps(
            Runner(decoder, cache, self.blocks),
            self._scheduler,
            self._meter,
            send=self._outbox.send,
            end=self._end,
            as_error=self._as_error,
        )
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
        check_images(request, self._sees)
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

        Its work stops after the step that is running; a step that nobody else is in stops before its next layer.
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
        """The model can never answer (its load failed): whoever waits or comes gets `error`, also those held back."""
        with self._changed:
            self._refuse(error)
            self._stopping = True
            self._changed.notify()
        self._outbox.close_all(Finish("error", error=error))

    def recompute_all(self) -> None:
        """Weights were replaced: forget every key and value, and start again whatever nobody has seen a token of."""
        with self._changed:
            self._post(self._restart)

    def release(self) -> None:
        """The weights are verified: set `hold` and `hold_images`, and let go of what was held back."""
        self.release_text()
        with self._changed:
            if self._hold_images is not None:
                self._post(self._hold_images.set)

    def release_text(self) -> None:
        """The text model's weights are verified: set `hold`; requests with images wait on."""
        with self._changed:
            if self._hold is not None:
                # Behind `recompute_all`, if that was called: a token of the old weights may be on its way.
                self._post(self._hold.set)

    def prove(self) -> None:
        """Return once the device has computed a token: a request's, or one that is nobody's while no request waits.

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
        torch.set_num_threads(self._settings.threads or cpu_limit())
        try:
            with torch.inference_mode():
                while self._wait():
                    self._turn()
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
                if has_work or self._outbox.can_release or self._late(now):
                    return True
                self._changed.wait(self._sleep_limit(now))

    def _sleep_limit(self, now: float) -> float | None:
        until = self._outbox.deadlines()
        if self._drain_until is not None:
            until.append(self._drain_until)
        if self._outbox.holds_back:
            until.append(now + _HOLD_POLL_SECONDS)
        return max(0.0, min(until) - now) if until else None

    def _turn(self) -> None:
        """The inbox, the deadlines, what was held back, one step."""
        while self._inbox:
            self._inbox.popleft()()
        for generation in self._late(time.monotonic()):
            error = DeadlineExceeded("the request's deadline passed before it was finished; raise it or ask for less")
            self._end(generation, Finish("deadline", error=error))
        for generation in self._outbox.release():
            self._forget(generation)
        step = Step()
        try:
            step = self._scheduler.schedule()
            if step.pieces:
                self._steps.compute(step, self._active)
        except Abandoned:
            pass  # the inbox says who is to be forgotten
        except Exception as exc:  # whatever it is, it must not end the loop
            self._step_failed(step, exc)
        if self._proof is not None and (self._meter.steps or not self._scheduler.has_work):
            self._prove(self._proof)

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
        lack = out_of_memory(exc, f"{self.name}: a step of this request")
        if lack is not None:
            return lack
        _log.error("%s: a step failed", self.name, exc_info=exc)
        return EngineError(f"{self.name} failed while generating: {exc!r}")

    def _step_failed(self, step: Step, exc: Exception) -> None:
        """End whoever is to blame; everybody else is computed again, since nobody knows what was written."""
        error = self._as_error(exc)
        for key in _blamed(step, error) or list(self._active):
            self._end_id(key, Finish("error", error=error))
        self._scheduler.restart_all()

    # -- requests ------------------------------------------------------------------------------------------------------

    def _late(self, now: float) -> list[Generation]:
        late = [item for item in self._active.values() if item.request.deadline is not None]
        return [item for item in late if item.request.deadline is not None and item.request.deadline <= now]

    def _activate(self, generation: Generation) -> None:
        if not generation.is_closed:
            self._active[generation.request.id] = generation
            self._queue(generation)

    def _queue(self, generation: Generation) -> None:
        """Into the schedule; with images only once they have been seen, so that nobody else waits for that."""
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

    def _end_id(self, request_id: str, finish: Finish) -> None:
        generation = self._active.get(request_id)
        if generation is not None:
            self._end(generation, finish)

    def _end(self, generation: Generation, finish: Finish) -> None:
        """The terminal event; an answer that is complete but held back waits for `hold` with its end."""
        if finish.reason in ("stop", "length") and not self._outbox.may_leave(generation):
            self._scheduler.remove(generation.sequence)
            self._outbox.hold_back(generation, generation.last_event(finish))
            return
        self._forget(generation)
        self._outbox.close(generation, generation.last_event(finish))

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


def _blamed(step: Step, error: ColdstreamError) -> list[str]:
    """Whoever was in the step; where memory did not suffice, the one with most tokens in it."""
    pieces = step.pieces
    if isinstance(error, OutOfMemory) and pieces:
        pieces = (max(pieces, key=lambda piece: piece.count),)
    return [piece.sequence.key for piece in pieces]
