"""vLLM's prompts and outputs in our terms: its RequestOutput, of new tokens only, to what `Generation` takes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from coldstream.backends.protocol import Logprob, Sampled
from coldstream.engine.generation import Finish, Generation
from coldstream.engine.request import Request
from coldstream.errors import EngineError


def prompt(request: Request) -> dict[str, Any]:
    """vLLM's TokensPrompt; pictures beside the ids, which vLLM's processor expands for its model.

    Neither keys and values nor what was seen of a picture are shared between requests of different salts.
    """
    made: dict[str, Any] = {"prompt_token_ids": list(request.prompt_ids)}
    if request.salt:
        made["cache_salt"] = request.salt.hex()
    if request.images:
        from PIL import Image

        made["multi_modal_data"] = {"image": [Image.fromarray(item.pixels) for item in request.images]}
        made["multi_modal_uuids"] = {"image": [(item.digest + request.salt).hex() for item in request.images]}
    return made


def begin(generation: Generation, output: Any) -> tuple[int, int] | None:
    """What the first output says of the prompt, into the generation: its tokens, and those from the cache.

    None with a later output.
    """
    if generation.sequence.first_cached is not None:
        return None
    ids = output.prompt_token_ids
    if ids is not None:
        generation.prompt_tokens = len(ids)
    cached = generation.sequence.first_cached = output.num_cached_tokens or 0
    generation.admitted(_scheduled(output.metrics) or time.monotonic())
    wanted = generation.request.sampling.prompt_logprobs
    if wanted is not None and output.prompt_logprobs is not None:
        scored = zip(ids or generation.request.prompt_ids, output.prompt_logprobs, strict=True)
        generation.prompt_scored(0, [_logprob(token, known, wanted) for token, known in scored if known])
    return generation.prompt_tokens, cached


def drawn(generation: Generation, output: Any) -> list[Sampled]:
    """The tokens that this output brings, a stop token included."""
    (completion,) = output.outputs
    ids, known, wanted = completion.token_ids, completion.logprobs, generation.request.sampling.logprobs
    if wanted is None or known is None:
        return [Sampled(token) for token in ids]
    return [Sampled(token, _logprob(token, place, wanted)) for token, place in zip(ids, known, strict=True)]


def ending(output: Any) -> Finish | None:
    """Why vLLM ended the request, where the tokens themselves did not say."""
    reason = output.outputs[0].finish_reason
    if reason is None:
        return None
    if reason in ("stop", "length"):
        return Finish(reason)
    if reason == "abort":
        return Finish("cancelled")
    return Finish("error", error=EngineError(f"vLLM ended the request: {reason}"))


def _logprob(token: int, known: Mapping[int, Any], wanted: int) -> Logprob:
    """`known` holds the token itself beside the best ones, which its rank tells apart."""
    best = sorted(known.items(), key=lambda item: item[1].rank or 0)[:wanted]
    return Logprob(token, known[token].logprob, tuple((number, item.logprob) for number, item in best))


def _scheduled(metrics: Any) -> float | None:
    """When its first step began; vLLM's engine reads the same clock."""
    return getattr(metrics, "scheduled_ts", None) or None
