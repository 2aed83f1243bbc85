"""How far a model's load is, for probes, refused clients and the playground."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from coldstream.errors import ColdstreamError
from coldstream.loading.run_plan import RunPlan
from coldstream.timeline import Timeline

if TYPE_CHECKING:
    from coldstream.weights.transfer.progress import Progress

ModelPhase = Literal["waiting", "listing", "headers", "streaming", "verifying", "assembling", "ready", "failed"]

_ASSUMED_RATE = 100e6
"""Bytes a second, until a rate has been measured."""
_ASSUMED_START = 3.0
"""Seconds that imports and the tokenizer take, where the bytes come sooner."""


class LoadState:
    """What is known of one model's load; written by the load, read on any thread.

    `is_ready`: every byte is there, verified, and the engine runs. `is_wanted`: a request waits for it. `warnings` are
    what `model.findings` says of the checkpoint, and why a packed copy is not used; `packed` is where one is that is.
    """

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self.progress: Progress | None = None
        self.plan: RunPlan | None = None
        self.warnings: tuple[str, ...] = ()
        self.packed: str | None = None
        self.error: ColdstreamError | None = None
        self.is_ready = False
        self.is_wanted = False
        self._when_wanted: Callable[[], None] = lambda: None

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
    def is_loading(self) -> bool:
        """Whether it is neither ready nor failed."""
        return not self.is_ready and self.error is None

    def want(self) -> None:
        """A request waits for this model. On any thread."""
        self.is_wanted = True
        self._when_wanted()

    def when_wanted(self, heard: Callable[[], None]) -> None:
        """Call it when a request begins to wait, on that request's thread."""
        self._when_wanted = heard

    @property
    def rate(self) -> float:
        """Bytes a second, as measured; 0 before that."""
        return self.progress.rate if self.progress is not None else 0.0

    @property
    def seconds_left(self) -> float:
        """Until the model is expected to be ready, from the measured rate."""
        if not self.is_loading:
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
            "warnings": list(self.warnings),
            "packed": self.packed,
        }
        if self.plan is not None:
            plan = self.plan
            state |= {"engine": plan.engine, "why_engine": plan.engine_reason}
            state |= {"device": plan.device, "why_device": plan.device_reason}
            state |= {"precision": plan.dtype or plan.precision, "why": plan.reason}
        if progress is not None:
            counters = progress.counters
            state |= {"retries": counters.retries, "resumes": counters.resumes, "hedges": counters.hedges}
        if self.error is not None:
            state["error"] = {"type": type(self.error).__name__, "message": str(self.error)}
        return state
