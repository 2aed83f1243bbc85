"""One request from admission to its last event: admit, wait for the model, tokenize, submit, follow.

/generate and the OpenAI routes differ in what they read and write; what happens in between is here, once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from coldstream.engine.request import (
    FinishReason,
    Grammar,
    PromptImage,
    Request,
    SamplingParams,
    TokenEvent,
    TokenLogprob,
    Usage,
)
from coldstream.engine.sampling import Given, resolve
from coldstream.errors import ColdstreamError, DeadlineExceeded, EngineError, InvalidRequest, NotReady, PromptTooLong
from coldstream.serve.images.decode import ImageLoader, ImageSource, Picture
from coldstream.serve.middleware.record import RequestRecord
from coldstream.serve.observe.metrics import Metrics, ModelMetrics
from coldstream.serve.requests.admission import MOST_SCORES, AdmissionGate, Ticket
from coldstream.serve.requests.event_bridge import Bridge, Stream
from coldstream.serve.state import Lifecycle, ServedModel, ServerState
from coldstream.settings import SamplingSettings

Encode = Callable[[ServedModel], list[list[int]]]
Constrain = Callable[[ServedModel], Grammar | None]

_LONG = 16384
"""Characters from which on a prompt waits for the other long ones, and short ones do not wait for it."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked of a model. Once its tokenizer is there, `encode` makes the prompts' ids, and `grammar` what the
    output must obey.

    `characters` is the size of what it will encode, `longest` of its longest prompt (None: all of it is one), `samples`
    how often each prompt is answered. With `fill_context` a request that sets no max_tokens may use the whole context;
    else the model's own default holds. `images` are those of the only prompt, in order. `shows` are control tokens that
    the answer's text is to name.
    """

    model: ServedModel
    encode: Encode
    given: Given
    characters: int
    grammar: Constrain | None = None
    samples: int = 1
    prompts: int = 1
    fill_context: bool = False
    task: SamplingSettings = field(default_factory=SamplingSettings)
    images: tuple[ImageSource, ...] = ()
    longest: int | None = None
    shows: tuple[str, ...] = ()

    @property
    def sequences(self) -> int:
        """How many sequences run for it."""
        return self.prompts * self.samples


@dataclass(slots=True)
class Result:
    """One finished sequence."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage = field(default_factory=Usage)

    def add(self, event: TokenEvent) -> None:
        """Take the sequence's next event."""
        self.text += event.text
        self.token_ids += event.token_ids
        self.logprobs += event.logprobs
        self.prompt_logprobs = event.prompt_logprobs or self.prompt_logprobs
        if event.finish_reason is not None:
            self.finish_reason = event.finish_reason
            self.usage = event.usage or Usage()


def timings(usage: Usage) -> dict[str, float | None]:
    """The engine's own times of a sequence, in seconds from submit; tokens a second after the first one."""
    first, total = usage.first_token_seconds, usage.total_seconds
    rate = (usage.completion_tokens - 1) / (total - first) if first is not None and total > first else None
    return {
        "queued_seconds": usage.queued_seconds,
        "first_token_seconds": first,
        "total_seconds": total,
        "tokens_per_second": rate,
    }


@dataclass(frozen=True, slots=True)
class Running:
    """A submitted job. `prompt_ids[i]` belongs to sequences `i * samples` to `(i + 1) * samples - 1`."""

    job: Job
    prompt_ids: list[list[int]]
    sampling: SamplingParams
    events: AsyncIterator[Sequence[tuple[int, TokenEvent]]]

    async def collect(self) -> list[Result]:
        """Follow every sequence to its end."""
        results = [Result() for _ in range(self.job.sequences)]
        async for batch in self.events:
            for index, event in batch:
                results[index].add(event)
        return results


class Inference:
    """Runs jobs for an application: one gate for each model, one bridge from the engines' threads."""

    def __init__(self, state: ServerState, metrics: Metrics) -> None:
        server, engine = state.settings.server, state.settings.engine
        self._state = state
        self._metrics = metrics
        self._is_salted = state.keys.several and not server.shared_prefixes
        self._bridge = Bridge()
        self._encoders = Encoders()
        # Waiting for a grammar to be compiled, one after the other; so many that those which are compiled need not.
        self._grammars = ThreadPoolExecutor(16, thread_name_prefix="coldstream-grammar-wait")
        self.images = ImageLoader(state.settings.images, state.workers)
        self.gates = {
            name: AdmissionGate(
                running=engine.max_sequences,
                max_queue=server.max_queue,
                max_queue_tokens=server.max_queue_tokens,
                share=server.client_share if state.keys.several or not state.keys.required else 1.0,
            )
            for name in state.models
        }

    @asynccontextmanager
    async def start(self, job: Job, record: RequestRecord) -> AsyncIterator[Running]:
        """Bring a job to its engine; leaving the block, for whatever reason, ends its work and gives back its place.

        Raises:
            TooManyRequests, NotReady: no place in the queue; the server closes; the model could not be loaded.
            PromptTooLong, InvalidRequest: from tokenizing.
            DeadlineExceeded: the request's time is up, here or later from `Running.events`.
        """
        model, lifecycle = job.model, self._state.lifecycle
        deadline = time.monotonic() + self._state.settings.server.request_timeout
        record.model = model.name
        if lifecycle.closing:
            raise closing()
        with self.gates[model.name].enter(
            job.sequences, loading=None if model.is_ready else model.retry_after(), caller=record.caller
        ) as ticket:
            await _ready(model, lifecycle, deadline)
            pictures = await self._pictures(job, deadline)
            prompt_ids = await self._encoders.encode(job)
            images = model.images.place(prompt_ids[0], pictures) if model.images is not None and pictures else ()
            sampling = _sampling(job, prompt_ids, await _constrain(job))
            ticket.hold(_scores(job, prompt_ids, sampling))
            ticket.claim(_cost(job, prompt_ids, sampling))
            salt = record.caller if self._is_salted else b""
            requests = _requests(job, prompt_ids, sampling, record.request_id, deadline, images, salt)
            stream = self._bridge.open(len(requests), partial(_cancel, model, requests), partial(_give_back, ticket))
            lifecycle.streams.add(stream)
            try:
                record.submitted = time.time_ns()
                await self._submit(model, requests, stream, deadline)
                follower = _Follower(stream, ticket.started, self._metrics.of(model.name), record, deadline)
                yield Running(job, prompt_ids, sampling, follower.batches())
            finally:
                lifecycle.streams.discard(stream)
                stream.cancel()

    async def _pictures(self, job: Job, deadline: float) -> Sequence[Picture]:
        """The job's images as this model takes them; nothing is fetched or decoded for one that takes none."""
        if not job.images:
            return ()
        if job.model.images is None:
            field = job.images[0].field
            raise InvalidRequest(f"{field}: model {job.model.name!r} takes text only; leave the image out", field=field)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await self.images.load(job.images, job.model.images.processor)
        except TimeoutError as exc:
            raise DeadlineExceeded("the request's deadline passed while its images were read") from exc

    async def _submit(self, model: ServedModel, requests: Sequence[Request], stream: Stream, deadline: float) -> None:
        """To the engine; where there is a grammar, which may have to be compiled, not on the event loop."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                for index, request in enumerate(requests):
                    if request.sampling.grammar is None:
                        model.engine.submit(request, stream.deliver(index))
                    else:
                        await loop.run_in_executor(self._grammars, model.engine.submit, request, stream.deliver(index))
        except TimeoutError as exc:
            raise DeadlineExceeded("the request's deadline passed while its grammar was compiled") from exc


class _Follower:
    """Reads a stream to its end, measuring; turns the ends that are errors into errors."""

    def __init__(
        self, stream: Stream, started: Callable[[], None], metrics: ModelMetrics, record: RequestRecord, deadline: float
    ) -> None:
        self._stream = stream
        self._started = started
        self._metrics = metrics
        self._record = record
        self._deadline = deadline
        self._last: float | None = None

    async def batches(self) -> AsyncIterator[Sequence[tuple[int, TokenEvent]]]:
        while not self._stream.finished:
            batch = await self._stream.take(self._deadline)
            self._measure(batch)
            bad = next((place for place, (_, event) in enumerate(batch) if event.finish_reason in _BAD_ENDS), None)
            if bad != 0:
                yield batch[:bad]
            if bad is not None:
                raise _bad_end(batch[bad][1])

    def _measure(self, batch: Sequence[tuple[int, TokenEvent]]) -> None:
        now = time.monotonic()
        tokens = sum(len(event.token_ids) for _, event in batch)
        if tokens and self._last is None:
            self._started()
        elif tokens and self._last is not None:
            self._metrics.gap(now - self._last, tokens)
        if tokens:
            self._last = now
        for _, event in batch:
            if event.finish_reason is not None:
                self._metrics.end(event)
                self._record.end(event)


def closing() -> NotReady:
    """The answer to new work while the server shuts down: another instance will do it."""
    return NotReady("the server is shutting down; ask again, another instance will answer", retry_after=1.0)


async def _ready(model: ServedModel, lifecycle: Lifecycle, deadline: float) -> None:
    """Wait for the model, but no longer than the request's deadline or the server's own end."""
    if model.is_ready:
        return
    loading = asyncio.ensure_future(model.ready())
    ending = asyncio.ensure_future(lifecycle.ended.wait())
    try:
        await asyncio.wait({loading, ending}, timeout=deadline - time.monotonic(), return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
        elif ending.done():
            raise closing()
        else:
            raise DeadlineExceeded(f"model {model.name!r} was still loading when the request's deadline passed")
    finally:
        loading.cancel()
        ending.cancel()


class Encoders:
    """Threads on which prompts are made and tokenized: never the event loop's, and not one for all.

    Long prompts take turns on one thread, so that neither short ones nor what else the server does waits for them.
    """

    def __init__(self) -> None:
        self._short = ThreadPoolExecutor(2, thread_name_prefix="coldstream-encode")
        self._long = ThreadPoolExecutor(1, thread_name_prefix="coldstream-encode-long")

    async def encode(self, job: Job) -> list[list[int]]:
        """The ids of the job's prompts.

        Raises:
            PromptTooLong: a prompt has more characters than the context can hold, whatever they are.
            InvalidRequest: from the tokenizer or the chat template.
        """
        executor = self._short if job.characters < _LONG else self._long
        loop = asyncio.get_running_loop()
        if executor is self._long:
            # On the other thread: what is refused need not wait for what is not.
            await loop.run_in_executor(self._short, _check_length, job)
        return await loop.run_in_executor(executor, job.encode, job.model)


def _check_length(job: Job) -> None:
    longest = job.characters if job.longest is None else job.longest
    limit = job.model.tokenizer.longest_text(job.model.max_context)
    if limit is not None and longest > limit:
        raise PromptTooLong(
            f"the prompt has {longest} characters, but the model's context holds {job.model.max_context} tokens, which "
            f"are {limit} characters at most",
            field="prompt",
        )


async def _constrain(job: Job) -> Grammar | None:
    return None if job.grammar is None else await asyncio.to_thread(job.grammar, job.model)


def _sampling(job: Job, prompt_ids: list[list[int]], grammar: Grammar | None) -> SamplingParams:
    limit = job.model.max_context
    longest = max(map(len, prompt_ids))
    if not min(map(len, prompt_ids)):
        raise InvalidRequest("the prompt is empty: there is no token to begin with", field="prompt")
    wanted = job.given.get("max_tokens")
    room = limit - longest
    if room < (0 if wanted == 0 else 1):
        message = f"the prompt has {longest} tokens, but the context of model {job.model.name!r} holds {limit}"
        raise PromptTooLong(f"{message}, of which one must be left for the answer", field="prompt")
    given = {**job.given, "grammar": grammar}
    if wanted is None and job.task.max_tokens is None and job.fill_context:
        given["max_tokens"] = _filling(job, room)
    sampling = resolve(job.model.defaults, job.task, given, room=room)
    known = job.model.tokenizer.special_texts if job.shows else {}
    return replace(sampling, shown_tokens=frozenset(known[name] for name in job.shows if name in known))


def _filling(job: Job, room: int) -> int:
    """The whole room; with log probabilities no more of it than so many are held."""
    best = job.given.get("logprobs")
    return room if best is None else max(1, min(room, MOST_SCORES // (job.sequences * (1 + best))))


def _cost(job: Job, prompt_ids: list[list[int]], sampling: SamplingParams) -> int:
    """How many prompt tokens count as waiting: one that is scored takes the logits of a draw, and names of its best."""
    tokens = sum(map(len, prompt_ids)) * job.samples
    best = sampling.prompt_logprobs
    return tokens if best is None else tokens * (2 + best // 10)


def _scores(job: Job, prompt_ids: list[list[int]], sampling: SamplingParams) -> int:
    """How many log probabilities the whole answer may hold: they are in memory until it was sent.

    Raises:
        InvalidRequest: more than are held for one request.
    """
    counted = (
        ("echo scores", sum(map(len, prompt_ids)) * job.samples, sampling.prompt_logprobs, "send fewer prompts"),
        ("the answers have", sampling.max_tokens * job.sequences, sampling.logprobs, "lower max_tokens or n"),
    )
    found = 0
    for what, tokens, best, advice in counted:
        if best is None:
            continue
        found += tokens * (1 + best)
        if found > MOST_SCORES:
            message = f"{what} up to {tokens} tokens, {1 + best} log probabilities each; at most {MOST_SCORES:,} are "
            raise InvalidRequest(f"{message}given: {advice}, or ask for fewer of them", field="logprobs")
    return found


def _give_back(ticket: Ticket, event: TokenEvent) -> None:
    """Generation has ended: the place is free, however slowly its answer is read."""
    if event.finish_reason not in _BAD_ENDS:
        ticket.finished()
    ticket.leave()


def _requests(
    job: Job,
    prompt_ids: list[list[int]],
    sampling: SamplingParams,
    request_id: str,
    deadline: float,
    images: tuple[PromptImage, ...],
    salt: bytes,
) -> list[Request]:
    """Samples of one prompt with a given seed must differ, and be the same next time: each adds its number."""
    requests = []
    for index in range(job.sequences):
        sample = index % job.samples
        params = sampling if sampling.seed is None or not sample else _reseeded(sampling, sample)
        ids = tuple(prompt_ids[index // job.samples])
        requests.append(Request(f"{request_id}-{index}", ids, params, deadline, images, salt))
    return requests


def _reseeded(sampling: SamplingParams, sample: int) -> SamplingParams:
    seed = (sampling.seed or 0) + sample
    return replace(sampling, seed=seed if seed < 2**63 else seed - 2**64)


def _cancel(model: ServedModel, requests: Sequence[Request]) -> None:
    for request in requests:
        model.engine.cancel(request.id)


_BAD_ENDS = ("error", "deadline", "cancelled")


def _bad_end(event: TokenEvent) -> ColdstreamError:
    if event.finish_reason == "deadline":
        return DeadlineExceeded("the request's deadline passed before it was finished")
    if event.finish_reason == "cancelled":
        return closing()
    return event.error or EngineError("generating failed")
