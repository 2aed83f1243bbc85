"""What a vLLM engine is doing: what its scheduler says, and what was counted of its outputs."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from coldstream.engine.stats import Meter

_WINDOW_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class VllmStats:
    """A snapshot. Totals are since the start, rates per second over the last ten.

    `kv_used` is the share of the cache's blocks in use, `prefix_hit_rate` that of prompt tokens that came from it.
    `steps` grows while the engine does anything. `died`: its process has ended, and nothing can be answered again.
    """

    running: int
    waiting: int
    kv_used: float
    prefix_hit_rate: float
    tokens_per_second: float
    steps: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    finished: int
    preemptions: int
    errors: int
    died: bool


@dataclass(slots=True)
class SchedulerView:
    """What vLLM's scheduler said last; written by its stat logger on the engine's loop, read from any thread."""

    running: int = 0
    waiting: int = 0
    kv_used: float = 0.0
    steps: int = 0
    preemptions: int = 0


class Tally:
    """Counts what comes out; on the engine's loop, but for `snapshot`."""

    def __init__(self, scheduler: SchedulerView) -> None:
        self.meter = Meter()
        self._scheduler = scheduler
        self._cached_tokens = 0
        self._recent: deque[tuple[float, int]] = deque(maxlen=8192)

    def prompt_read(self, tokens: int, cached: int) -> None:
        """A prompt was computed, `cached` of its tokens by another request."""
        self.meter.prompt_tokens += tokens
        self._cached_tokens += cached

    def drawn(self, tokens: int) -> None:
        """An output brought so many tokens."""
        self.meter.steps += 1
        self.meter.completion_tokens += tokens
        self._recent.append((time.monotonic(), tokens))

    def snapshot(self, open_requests: int, *, died: bool) -> VllmStats:
        """All of it; `open_requests` were submitted and have not ended."""
        scheduler, meter = self._scheduler, self.meter
        running = min(scheduler.running, open_requests)
        return VllmStats(
            running=running,
            waiting=open_requests - running,
            kv_used=scheduler.kv_used,
            prefix_hit_rate=self._cached_tokens / meter.prompt_tokens if meter.prompt_tokens else 0.0,
            tokens_per_second=self._rate(),
            steps=meter.steps + scheduler.steps,
            prompt_tokens=meter.prompt_tokens,
            cached_tokens=self._cached_tokens,
            completion_tokens=meter.completion_tokens,
            finished=meter.finished,
            preemptions=scheduler.preemptions,
            errors=meter.errors,
            died=died,
        )

    def _rate(self) -> float:
        since = time.monotonic() - _WINDOW_SECONDS
        recent = [item for item in tuple(self._recent) if item[0] >= since]
        if len(recent) < 2:
            return 0.0
        return sum(tokens for _, tokens in recent[1:]) / max(recent[-1][0] - recent[0][0], 1e-3)
