"""What the engine is doing: totals since its start and rates over the last seconds."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

_WINDOW_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Stats:
    """A snapshot. Rates are per second of computing over the last ten seconds, the token and step counts since start.

    `blocks_used` are held by running sequences, `blocks_cached` keep a known prefix for the next with it.
    `prefix_hit_rate` is the share of all prompt tokens that came from the prefix cache; `batch_size` is the mean number
    of sequences in a step, `step_seconds` the mean time of one, `engine_seconds` what of it was not the model.
    """

    running: int
    waiting: int
    blocks_used: int
    blocks_cached: int
    blocks_total: int
    prefix_hit_rate: float
    tokens_per_second: float
    prompt_tokens_per_second: float
    step_seconds: float
    engine_seconds: float
    batch_size: float
    steps: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    finished: int
    preemptions: int
    errors: int
    died: bool = False
    """Its thread ended, which was not asked to."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One step: when it ended, how long it took, how much of that in the model, and what it did."""

    at: float
    seconds: float
    model_seconds: float
    sequences: int
    prompt_tokens: int
    drawn: int


@dataclass(frozen=True, slots=True)
class Rates:
    """Means over the recent steps; all 0 when there were none."""

    tokens_per_second: float = 0.0
    prompt_tokens_per_second: float = 0.0
    step_seconds: float = 0.0
    engine_seconds: float = 0.0
    batch_size: float = 0.0


class Meter:
    """Counts on the engine's thread; may be read from any."""

    def __init__(self) -> None:
        self.steps = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.finished = 0
        self.errors = 0
        self._recent: deque[Measured] = deque(maxlen=512)

    def step(self, measured: Measured) -> None:
        """Take note of a step."""
        self.steps += 1
        self.prompt_tokens += measured.prompt_tokens
        self.completion_tokens += measured.drawn
        self._recent.append(measured)

    def end(self, *, is_error: bool) -> None:
        """Take note of a request's end."""
        self.finished += 1
        self.errors += is_error

    def rates(self) -> Rates:
        """Of the last ten seconds."""
        since = time.monotonic() - _WINDOW_SECONDS
        recent = [item for item in tuple(self._recent) if item.at >= since]
        seconds = sum(item.seconds for item in recent)
        if not seconds:
            return Rates()
        return Rates(
            tokens_per_second=sum(item.drawn for item in recent) / seconds,
            prompt_tokens_per_second=sum(item.prompt_tokens for item in recent) / seconds,
            step_seconds=seconds / len(recent),
            engine_seconds=(seconds - sum(item.model_seconds for item in recent)) / len(recent),
            batch_size=sum(item.sequences for item in recent) / len(recent),
        )
