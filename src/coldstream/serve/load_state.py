"""How far a model's load is, for probes, refused clients and the playground."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from coldstream.errors import ColdstreamError
from coldstream.serve.making import RunPlan
from coldstream.timeline import Timeline

if TYPE_CHECKING:
    from coldstream.weights.progress import Progress

ModelPhase = Literal["waiting", "listing", "headers", "streaming", "verifying", "assembling", "ready", "failed"]

_ASSUMED_RATE = 100e6
"""Bytes a second, until a rate has been measured."""
_ASSUMED_START = 3.0
"""Seconds that imports and the tokenizer take, where the bytes come sooner."""


class LoadState:
    """What is known of one model's load; written by its strands, read by anybody.

    `is_ready`: every byte is there, verified, and the engine runs. `is_wanted`: a request waits for it.
    """

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self.progress: Progress | None = None
        self.plan: RunPlan | None = None
        self.error: ColdstreamError | None = None
        self.all_landed = False
        self.is_ready = False
        self.is_wanted = False

    @property
    def phase(self) -> ModelPhase:
        """How far it is, in one word."""
        if self.error is not None:
            return "failed"
        if self.is_ready:
            return "ready"
        match self.progress.phase if self.progress is not None else "waiting":
            case "waiting" | "failed" | "cancelled":  # the error, if there is one, is on its way
                return "waiting"
            case "done":
                return "assembling"
            case phase:
                return phase

    @property
    def wants_bytes(self) -> bool:
        """Whether tensors are still to come."""
        return not self.all_landed and self.error is None

    @property
    def rate(self) -> float:
        """Bytes a second, as measured; 0 before that."""
        return self.progress.rate if self.progress is not None else 0.0

    @property
    def seconds_left(self) -> float:
        """Until the model is expected to be ready, from the measured rate."""
        if self.is_ready or self.error is not None:
            return 0.0
        start = max(_ASSUMED_START - self._timeline.now(), 0.5)
        if self.progress is None or not self.progress.total_bytes:
            return start
        left = self.progress.total_bytes - self.progress.landed_bytes
        return max(left / (self.rate or _ASSUMED_RATE), start)

    def as_json(self) -> dict[str, Any]:
        """All of it as plain data. Bytes, seconds, bytes a second."""
        progress = self.progress
        state: dict[str, Any] = {
            "phase": self.phase,
            "bytes": progress.landed_bytes if progress else 0,
            "total_bytes": progress.total_bytes if progress else 0,
            "rate": round(self.rate),
            "seconds_left": round(self.seconds_left, 1),
            "unverified": list(progress.unverified_files) if progress else [],
        }
        if self.plan is not None:
            state |= {"device": self.plan.device, "precision": self.plan.precision, "why": self.plan.reason}
        if progress is not None:
            counters = progress.counters
            state |= {"retries": counters.retries, "resumes": counters.resumes, "hedges": counters.hedges}
        if self.error is not None:
            state["error"] = {"type": type(self.error).__name__, "message": str(self.error)}
        return state
