"""Log probabilities in the two shapes that OpenAI gave them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coldstream.engine.alternatives import spelled
from coldstream.engine.request import TokenLogprob


def chat(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """`choices[].logprobs` of a chat completion or of one of its chunks."""
    return {
        "content": [
            {**_token(item.spelled, item.logprob), "top_logprobs": [_token(*other) for other in spelled(item.top)]}
            for item in tokens
        ],
        "refusal": None,
    }


def completion(
    tokens: Sequence[TokenLogprob | None], offsets: Sequence[int], prompt: Sequence[bytes] = ()
) -> dict[str, Any]:
    """`choices[].logprobs` of a text completion. `prompt` are the bytes of the echoed tokens, which stand first and of
    which the first has no log probability.

    `offsets` are the characters of the choice's text at which the tokens begin. The chosen token is always among its
    alternatives.
    """
    return {
        "tokens": [_name(prompt[place] if item is None else item.spelled) for place, item in enumerate(tokens)],
        "token_logprobs": [None if item is None else item.logprob for item in tokens],
        "top_logprobs": [None if item is None else _alternatives(item) for item in tokens],
        "text_offset": list(offsets),
    }


def _alternatives(item: TokenLogprob) -> dict[str, float]:
    """Several ids may have one text; the best of them is kept."""
    found: dict[str, float] = {}
    for raw, value in spelled(item.top):
        found.setdefault(_name(raw), value)
    found.setdefault(_name(item.spelled), item.logprob)
    return found


def _token(raw: bytes, logprob: float) -> dict[str, Any]:
    return {"token": _name(raw, ""), "logprob": logprob, "bytes": list(raw)}


def _name(raw: bytes, prefix: str = "bytes:") -> str:
    r"""The token's text; a part of a character is written as OpenAI writes it: `bytes:\xea`, in a chat `\xea`."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return prefix + "".join(f"\\x{byte:02x}" for byte in raw)
