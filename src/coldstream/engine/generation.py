"""One request on its way: tokens in, events out. Everything about a request that is not about blocks or batches."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field, replace

from coldstream.backends.protocol import Logprob, Sampled, SamplingRow
from coldstream.engine.alternatives import Alternatives, Spelling, named
from coldstream.engine.grammar import Matcher
from coldstream.engine.kvcache.blocks import Chain, Mark
from coldstream.engine.request import Deliver, FinishReason, Request, TokenEvent, TokenLogprob, Usage
from coldstream.engine.scheduler import Piece, Sequence
from coldstream.engine.tokenizer.detokenize import Detokenizer, StopStrings
from coldstream.engine.tokenizer.tokenizer import Tokenizer
from coldstream.engine.vision.encoder import PlacedImage
from coldstream.errors import ColdstreamError


@dataclass(frozen=True, slots=True)
class Finish:
    """Why a request ended; `stop_match` is the stop string or token id, `error` what went wrong."""

    reason: FinishReason
    stop_match: str | int | None = None
    error: ColdstreamError | None = None


@dataclass(slots=True)
class _Unsent:
    """Tokens whose text is not certain yet."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)


class Generation:
    """A request's sampling state, text and usage; `sequence` is its place in the schedule.

    `prompt_tokens` is what usage says of the prompt; an engine that expands images itself sets it anew.
    """

    def __init__(
        self,
        request: Request,
        deliver: Deliver,
        *,
        tokenizer: Tokenizer,
        stop_ids: frozenset[int],
        max_context: int,
        matcher: Callable[[], Matcher] | None = None,
    ) -> None:
        params = request.sampling
        self.request = request
        self.deliver = deliver
        self.prompt_tokens = len(request.prompt_ids)
        self.submitted = time.monotonic()
        self.was_seen = False
        self.is_closed = False
        self.held: list[TokenEvent] = []
        self._tokenizer = tokenizer
        self._new_matcher = matcher
        self._handing_over = threading.RLock()  # a receiver may cancel what it receives
        self._seed = params.seed if params.seed is not None else secrets.randbits(63)
        self._stop_ids = params.stop_token_ids | (frozenset() if params.ignore_eos else stop_ids)
        self._first_token_at: float | None = None
        self._admitted_at: float | None = None
        prompt = list(request.prompt_ids)
        self.sequence = Sequence(
            key=request.id,
            tokens=prompt,
            prompt_length=len(prompt),
            max_length=min(len(prompt) + params.max_tokens, max_context),
            arrival=0,
            deadline=request.deadline,
            share_prefix=params.prompt_logprobs is None,
            is_scored=params.prompt_logprobs is not None,
            images=[PlacedImage(image, request.salt) for image in request.images],
        )
        self._start()

    def hand_over(self, event: TokenEvent) -> None:
        """Give the event to the receiver, unless it has had the last one already."""
        with self._handing_over:
            if self.is_closed:
                return
            self.was_seen = True
            self.is_closed = event.finish_reason is not None
            self.deliver(event)

    def restart(self) -> None:
        """Back to the prompt: what was drawn so far came from weights that were replaced, and was not delivered."""
        del self.sequence.tokens[self.sequence.prompt_length :]
        for placed in self.sequence.images:
            placed.vectors = None
        self.held.clear()
        self._first_token_at = None
        self._start()

    def _start(self) -> None:
        request = self.request
        marks = tuple(Mark(item.start, item.end, item.digest) for item in request.images)
        self.sequence.chain = Chain(marks, request.salt)
        self.row = SamplingRow(request.sampling, self._seed, request.prompt_ids)
        self._matcher = self._new_matcher() if self._new_matcher is not None else None
        self._text: Detokenizer | None = None
        self._stops = StopStrings(request.sampling.stop, self._tokenizer.special_texts)
        self._characters = 0
        self._unsent = _Unsent()
        self._prompt_logprobs: list[TokenLogprob | None] = []
        self._spellings: dict[int, Spelling] = {}  # alternatives come again and again

    @property
    def scores_prompt(self) -> bool:
        """Whether logits of every prompt token are needed (echo scoring)."""
        return self.request.sampling.prompt_logprobs is not None and self.row.position == 0

    @property
    def is_seen(self) -> bool:
        """Whether the vision tower has looked at all of its images."""
        return all(placed.vectors is not None for placed in self.sequence.images)

    @property
    def completion_tokens(self) -> int:
        """Tokens drawn so far, a stop token included."""
        return self.row.position

    def computing(self, piece: Piece) -> None:
        """A piece of it is about to be computed; the grammar's next mask is made meanwhile."""
        self.admitted(time.monotonic())
        if self._matcher is not None and piece.draws:
            self._matcher.prepare()

    def admitted(self, at: float) -> None:
        """Its first step began at `at`, on the `time.monotonic()` clock; only the first call counts."""
        if self._admitted_at is None:
            self._admitted_at = at

    def constrain(self) -> None:
        """Tell the sampler what the grammar allows next."""
        if self._matcher is not None:
            self.row.allowed = self._matcher.allowed

    def prompt_scored(self, start: int, scored: Items[Logprob]) -> None:
        """Log probabilities of the prompt's tokens behind token `start`; they come again when it is computed again."""
        if not self._prompt_logprobs:
            self._prompt_logprobs.append(None)
        del self._prompt_logprobs[start + 1 :]
        self._tokenizer.learn([token for item in scored for token in _tokens(item)])
        self._prompt_logprobs += [self._named(item) for item in scored]

    def push(self, sampled: Sampled) -> tuple[TokenEvent | None, Finish | None]:
        """Take the next token; the event that it makes possible, and why the request ends here, if it does."""
        if self._first_token_at is None:
            self._first_token_at = time.monotonic()
        self.row.drawn(sampled.token_id)
        if sampled.token_id in self._stop_ids:
            return None, Finish("stop", stop_match=sampled.token_id)
        if self._matcher is not None:
            self._matcher.consume(sampled.token_id)
        self.sequence.tokens.append(sampled.token_id)
        self._unsent.token_ids.append(sampled.token_id)
        if sampled.logprob is not None:
            self._tokenizer.learn(_tokens(sampled.logprob))
            self._unsent.logprobs.append(self._named(sampled.logprob, self._characters))
        matched = self._stops.push(self._counted(self._detokenizer().push(sampled.token_id)))
        if matched.stop is not None:
            return self._maybe_event(matched.text), Finish("stop", stop_match=matched.stop)
        event = self._maybe_event(matched.text)
        if self._matcher is not None and self._matcher.is_complete:
            return event, Finish("stop")
        if (
            self.row.position >= self.request.sampling.max_tokens
            or len(self.sequence.tokens) >= self.sequence.max_length
        ):
            return event, Finish("length")
        return event, None

    def last_event(self, finish: Finish) -> TokenEvent:
        """The terminal event, with the text that was held back."""
        text = ""
        if finish.reason in ("stop", "length") and not isinstance(finish.stop_match, str):
            matched = self._stops.push(self._text.flush() if self._text is not None else "")
            text = matched.text + self._stops.flush()
            if matched.stop is not None:
                finish = Finish("stop", stop_match=matched.stop)
        return self._event(text, finish)

    def _maybe_event(self, text: str) -> TokenEvent | None:
        return self._event(text) if text else None

    def _event(self, text: str, finish: Finish | None = None) -> TokenEvent:
        unsent, self._unsent = self._unsent, _Unsent()
        scored, self._prompt_logprobs = self._prompt_logprobs, []
        return TokenEvent(
            request_id=self.request.id,
            text=text,
            token_ids=tuple(unsent.token_ids),
            logprobs=tuple(unsent.logprobs),
            prompt_logprobs=tuple(scored),
            finish_reason=finish.reason if finish else None,
            stop_match=finish.stop_match if finish else None,
            usage=self._usage() if finish else None,
            error=finish.error if finish else None,
        )

    def _usage(self) -> Usage:
        now = time.monotonic()
        first = self._first_token_at
        return Usage(
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.sequence.first_cached or 0,
            completion_tokens=self.completion_tokens,
            queued_seconds=(self._admitted_at or now) - self.submitted,
            first_token_seconds=first - self.submitted if first is not None else None,
            total_seconds=now - self.submitted,
        )

    def _detokenizer(self) -> Detokenizer:
        """Made with the first token, on the engine's thread: its context asks for names of tokens."""
        if self._text is None:
            shown = {number: self._tokenizer.token_text(number) for number in self.request.sampling.shown_tokens}
            written = {**self._stops.marks, **shown}
            self._text = Detokenizer(self._tokenizer, self.request.prompt_ids, written=written)
        return self._text

    def _counted(self, text: str) -> str:
        self._characters += len(self._stops.visible(text))
        return text

    def _named(self, item: Logprob, offset: int = 0) -> TokenLogprob:
        for token in _tokens(item):
            if token not in self._spellings:
                raw = self._tokenizer.token_bytes(token)
                self._spellings[token] = raw, raw.decode(errors="replace")
        own = named(item.token_id, item.logprob, self._spellings)
        return replace(own, top=Alternatives(item.top, self._spellings) if item.top else (), offset=offset)


def _tokens(item: Logprob) -> list[int]:
    return [item.token_id, *(token for token, _ in item.top)]
