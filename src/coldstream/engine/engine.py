"""The engine: one thread that turns requests into tokens, step by step, many sequences at a time.

    engine = Engine(decoder, tokenizer, config, settings)
    engine.start()
    engine.submit(Request("1", ids), deliver)    # deliver(TokenEvent) is called on the engine's thread
    engine.cancel("1")
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
from dataclasses import dataclass
from typing import Protocol

import torch

from coldstream.engine.blocks import Blocks
from coldstream.engine.generation import Deliver, Finish, Generation
from coldstream.engine.kv_cache import AttentionConfig, KvCache, bytes_per_block
from coldstream.engine.memory import cpu_limit, memory_available
from coldstream.engine.request import Request, SamplingParams, TokenEvent
from coldstream.engine.runner import Decoding, Runner
from coldstream.engine.sampler import sample, token_logprobs
from coldstream.engine.scheduler import Piece, Scheduler, Step
from coldstream.engine.tokenizer import Tokenizer
from coldstream.errors import ColdstreamError, DeadlineExceeded, EngineError, InvalidRequest, PromptTooLong
from coldstream.settings import EngineSettings

BLOCK_SIZE = 32
# Of the memory that is free once the weights are there, keys and values may take so much when nothing else is said.
_MEMORY_SHARE = 0.4
_FALLBACK_KV_BYTES = 1 << 30
_HOLD_POLL = 0.05
MAX_LOGPROBS = 100

_log = logging.getLogger(__name__)


class EngineConfig(AttentionConfig, Protocol):
    """What the engine needs to know of a model; `model.config.ModelConfig` has it."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def max_positions(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Stats:
    """What the engine is doing. Rates are over the last seconds; the totals since start."""

    running: int
    waiting: int
    blocks_used: int
    blocks_cached: int
    blocks_total: int
    prefix_hit_rate: float
    tokens_per_second: float
    prompt_tokens_per_second: float
    step_seconds: float
    batch_size: float
    steps: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    finished: int
    preemptions: int
    errors: int


class _Meter:
    """Rates with a memory of a few seconds."""

    def __init__(self) -> None:
        self.steps = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.finished = 0
        self.errors = 0
        self._recent: deque[tuple[float, float, int, int, int]] = deque(maxlen=256)

    def step(self, seconds: float, batch: int, prompt_tokens: int, drawn: int) -> None:
        self.steps += 1
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += drawn
        self._recent.append((time.monotonic(), seconds, batch, prompt_tokens, drawn))

    def recent(self, window: float = 10.0) -> tuple[float, float, float, float]:
        """Drawn and prompt tokens a second of busy time, seconds a step, sequences a step."""
        now = time.monotonic()
        recent = [item for item in tuple(self._recent) if now - item[0] <= window]
        busy = sum(item[1] for item in recent)
        if not busy:
            return 0.0, 0.0, 0.0, 0.0
        return (
            sum(item[4] for item in recent) / busy,
            sum(item[3] for item in recent) / busy,
            busy / len(recent),
            sum(item[2] for item in recent) / len(recent),
        )


class Engine:
    """Generates for one model.

    `hold`: no token leaves before it is set (weights still landing or unverified); computing goes on meanwhile, as far
    as the model's own gates let it. `stop_ids` None takes the tokenizer's.
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
        device: torch.device | str = "cpu",
        name: str = "engine",
    ) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.config = config
        self._settings = settings
        self._hold = hold
        self._stop_ids = tokenizer.stop_ids if stop_ids is None else stop_ids
        wanted = min(config.max_positions, max_context or config.max_positions)
        kv_dtype = decoder.attention_dtype
        count = _block_count(config, settings, kv_dtype, wanted)
        self.max_context = min(wanted, count * BLOCK_SIZE)
        self.blocks = Blocks(count, BLOCK_SIZE, share=settings.prefix_cache)
        self._scheduler = Scheduler(self.blocks, settings.max_sequences, settings.step_tokens)
        cache = KvCache(config, blocks=count, size=BLOCK_SIZE, dtype=kv_dtype, device=device)
        self._runner = Runner(decoder, cache, self.blocks)
        self._meter = _Meter()
        self._generations: dict[str, Generation] = {}
        self._changed = threading.Condition()
        self._inbox: deque[Callable[[], None]] = deque()
        self._arrivals = 0
        self._stopping = False
        self._draining_until: float | None = None
        self._thread: threading.Thread | None = None

    # -- from any thread -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the loop's thread."""
        if self._thread is not None:
            raise EngineError(f"{self.name} has been started before; make a new engine")
        self._thread = threading.Thread(target=self._loop, name=f"coldstream-{self.name}", daemon=True)
        self._thread.start()

    def submit(self, request: Request, deliver: Deliver) -> None:
        """Queue a request. Either this raises, or `deliver` gets exactly one event with a `finish_reason`.

        After `drain` or `stop`, that event comes at once, on the caller's thread.

        Raises:
            PromptTooLong: the prompt leaves no room for a token.
            InvalidRequest: a parameter is out of range, or the id is in use.
        """
        self.validate(request)
        with self._changed:
            refused = self._stopping or self._draining_until is not None
            if not refused:
                if request.id in self._generations:
                    raise InvalidRequest(f"there is a request {request.id!r} already; ids must differ", field="id")
                generation = self._generation(request, deliver)
                self._generations[request.id] = generation
                self._inbox.append(lambda: self._scheduler.add(generation.sequence))
                self._changed.notify()
        if refused:
            error = EngineError(f"{self.name} is shutting down; send the request to another instance")
            deliver(TokenEvent(request.id, finish_reason="error", error=error))

    def cancel(self, request_id: str) -> None:
        """Its work stops after the step that is running; its terminal event is "cancelled". Unknown ids are ignored."""
        with self._changed:
            self._inbox.append(lambda: self._end_id(request_id, Finish("cancelled")))
            self._changed.notify()

    def drain(self, grace: float) -> None:
        """Take nothing new, let what runs finish within `grace` seconds, end the rest as cancelled; then stop."""
        with self._changed:
            self._draining_until = time.monotonic() + grace
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(grace + 5.0)
        self.stop()

    def stop(self, timeout: float = 5.0) -> None:
        """End everything now; requests that are left get their last event, from here if the loop does not answer."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)
        self._end_all(Finish("cancelled"))

    def fail(self, error: ColdstreamError) -> None:
        """The model can never answer (its load failed): whoever waits gets `error`, also those held back."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._end_all(Finish("error", error=error))

    def recompute_all(self) -> None:
        """Weights were replaced: forget every key and value, and start again whatever nobody has seen a token of."""
        with self._changed:
            self._inbox.append(self._restart)
            self._changed.notify()

    def release(self) -> None:
        """The weights are verified: set `hold`, and let go of what was held back."""
        if self._hold is not None:
            self._hold.set()
        with self._changed:
            self._changed.notify()

    def stats(self) -> Stats:
        """A snapshot; cheap, from any thread."""
        meter, blocks = self._meter, self.blocks
        rate, prompt_rate, seconds, batch = meter.recent()
        return Stats(
            running=len(self._scheduler.running),
            waiting=max(0, len(self._generations) - len(self._scheduler.running)),
            blocks_used=blocks.used,
            blocks_cached=blocks.cached,
            blocks_total=blocks.count,
            prefix_hit_rate=blocks.hit_tokens / blocks.asked_tokens if blocks.asked_tokens else 0.0,
            tokens_per_second=rate,
            prompt_tokens_per_second=prompt_rate,
            step_seconds=seconds,
            batch_size=batch,
            steps=meter.steps,
            prompt_tokens=meter.prompt_tokens,
            cached_tokens=blocks.hit_tokens,
            completion_tokens=meter.completion_tokens,
            finished=meter.finished,
            preemptions=self._scheduler.preemptions,
            errors=meter.errors,
        )

    def validate(self, request: Request) -> None:
        """Raise what `submit` would raise for this request's own values."""
        length = len(request.prompt_ids)
        if not length:
            raise InvalidRequest("the prompt has no tokens; send at least one", field="prompt")
        if length >= self.max_context:
            raise PromptTooLong(
                f"the prompt has {length} tokens; this model's context here is {self.max_context}, "
                "one of which must be left for the answer",
                field="prompt",
            )
        for token in request.prompt_ids:
            if not 0 <= token < self.config.vocab_size:
                raise InvalidRequest(
                    f"token id {token} is outside the vocabulary of {self.config.vocab_size}", field="prompt"
                )
        _validate_sampling(request.sampling, self.config.vocab_size)

    # -- the loop's thread ---------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        torch.set_num_threads(self._settings.threads or cpu_limit())
        try:
            with torch.inference_mode():
                while self._wait():
                    self._turn()
        finally:
            self._stopping = True
            self._end_all(Finish("cancelled"))

    def _wait(self) -> bool:
        """Sleep until there is something to do; False when it is time to go."""
        with self._changed:
            while True:
                if self._stopping:
                    return False
                now = time.monotonic()
                if self._draining_until is not None and (not self._generations or now >= self._draining_until):
                    self._stopping = True
                    return False
                if self._inbox or self._has_work() or self._may_release() or self._late(now):
                    return True
                self._changed.wait(self._sleep_limit(now))

    def _has_work(self) -> bool:
        return bool(self._scheduler.running or self._scheduler.waiting)

    def _late(self, now: float) -> list[Generation]:
        return [
            item
            for item in self._generations.values()
            if item.request.deadline is not None and item.request.deadline <= now
        ]

    def _may_release(self) -> bool:
        return self._is_open() and any(generation.held for generation in self._generations.values())

    def _sleep_limit(self, now: float) -> float | None:
        """Until the next deadline, or the end of the grace; `hold` is somebody else's event and has to be looked at."""
        until = [item.request.deadline for item in self._generations.values() if item.request.deadline is not None]
        if self._draining_until is not None:
            until.append(self._draining_until)
        if self._generations and not self._is_open():
            until.append(now + _HOLD_POLL)
        return max(0.0, min(until) - now) if until else None

    def _turn(self) -> None:
        """One turn: the inbox, the deadlines, one step."""
        while self._inbox:
            self._inbox.popleft()()
        for generation in self._late(time.monotonic()):
            error = DeadlineExceeded("the request's deadline passed before it was finished; raise it or ask for less")
            self._end(generation, Finish("deadline", error=error))
        if self._may_release():
            self._release_held()
        step = Step()
        try:
            step = self._scheduler.schedule()
            if step.pieces:
                self._run(step)
        except Exception as exc:
            self._step_failed(step, exc)

    def _run(self, step: Step) -> None:
        started = time.monotonic()
        for piece in step.pieces:
            self._generations[piece.sequence.key].admitted()
        logits, owners = self._runner.run(step, every=self._wants_every)
        self._scheduler.finish(step)
        drawn = self._draw(logits, owners)
        prompt_tokens = sum(piece.count for piece in step.pieces if piece.start < piece.sequence.prompt_length)
        self._meter.step(time.monotonic() - started, len(step.pieces), prompt_tokens, drawn)

    def _wants_every(self, piece: Piece) -> bool:
        return self._generations[piece.sequence.key].wants_prompt_logprobs

    def _draw(self, logits: torch.Tensor, owners: list[tuple[Piece, slice]]) -> int:
        """Sample for every piece that draws, and send what became certain."""
        drawing = [(self._generations[piece.sequence.key], rows) for piece, rows in owners if piece.draws]
        for piece, rows in owners:
            if self._wants_every(piece):
                self._score(piece, logits[rows])
        if not drawing:
            return 0
        last = logits if len(drawing) == logits.shape[0] else logits[[rows.stop - 1 for _, rows in drawing]]
        sampled = sample(last, [generation.row for generation, _ in drawing])
        for (generation, _), token in zip(drawing, sampled, strict=True):
            event, finish = generation.push(token)
            if event is not None:
                self._send(generation, event)
            if finish is not None:
                self._end(generation, finish)
        return len(drawing)

    def _score(self, piece: Piece, logits: torch.Tensor) -> None:
        """Prompt logprobs: the logits of token i score token i + 1."""
        generation = self._generations[piece.sequence.key]
        targets = generation.request.prompt_ids[piece.start + 1 : piece.end + 1]
        top = generation.request.sampling.prompt_logprobs or 0
        generation.prompt_scored(token_logprobs(logits[: len(targets)], targets, top))

    def _send(self, generation: Generation, event: TokenEvent) -> None:
        if not self._is_open():
            generation.held.append(event)
            return
        generation.delivered = True
        self._call(generation, event)

    def _is_open(self) -> bool:
        return self._hold is None or self._hold.is_set()

    def _call(self, generation: Generation, event: TokenEvent) -> None:
        try:
            generation.deliver(event)
        except Exception:
            _log.exception(
                "%s: the receiver of request %s failed; the request is cancelled", self.name, event.request_id
            )
            if event.finish_reason is None:
                self.cancel(event.request_id)

    # -- ends ----------------------------------------------------------------------------------------------------------

    def _end_id(self, request_id: str, finish: Finish) -> None:
        generation = self._generations.get(request_id)
        if generation is not None:
            self._end(generation, finish)

    def _end(self, generation: Generation, finish: Finish) -> None:
        """The terminal event; an answer that is complete but held back waits for `hold` with its end."""
        self._scheduler.remove(generation.sequence)
        if finish.reason in ("stop", "length") and not self._is_open():
            generation.held.append(generation.last_event(finish))
            return
        self._close(generation, generation.last_event(finish))

    def _close(self, generation: Generation, event: TokenEvent) -> None:
        """Deliver the terminal event, unless another thread was first."""
        with self._changed:
            mine = self._generations.pop(generation.request.id, None) is generation
        if mine:
            self._meter.finished += 1
            self._meter.errors += event.finish_reason == "error"
            self._call(generation, event)

    def _end_all(self, finish: Finish) -> None:
        for generation in list(self._generations.values()):
            self._close(generation, generation.last_event(finish))

    def _release_held(self) -> None:
        for generation in list(self._generations.values()):
            held, generation.held = generation.held, []
            for event in held:
                if event.finish_reason is None:
                    generation.delivered = True
                    self._call(generation, event)
                else:
                    self._close(generation, event)

    def _restart(self) -> None:
        self._scheduler.restart_all()
        for generation in self._generations.values():
            if not generation.delivered:
                self._scheduler.remove(generation.sequence)
                generation.restart()
                self._scheduler.add(generation.sequence)

    def _step_failed(self, step: Step, exc: Exception) -> None:
        """End whoever was in the step; everybody else is computed again, since nobody knows what was written."""
        _log.exception("%s: a step of %d sequences failed", self.name, len(step.pieces))
        error = exc if isinstance(exc, ColdstreamError) else EngineError(f"the engine failed in a step: {exc!r}")
        affected = [piece.sequence.key for piece in step.pieces] or [item.key for item in self._scheduler.running]
        for key in affected:
            self._end_id(key, Finish("error", error=error))
        self._scheduler.restart_all()

    def _generation(self, request: Request, deliver: Deliver) -> Generation:
        self._arrivals += 1
        return Generation(
            request,
            deliver,
            tokenizer=self.tokenizer,
            stop_ids=self._stop_ids,
            max_context=self.max_context,
            arrival=self._arrivals,
        )


def _block_count(config: AttentionConfig, settings: EngineSettings, dtype: torch.dtype, context: int) -> int:
    """Blocks that the memory budget buys, but no more than all sequences together can ever use."""
    each = bytes_per_block(config, BLOCK_SIZE, dtype)
    budget = settings.kv_bytes
    if budget is None:
        available = memory_available()
        budget = int(available * _MEMORY_SHARE) if available is not None else _FALLBACK_KV_BYTES
    useful = settings.max_sequences * -(-context // BLOCK_SIZE) + 1
    count = min(budget // each, useful)
    if count < 2:
        raise InvalidRequest(
            f"engine.kv_bytes = {budget} holds {count} blocks of {BLOCK_SIZE} tokens; each takes {each} bytes, "
            "and two is the least",
            field="kv_bytes",
        )
    return count


def _validate_sampling(params: SamplingParams, vocab_size: int) -> None:
    checks: tuple[tuple[str, bool, str], ...] = (
        ("max_tokens", params.max_tokens >= 1, "at least 1"),
        ("temperature", 0.0 <= params.temperature <= 100.0, "between 0 and 100"),
        ("top_p", 0.0 < params.top_p <= 1.0, "above 0 and at most 1"),
        ("top_k", params.top_k >= 0, "0 (off) or more"),
        ("min_p", 0.0 <= params.min_p <= 1.0, "between 0 and 1"),
        ("repetition_penalty", 0.0 < params.repetition_penalty <= 100.0, "above 0 and at most 100"),
        ("presence_penalty", -100.0 <= params.presence_penalty <= 100.0, "between -100 and 100"),
        ("frequency_penalty", -100.0 <= params.frequency_penalty <= 100.0, "between -100 and 100"),
        ("seed", params.seed is None or -(1 << 63) <= params.seed < 1 << 64, "a 64-bit whole number"),
        ("logprobs", params.logprobs is None or 0 <= params.logprobs <= MAX_LOGPROBS, f"between 0 and {MAX_LOGPROBS}"),
        (
            "prompt_logprobs",
            params.prompt_logprobs is None or 0 <= params.prompt_logprobs <= MAX_LOGPROBS,
            f"between 0 and {MAX_LOGPROBS}",
        ),
        (
            "logit_bias",
            all(0 <= token < vocab_size and -100.0 <= bias <= 100.0 for token, bias in params.logit_bias),
            f"token ids below {vocab_size} with values between -100 and 100",
        ),
    )
    for name, is_right, allowed in checks:
        if not is_right:
            raise InvalidRequest(f"{name} = {getattr(params, name)!r}; allowed: {allowed}", field=name)
