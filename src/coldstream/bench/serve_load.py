"""Load on any OpenAI endpoint: streamed requests in closed or open loop, and what came of them.

Closed loop: so many clients, each with its next request as soon as it has its answer; it measures throughput. Open
loop: requests arrive by a Poisson process, whatever became of those before; it measures what waiting users see.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import statistics
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx2

Api = Literal["completions", "chat"]

_LONGEST_PAUSE = 0.1
_TIMEOUT = httpx2.Timeout(600.0, connect=30.0)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`url` ends in /v1; `extra` goes into every body (ignore_eos, where the server knows it)."""

    url: str
    model: str
    api: Api = "completions"
    key: str | None = field(default=None, repr=False)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Where requests go."""
        return f"{self.url.rstrip('/')}/{'chat/completions' if self.api == 'chat' else 'completions'}"

    def body(self, prompt: str, max_tokens: int) -> dict[str, Any]:
        """A greedy, streamed request."""
        asked: dict[str, Any] = {"prompt": prompt}
        if self.api == "chat":
            asked = {"messages": [{"role": "user", "content": prompt}]}
        options = {"include_usage": True}
        limits = {"max_tokens": max_tokens, "temperature": 0.0, "stream": True, "stream_options": options}
        return {"model": self.model, **asked, **limits, **self.extra}


@dataclass(frozen=True, slots=True)
class Answer:
    """One request; times on the `time.perf_counter()` clock. `arrivals` are the moments at which text came."""

    begin: float
    end: float
    arrivals: tuple[float, ...] = ()
    tokens: int = 0
    prompt_tokens: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Seconds; NaN where nothing was measured."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class Summary:
    """What a load came to. Rates are over the whole run, from the first request's begin to the last answer's end."""

    requests: int
    errors: int
    seconds: float
    tokens: int
    prompt_tokens: int
    tokens_per_second: float
    requests_per_second: float
    first_token: Percentiles
    inter_token: Percentiles
    whole: Percentiles
    first_error: str | None = None


def prompts(count: int, *, words: int, seed: int) -> list[str]:
    """Different prompts of so many words: no two share a beginning, so that no prefix cache helps."""
    draw, known = random.Random(seed), _TEXT.split()  # noqa: S311  the same load every time, not a secret
    return [f"{number}: " + " ".join(draw.choice(known) for _ in range(words)) for number in range(count)]


_TEXT = (
    "the river carries small boats past an old mill where children count stones and a miller weighs flour while "
    "rain begins to fall on fields of barley and somebody in the village writes a letter about trains that arrive "
    "late at the station under a clock which nobody has repaired since the winter of that long forgotten year"
)


async def closed_loop(endpoint: Endpoint, asked: Sequence[str], *, max_tokens: int, clients: int) -> list[Answer]:
    """So many clients share the prompts."""
    waiting = iter(asked)

    async def client(http: httpx2.AsyncClient) -> list[Answer]:
        return [await ask(http, endpoint, prompt, max_tokens) for prompt in waiting]

    async with _http(endpoint, clients) as http:
        return [answer for each in await asyncio.gather(*(client(http) for _ in range(clients))) for answer in each]


async def open_loop(
    endpoint: Endpoint, asked: Sequence[str], *, max_tokens: int, rate: float, seed: int
) -> list[Answer]:
    """The prompts arrive at `rate` a second on average, at random."""
    draw = random.Random(seed)  # noqa: S311
    asking: list[asyncio.Task[Answer]] = []
    async with _http(endpoint, len(asked)) as http:
        due = time.perf_counter()
        for prompt in asked:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            asking.append(asyncio.create_task(ask(http, endpoint, prompt, max_tokens)))
            due += draw.expovariate(rate)
        return await asyncio.gather(*asking)


async def beside(
    endpoint: Endpoint, asked: Sequence[str], *, others: Sequence[str], max_tokens: int, seed: int
) -> list[Answer]:
    """One token for each of the prompts, one after the other, while so many `others` are answered without end."""
    draw = random.Random(seed)  # noqa: S311
    begun = [asyncio.Event() for _ in others]

    async def other(http: httpx2.AsyncClient, prompt: str, begun: asyncio.Event) -> None:
        while True:
            await ask(http, endpoint, prompt, max_tokens, begun=begun)

    async with _http(endpoint, len(others) + 1) as http, asyncio.TaskGroup() as group:
        busy = [group.create_task(other(http, *item)) for item in zip(others, begun, strict=True)]
        await asyncio.gather(*(item.wait() for item in begun))
        answers = []
        for prompt in asked:
            await asyncio.sleep(draw.uniform(0.0, _LONGEST_PAUSE))  # anywhere in a step of the others
            answers.append(await ask(http, endpoint, prompt, 1))
        for task in busy:
            task.cancel()
    return answers


def _http(endpoint: Endpoint, connections: int) -> httpx2.AsyncClient:
    headers = {"authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
    limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
    return httpx2.AsyncClient(timeout=_TIMEOUT, limits=limits, headers=headers, trust_env=False)


async def ask(
    http: httpx2.AsyncClient, endpoint: Endpoint, prompt: str, max_tokens: int, *, begun: asyncio.Event | None = None
) -> Answer:
    """One streamed request. What goes wrong is part of the answer: a load test goes on. `begun` is set by its first
    text, or its end.

    An answer of another length than was asked for is an error: a server that stops early has less to do.
    """
    begin = time.perf_counter()
    arrivals: list[float] = []
    usage: Mapping[str, Any] = {}
    error = None
    try:
        async with http.stream("POST", endpoint.path, json=endpoint.body(prompt, max_tokens)) as reply:
            if reply.status_code != 200:
                await reply.aread()
                error = f"HTTP {reply.status_code}: {reply.text[:300]}"
            else:
                async for event in _events(reply):
                    error = error or _error(event)
                    if _has_text(event):
                        arrivals.append(time.perf_counter())
                        if begun is not None:
                            begun.set()
                    usage = event.get("usage") or usage
    except httpx2.HTTPError as exc:
        error = f"{type(exc).__name__}: {exc}"
    if begun is not None:
        begun.set()
    if error is None and not arrivals:
        error = "the stream ended without any text"
    tokens = int(usage.get("completion_tokens") or len(arrivals))
    if error is None and tokens != max_tokens:
        error = f"{tokens} tokens instead of {max_tokens}: figures of unequal lengths cannot be compared"
    return Answer(begin, time.perf_counter(), tuple(arrivals), tokens, int(usage.get("prompt_tokens") or 0), error)


async def _events(reply: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in reply.aiter_lines():
        data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
        if data and data != "[DONE]":
            event = json.loads(data)
            if isinstance(event, dict):
                yield event


def _has_text(event: Mapping[str, Any]) -> bool:
    for choice in event.get("choices") or ():
        if choice.get("text") or (choice.get("delta") or {}).get("content"):
            return True
    return False


def _error(event: Mapping[str, Any]) -> str | None:
    error = event.get("error")
    return None if error is None else str(error.get("message", error) if isinstance(error, dict) else error)


def summarize(answers: Iterable[Answer]) -> Summary:
    """The figures of a run; failed requests count as errors and nothing else."""
    everything = list(answers)
    good = [answer for answer in everything if answer.error is None]
    failed = [answer.error for answer in everything if answer.error is not None]
    seconds = _span(everything)
    tokens = sum(answer.tokens for answer in good)
    gaps = [later - earlier for a in good for earlier, later in zip(a.arrivals, a.arrivals[1:], strict=False)]
    return Summary(
        requests=len(everything),
        errors=len(failed),
        seconds=seconds,
        tokens=tokens,
        prompt_tokens=sum(answer.prompt_tokens for answer in good),
        tokens_per_second=tokens / seconds if seconds else math.nan,
        requests_per_second=len(good) / seconds if seconds else math.nan,
        first_token=percentiles([answer.arrivals[0] - answer.begin for answer in good]),
        inter_token=percentiles(gaps),
        whole=percentiles([answer.end - answer.begin for answer in good]),
        first_error=failed[0] if failed else None,
    )


def _span(answers: Sequence[Answer]) -> float:
    if not answers:
        return 0.0
    return max(answer.end for answer in answers) - min(answer.begin for answer in answers)


def percentiles(values: Sequence[float]) -> Percentiles:
    """Median, 90th and 99th, interpolated."""
    if len(values) < 2:
        only = values[0] if values else math.nan
        return Percentiles(only, only, only)
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return Percentiles(cuts[49], cuts[89], cuts[98])
