"""A model as production loads it, and questions to its engine that return when all are answered."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from coldstream.engine.request import Request, SamplingParams, TokenEvent
from coldstream.errors import ColdstreamError
from coldstream.loading.loaded_model import LoadedModel
from coldstream.loading.loader import load
from coldstream.settings import Device, EngineSettings, ModelSettings, Precision, Settings


@dataclass(slots=True)
class Answered:
    """One answer: its ids, and when each came, on `time.monotonic()`'s clock.

    Log probabilities, in nats, where they were asked for: of its ids, and of the prompt's behind the first.
    """

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    prompt_logprobs: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    first_seconds: float = 0.0
    error: ColdstreamError | None = None


@contextmanager
def serving(
    folder: str,
    *,
    device: Device,
    precision: Precision,
    max_sequences: int = 64,
    step_tokens: int = 2048,
    graphs: bool = True,
) -> Iterator[LoadedModel]:
    """The engine of a checkpoint's folder, ready; it is closed behind it."""
    model = ModelSettings("bench", folder, engine="native", device=device, precision=precision)
    engine = EngineSettings(
        max_sequences=max_sequences, step_tokens=step_tokens, prefix_cache=False, cuda_graphs=graphs
    )
    loaded = asyncio.run(load(model, Settings(models={"bench": model}, engine=engine)))
    try:
        yield loaded
    finally:
        loaded.close()


def ask(loaded: LoadedModel, requests: Sequence[Request]) -> list[Answered]:
    """All of them at once.

    Raises:
        ColdstreamError: what one of them ended with.
    """
    answers = {request.id: Answered() for request in requests}
    left = threading.Semaphore(0)

    def deliver(event: TokenEvent) -> None:
        answer = answers[event.request_id]
        now = time.monotonic()
        answer.token_ids += event.token_ids
        answer.times += [now] * len(event.token_ids)
        answer.logprobs += [item.logprob for item in event.logprobs]
        answer.prompt_logprobs += [item.logprob for item in event.prompt_logprobs if item is not None]
        if event.finish_reason is not None:
            answer.error = event.error
            answer.first_seconds = (event.usage.first_token_seconds or 0.0) if event.usage is not None else 0.0
            left.release()

    for request in requests:
        loaded.engine.submit(request, deliver)
    for _ in requests:
        left.acquire()
    for answer in answers.values():
        if answer.error is not None:
            raise answer.error
    return list(answers.values())


def request(name: str, ids: Sequence[int], tokens: int, **sampling: object) -> Request:
    """Greedy, of exactly so many tokens."""
    return Request(name, tuple(ids), SamplingParams(max_tokens=tokens, ignore_eos=True, **sampling))  # type: ignore[arg-type]
