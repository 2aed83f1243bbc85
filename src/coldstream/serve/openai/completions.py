"""POST /v1/completions, with what scores a text: echo and logprobs, as lm-eval's loglikelihood asks for them."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, cast

from starlette.responses import Response

from coldstream.engine.request import Grammar, TokenEvent
from coldstream.errors import ColdstreamError, InvalidRequest
from coldstream.serve.api import generate, sse
from coldstream.serve.api.tasks import render
from coldstream.serve.middleware import errors as failures
from coldstream.serve.middleware.record import RequestRecord
from coldstream.serve.openai import logprobs
from coldstream.serve.openai.common import Envelope, NamedTarget, Streamed, envelope, sampling, scores, target, usage
from coldstream.serve.openai.constraint import constraint
from coldstream.serve.openai.schema import CompletionRequest
from coldstream.serve.requests.inference import Inference, Job, Result, Running
from coldstream.serve.state import ServedModel, ServerState
from coldstream.settings import TaskSettings

PATH = "/v1/completions"
_MAX_TOKENS = 16
"""OpenAI's default for this endpoint."""


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt that is given back: its text, the bytes of its tokens, and the characters at which they begin."""

    text: str = ""
    spelled: Sequence[bytes] = ()
    places: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class AskedCompletion:
    """A completion request that has been understood."""

    body: CompletionRequest
    target: NamedTarget
    prompts: tuple[str | tuple[int, ...], ...]
    grammar: Grammar | None

    @property
    def max_tokens(self) -> int | None:
        """What the request says; None leaves it to the task, where there is one that says something."""
        if self.body.max_tokens is not None:
            return self.body.max_tokens
        return None if self.target.sampling.max_tokens is not None else _MAX_TOKENS

    @property
    def scores(self) -> bool:
        """Whether this only scores its prompt. Its one token is then a token like any other, also one that ends texts:
        clients cut the last one off, and would else cut off the prompt's.
        """
        return bool(self.body.echo and self.body.logprobs is not None and self.max_tokens in (0, 1))

    def job(self) -> Job:
        """What the model is to do. The engine draws at least one token; with `max_tokens` 0 it is left out."""
        body = self.body
        given = sampling(body) | {
            "max_tokens": self.max_tokens if self.max_tokens is None else max(self.max_tokens, 1),
            "logprobs": body.logprobs,
            "prompt_logprobs": body.logprobs if body.echo else None,
        }
        if self.scores:
            given["ignore_eos"] = True
        return Job(
            model=self.target.model,
            encode=lambda model: [encode(model, self.target.task, prompt, body) for prompt in self.prompts],
            given=given,
            grammar=(lambda model: self.grammar) if self.grammar is not None else None,
            characters=sum(map(len, self.prompts)),
            samples=body.n or 1,
            prompts=len(self.prompts),
            longest=max(map(len, self.prompts)),
            task=self.target.sampling,
        )

    def echoed(self, running: Running, place: int) -> Echo:
        """What is given back of a prompt. Asks the tokenizer: not for an event loop."""
        tokenizer, ids = self.target.model.tokenizer, running.prompt_ids[place]
        prompt = self.prompts[place]
        if isinstance(prompt, str) and self.target.task is None:
            text, given = prompt, True
        else:
            text, given = tokenizer.decode(ids, skip_special_tokens=False), False
        if self.body.logprobs is None:
            return Echo(text)
        spelled = [tokenizer.token_bytes(number) for number in ids]
        return Echo(text, spelled, tokenizer.offsets(text) if given else _places(spelled, text))


def _places(spelled: Sequence[bytes], text: str) -> list[int]:
    """The characters at which tokens begin in the text that they were decoded to, which may lack a leading blank."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    ends = list(accumulate(len(decoder.decode(part)) for part in spelled))
    missing = max(0, ends[-1] + len(decoder.decode(b"", True)) - len(text))
    return [max(0, place - missing) for place in (0, *ends[:-1])]


def understand(state: ServerState, body: CompletionRequest) -> AskedCompletion:
    """Everything that can be refused before a tokenizer is there.

    Raises:
        UnknownTask, InvalidRequest: naming the field.
    """
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream = true", field="stream_options")
    found, prompts = target(state, body), _prompts(body)
    if found.task is not None and not all(isinstance(prompt, str) for prompt in prompts):
        raise InvalidRequest(f"task {found.task.name!r} needs its prompt as text, not as token ids", field="prompt")
    return AskedCompletion(body, found, prompts, constraint(body))


async def complete(
    state: ServerState, inference: Inference, body: CompletionRequest, record: RequestRecord
) -> Response:
    """Answer the request."""
    asked = understand(state, body)
    record.task = asked.target.task.name if asked.target.task else None
    if state.settings.server.log_prompts:
        record.prompt = str(body.prompt)
    if body.stream:
        return await sse.opened(_frames(asked, inference, record))
    async with inference.start(asked.job(), record) as running:
        results = await running.collect()
        writers = await _writers(asked, running)
    frame = envelope("cmpl", "text_completion", body.model, asked.target.model)

    def written() -> bytes:
        choices = [writer.whole(result) for writer, result in zip(writers, results, strict=True)]
        return sse.dumps_long(frame.wrap(choices, usage=_usage(asked, running, results)))

    return sse.json_reply(await sse.made(scores(results, body.logprobs), written))


def encode(
    model: ServedModel, task: TaskSettings | None, prompt: str | tuple[int, ...], body: CompletionRequest
) -> list[int]:
    """The prompt's ids: given, encoded as they stand, or put into the task's template."""
    if isinstance(prompt, tuple):
        return list(prompt)
    if task is None:
        return model.tokenizer.encode(prompt)
    rendered = render(task, prompt if task.prompt_input in task.variables else None, body.inputs or {})
    if rendered.images:
        message = f"task {task.name!r} takes images; ask it through /v1/chat/completions or /generate"
        raise InvalidRequest(message, field="model")
    return generate.encode(model, rendered)


def _prompts(body: CompletionRequest) -> tuple[str | tuple[int, ...], ...]:
    prompt = body.prompt
    if isinstance(prompt, str):
        return (prompt,)
    if isinstance(prompt[0], int):
        return (_ids(prompt),)
    return tuple(_ids(item) if isinstance(item, list) else str(item) for item in prompt)


def _ids(prompt: Sequence[object]) -> tuple[int, ...]:
    return cast(tuple[int, ...], tuple(prompt))  # the schema says that one id is followed by ids alone


def _usage(asked: AskedCompletion, running: Running, results: Sequence[Result]) -> dict[str, Any]:
    return usage(running.job, results, completion_tokens=0 if asked.max_tokens == 0 else None)


class _Writer:
    """Turns one sequence's events into its choice, whole or piece by piece."""

    def __init__(self, asked: AskedCompletion, index: int, echo: Echo) -> None:
        self._asked = asked
        self._index = index
        self._silent = asked.max_tokens == 0
        self._echo = echo
        self._begun = False
        self.result = Result()

    def whole(self, result: Result) -> dict[str, Any]:
        """The choice of an answer."""
        self.result = result
        event = TokenEvent(
            "",
            text=result.text,
            logprobs=tuple(result.logprobs),
            prompt_logprobs=result.prompt_logprobs,
            finish_reason=result.finish_reason,
        )
        return self._choice(event)

    def chunk(self, event: TokenEvent) -> dict[str, Any] | None:
        """The choice of a chunk; None when the event says nothing."""
        self.result.add(event)
        silent = not (event.text or event.logprobs or event.prompt_logprobs or event.finish_reason)
        return None if silent else self._choice(event)

    def _choice(self, event: TokenEvent) -> dict[str, Any]:
        first, self._begun = not self._begun, True
        text = (self._echo.text if first else "") + ("" if self._silent else event.text)
        return {
            "index": self._index,
            "text": text,
            "logprobs": self._logprobs(event, first),
            "finish_reason": "length" if self._silent and event.finish_reason else event.finish_reason,
        }

    def _logprobs(self, event: TokenEvent, first: bool) -> dict[str, Any] | None:
        if self._asked.body.logprobs is None:
            return None
        drawn = () if self._silent else event.logprobs
        before, written = len(self._echo.text), len(self.result.text)
        # A token whose text was cut off at a stop string begins where the text ends.
        offsets = [before + min(item.offset, written) for item in drawn]
        if not first or not self._asked.body.echo:
            return logprobs.completion(drawn, offsets)
        scored = event.prompt_logprobs or [None] * len(self._echo.spelled)
        return logprobs.completion((*scored, *drawn), (*self._echo.places, *offsets), self._echo.spelled)


def _written(
    batch: Sequence[tuple[int, TokenEvent]], writers: Sequence[_Writer], frame: Envelope, counted: Streamed
) -> bytes:
    """The events of a batch; empty where they say nothing."""
    made = [writers[index].chunk(event) for index, event in batch]
    return b"".join(sse.frame(frame.wrap([choice], **counted.beside())) for choice in made if choice is not None)


async def _writers(asked: AskedCompletion, running: Running) -> list[_Writer]:
    echoes = [Echo() for _ in running.prompt_ids]
    if asked.body.echo:
        echoes = await asyncio.to_thread(lambda: [asked.echoed(running, place) for place in range(len(echoes))])
    return [_Writer(asked, index, echoes[index // running.job.samples]) for index in range(running.job.sequences)]


async def _frames(asked: AskedCompletion, inference: Inference, record: RequestRecord) -> AsyncGenerator[bytes, None]:
    begun = False
    try:
        async with AsyncExitStack() as stack:
            running = await stack.enter_async_context(inference.start(asked.job(), record))
            frame: Envelope = envelope("cmpl", "text_completion", asked.body.model, asked.target.model)
            writers = await _writers(asked, running)
            counted = Streamed(asked.body.stream_options, running, [writer.result for writer in writers])
            async for batch in running.events:
                echoed = sum(len(event.prompt_logprobs) for _, event in batch) * (1 + (asked.body.logprobs or 0))
                pieces = await sse.made(echoed, partial(_written, batch, writers, frame, counted))
                if pieces:
                    yield pieces
                    begun = True
            if counted.is_wanted:
                yield sse.frame(frame.wrap([], usage=_usage(asked, running, counted.results)))
    except ColdstreamError as error:
        if not begun:
            raise
        record.error = type(error).__name__
        yield sse.frame(failures.body(error, PATH))
    yield sse.DONE
