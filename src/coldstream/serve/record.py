"""What became of one HTTP request, for its log line: filled while it is answered, written when it ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from coldstream.engine.request import TokenEvent

SCOPE_KEY = "coldstream.record"


@dataclass(slots=True)
class RequestRecord:
    """`request_id` is the caller's own (X-Request-Id) where it sent one that is fit to be logged.

    `submitted` is when its sequences went to the engine, in nanoseconds of Unix time; the times after it are those of
    the sequence that ended first, in seconds from there. `seconds` is the whole request.
    """

    request_id: str
    trace: str | None = None
    model: str | None = None
    task: str | None = None
    prompt: str | None = None
    finish_reasons: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    submitted: int | None = None
    queued_seconds: float | None = None
    first_token_seconds: float | None = None
    total_seconds: float | None = None
    seconds: float = 0.0
    error: str | None = None

    def end(self, event: TokenEvent) -> None:
        """Count a sequence's terminal event."""
        self.finish_reasons.append(str(event.finish_reason))
        usage = event.usage
        if usage is None:
            return
        self.prompt_tokens += usage.prompt_tokens
        self.cached_tokens += usage.cached_tokens
        self.completion_tokens += usage.completion_tokens
        if self.total_seconds is None:
            self.queued_seconds, self.first_token_seconds = usage.queued_seconds, usage.first_token_seconds
            self.total_seconds = usage.total_seconds

    def fields(self) -> dict[str, Any]:
        """The fields that are known, for a log line."""
        names = ("model", "task", "prompt", "finish_reasons", "prompt_tokens", "cached_tokens", "completion_tokens")
        found = {name: getattr(self, name) for name in (*names, "first_token_seconds", "error")}
        return {name: value for name, value in found.items() if value}
