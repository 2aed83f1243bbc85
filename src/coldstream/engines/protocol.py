"""What every engine owes: a submitted request ends in exactly one terminal event.

The native one is `coldstream.engine.engine.Engine`, on a backend. Another may stand on a library that schedules for
itself and has its own cache, as long as it keeps what is said here.
"""

from __future__ import annotations

from typing import Any, Protocol

from coldstream.engine.request import Deliver, Request


class Answers(Protocol):
    """The part of an engine that a request needs."""

    def submit(self, request: Request, deliver: Deliver) -> None:
        """Queue a request. Either this raises, or `deliver` gets exactly one event with a `finish_reason`, its last.

        After `drain`, `stop` or a failure of all, that event comes at once, an "error", on the caller's thread.
        `deadline`: where it passes first, the event's reason is "deadline" and its error DeadlineExceeded.

        Raises:
            PromptTooLong: the prompt leaves no room for a token.
            InvalidRequest: a value is out of range, or the id is in use.
        """
        ...

    def cancel(self, request_id: str) -> None:
        """Its terminal event, "cancelled", is delivered before this returns; unknown and finished ids are ignored."""
        ...

    def stats(self) -> Any:
        """A frozen dataclass of counters and gauges; cheap. `running`, `waiting`, `steps` and `died` are among them."""
        ...


class EngineProtocol(Answers, Protocol):
    """An engine as its owner has it. All of it may be called from any thread."""

    @property
    def max_context(self) -> int:
        """Prompt and answer together, in tokens."""
        ...

    def validate(self, request: Request) -> None:
        """Raise what `submit` would raise for the request's own values. May take long: not for an event loop."""
        ...

    def drain(self, grace: float) -> None:
        """Take nothing new, let what runs finish within `grace` seconds, end the rest as cancelled; then stop."""
        ...

    def stop(self, timeout: float = ...) -> None:
        """End everything now: requests that are left get their last event, "cancelled". Twice does no harm."""
        ...
