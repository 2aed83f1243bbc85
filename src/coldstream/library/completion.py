"""What comes back of one prompt."""

from __future__ import annotations

from dataclasses import dataclass

from coldstream.engine.request import FinishReason, TokenLogprob, Usage


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished answer. `finish_reason` is "stop" or "length"; `logprobs` are there where they were asked for."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    logprobs: tuple[TokenLogprob, ...] = ()

    def __str__(self) -> str:
        return self.text
