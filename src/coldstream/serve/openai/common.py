"""What the two endpoints share: who answers, how tokens are drawn, and the parts of an answer."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from coldstream.errors import InvalidRequest
from coldstream.serve.api.schema import stops
from coldstream.serve.api.tasks import unknown_model
from coldstream.serve.openai.schema import ChatRequest, ChatStreamOptions, CompletionRequest
from coldstream.serve.requests.inference import Job, Result, Running, timings
from coldstream.serve.state import ServedModel, ServerState
from coldstream.settings import SamplingSettings, TaskSettings

_SAMPLING = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "ignore_eos",
    "stop_token_ids",
)


@dataclass(frozen=True, slots=True)
class NamedTarget:
    """What a request's `model` names: a model, or a task and its model."""

    model: ServedModel
    task: TaskSettings | None

    @property
    def sampling(self) -> SamplingSettings:
        """The task's defaults."""
        return self.task.sampling if self.task else SamplingSettings()


def target(state: ServerState, body: ChatRequest | CompletionRequest) -> NamedTarget:
    """Find what `model` names; a model goes before a task of the same name.

    Raises:
        UnknownTask: neither.
        InvalidRequest: `inputs` for what is no task.
    """
    if body.model in state.models:
        if body.inputs:
            message = f"inputs fill a task's template, but {body.model!r} is a model; name a task in `model`"
            raise InvalidRequest(message, field="inputs", allowed=tuple(sorted(state.settings.tasks)))
        return NamedTarget(state.models[body.model], None)
    task = state.settings.tasks.get(body.model)
    if task is None:
        raise unknown_model(state.settings, body.model)
    return NamedTarget(state.models[task.model], task)


def sampling(body: ChatRequest | CompletionRequest) -> dict[str, Any]:
    """The sampling parameters that the request sets, by the names of SamplingParams."""
    given = {name: getattr(body, name) for name in _SAMPLING}
    given["top_k"] = None if body.top_k is None else max(body.top_k, 0)
    given["logit_bias"] = _logit_bias(body.logit_bias)
    return given | {"stop": stops(body.stop)}


def _logit_bias(bias: dict[str, float] | None) -> tuple[tuple[int, float], ...] | None:
    if not bias:
        return None
    for token in bias:
        if not (token.isascii() and token.isdecimal()) or len(token) > 9:
            raise InvalidRequest(f"logit_bias.{token[:20]}: keys are token ids", field="logit_bias")
    by_id = {int(token): value for token, value in bias.items()}
    if len(by_id) < len(bias):
        raise InvalidRequest("logit_bias has a token id twice, in two spellings", field="logit_bias")
    return tuple(by_id.items())


@dataclass(frozen=True, slots=True)
class Envelope:
    """The fields around every answer, and every chunk of a stream."""

    id: str
    object: str
    created: int
    model: str
    fingerprint: str

    def wrap(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """An answer or a chunk with these choices."""
        return {
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
            **more,
        }


def envelope(prefix: str, kind: str, name: str, model: ServedModel) -> Envelope:
    """A new answer's envelope."""
    return Envelope(f"{prefix}-{secrets.token_hex(12)}", kind, int(time.time()), name, f"fp_{model.revision[:12]}")


def usage(job: Job, results: Sequence[Result], *, completion_tokens: int | None = None) -> dict[str, Any]:
    """Token counts. A prompt counts once, however many samples were drawn from it."""
    firsts = results[:: job.samples]
    prompt = sum(result.usage.prompt_tokens for result in firsts)
    drawn = sum(result.usage.completion_tokens for result in results)
    completion = drawn if completion_tokens is None else completion_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(result.usage.cached_tokens for result in firsts)},
    }


def scores(results: Sequence[Result], best: int | None) -> int:
    """How many log probabilities they hold, where `best` alternatives were asked for."""
    return sum(len(result.logprobs) + len(result.prompt_logprobs) for result in results) * (1 + (best or 0))


@dataclass(frozen=True, slots=True)
class Streamed:
    """What a stream says of its usage: at its end, and, as vLLM has it, with every chunk."""

    options: ChatStreamOptions | None
    running: Running
    results: Sequence[Result]

    @property
    def is_wanted(self) -> bool:
        """Whether a last chunk has the usage."""
        return bool(self.options and self.options.include_usage)

    def timings(self) -> dict[str, Any]:
        """What the last chunk says beside the usage, ours: of one answer the engine's own times."""
        return {"timings": timings(self.results[0].usage)} if len(self.results) == 1 else {}

    def beside(self) -> dict[str, Any]:
        """What a chunk carries beside its choices."""
        if self.options is None or not self.options.continuous_usage_stats:
            return {"usage": None} if self.is_wanted else {}
        prompt = sum(map(len, self.running.prompt_ids))
        drawn = sum(max(len(item.token_ids), item.usage.completion_tokens) for item in self.results)
        return {"usage": {"prompt_tokens": prompt, "completion_tokens": drawn, "total_tokens": prompt + drawn}}


def text_of(content: str | Iterable[Any] | None) -> str:
    """The text of a message's content, its parts one behind the other; images are left out."""
    if content is None or isinstance(content, str):
        return content or ""
    parts: list[Any] = list(content)
    return "".join(part.text for part in parts if part.type != "image_url")
