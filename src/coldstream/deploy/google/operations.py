"""Long-running operations, and answers as plain data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from coldstream.deploy.clock import Clock
from coldstream.deploy.google.mapping import mapped, module
from coldstream.errors import CloudUnavailable, DeployError


@dataclass(frozen=True, slots=True)
class Pending:
    """A long-running operation. `poll` asks once: whether it has ended; it raises what went wrong."""

    what: str
    poll: Callable[[], bool]


def wait(pending: Pending, *, clock: Clock, limit: float, every: float = 2.0, tick: Callable[[float], None]) -> None:
    """Ask until the operation has ended; `tick` hears the seconds waited so far.

    A poll that Google did not answer says nothing about the operation: it is asked again.

    Raises:
        DeployError: it failed, or has not ended after `limit` seconds.
    """
    begun = clock.now()
    while not _ended(pending):
        waited = clock.now() - begun
        if waited >= limit:
            raise DeployError(f"{pending.what} has not ended after {limit:.0f} s; look at it, then run this again")
        tick(waited)
        clock.sleep(every)


def _ended(pending: Pending) -> bool:
    try:
        return pending.poll()
    except CloudUnavailable:
        return False


def pending(what: str, operation: Any) -> Pending:
    """A client's operation; `what` names it in a sentence."""

    def poll() -> bool:
        # The client would sleep on a clock of its own before it asked again.
        once = module("google.api_core.retry").Retry(predicate=lambda _: False)
        with mapped():
            if not operation.done(retry=once):
                return False
        try:
            with mapped():
                operation.result(timeout=0)
        except CloudUnavailable as exc:
            # The operation itself ended so; asking again would hear the same.
            raise DeployError(str(exc)) from exc
        return True

    return Pending(what, poll)


def plain(message: Any) -> dict[str, Any]:
    """A proto message as a dict that is spelled as the proto is; enums by name, defaults left out."""
    result: dict[str, Any] = type(message).to_dict(
        message, use_integers_for_enums=False, always_print_fields_with_no_presence=False
    )
    return result
