"""Log probabilities in the two shapes that OpenAI gave them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from coldstream.engine.request import TokenLogprob


def chat(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """`choices[].logprobs` of a chat completion or of one of its chunks."""
    return {
        "content": [{**_token(item.text, item.logprob), "top_logprobs": _top(item)} for item in tokens],
        "refusal": None,
    }


def completion(tokens: Sequence[TokenLogprob | None], prompt: Sequence[str] = (), *, offset: int = 0) -> dict[str, Any]:
    """`choices[].logprobs` of a text completion. `prompt` are the texts of the echoed tokens, which stand first and of
    which the first has no log probability.

    `offset` is the character at which the first token begins. The chosen token is always among its alternatives.
    """
    texts = [prompt[place] if item is None else item.text for place, item in enumerate(tokens)]
    return {
        "tokens": texts,
        "token_logprobs": [None if item is None else item.logprob for item in tokens],
        "top_logprobs": [None if item is None else _alternatives(item) for item in tokens],
        "text_offset": list(accumulate(map(len, texts[:-1]), initial=offset)) if texts else [],
    }


def _alternatives(item: TokenLogprob) -> dict[str, float]:
    """Several ids may have one text; the best of them is kept."""
    found: dict[str, float] = {}
    for _, text, logprob in item.top:
        found.setdefault(text, logprob)
    found.setdefault(item.text, item.logprob)
    return found


def _top(item: TokenLogprob) -> list[dict[str, Any]]:
    return [_token(text, logprob) for _, text, logprob in item.top]


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
