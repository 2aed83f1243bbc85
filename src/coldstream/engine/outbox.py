"""What leaves the engine: events to those who were promised them, held back until the weights are verified.

A request that was added gets exactly one event with a `finish_reason`, closed from whatever thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from enum import IntEnum

from coldstream.engine.generation import Finish, Generation
from coldstream.engine.request import TokenEvent
from coldstream.engine.stats import Meter
from coldstream.errors import InvalidRequest

_log = logging.getLogger(__name__)


class Verified(IntEnum):
    """Which weights are verified, and so what may leave; it only grows."""

    NOTHING = 0
    TEXT = 1
    """All that text rests on: the vision tower may be on its way."""
    ALL = 2


class Outbox:
    """The requests that are open, and the events of those that may not be answered yet.

    `broken` is called with the id of a request whose receiver raised.
    """

    def __init__(
        self,
        name: str,
        meter: Meter,
        *,
        verified: Verified,
        broken: Callable[[str], None],
    ) -> None:
        self._name = name
        self._meter = meter
        self._broken = broken
        self._lock = threading.Lock()
        self._open: dict[str, Generation] = {}
        # The loop's own, both. Those held are complete or not; their events wait in `Generation.held`.
        self._verified = verified
        self._held: dict[str, Generation] = {}

    # -- from any thread -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._open)

    def add(self, generation: Generation) -> None:
        """Promise it a terminal event.

        Raises:
            InvalidRequest: its id is in use.
        """
        with self._lock:
            request_id = generation.request.id
            if request_id in self._open:
                raise InvalidRequest(f"there is a request {request_id!r} already; ids must differ", field="id")
            self._open[request_id] = generation

    def find(self, request_id: str) -> Generation | None:
        """The open request of this id."""
        with self._lock:
            return self._open.get(request_id)

    def deadlines(self) -> list[float]:
        """Of the open requests that have one; `time.monotonic()` seconds."""
        with self._lock:
            return [item.request.deadline for item in self._open.values() if item.request.deadline is not None]

    def close(self, generation: Generation, event: TokenEvent) -> None:
        """Deliver its terminal event, unless it has had one."""
        with self._lock:
            if self._open.get(generation.request.id) is not generation:
                return
            del self._open[generation.request.id]
        self._deliver_last(generation, event)

    def close_all(self, finish: Finish) -> None:
        """Deliver a terminal event to everybody who has had none."""
        with self._lock:
            left = list(self._open.values())
            self._open.clear()
        for generation in left:
            self._deliver_last(generation, generation.last_event(finish))

    # -- from the loop -------------------------------------------------------------------------------------------------

    def may_leave(self, generation: Generation) -> bool:
        """Whether the weights that its tokens rest on are verified."""
        return self._verified >= (Verified.ALL if generation.request.images else Verified.TEXT)

    def send(self, generation: Generation, event: TokenEvent) -> None:
        """Deliver an event that ends nothing, or hold it back."""
        if self.may_leave(generation):
            self._hand_over(generation, event)
        else:
            self.hold_back(generation, event)

    def hold_back(self, generation: Generation, event: TokenEvent) -> None:
        """Keep the event, which may be the last one, for `verify`."""
        generation.held.append(event)
        self._held[generation.request.id] = generation

    def verify(self, verified: Verified) -> list[Generation]:
        """So much is verified now: deliver what may leave; those that this ended."""
        self._verified = max(self._verified, verified)
        ended = []
        for generation in list(filter(self.may_leave, self._held.values())):
            self.forget(generation)
            held, generation.held = generation.held, []
            for event in held:
                if event.finish_reason is None:
                    self._hand_over(generation, event)
                else:
                    ended.append(generation)
                    self.close(generation, event)
        return ended

    def forget(self, generation: Generation) -> None:
        """What was held back for it is not to be delivered."""
        if self._held.get(generation.request.id) is generation:
            del self._held[generation.request.id]

    def _deliver_last(self, generation: Generation, event: TokenEvent) -> None:
        self._meter.end(is_error=event.finish_reason == "error")
        self._hand_over(generation, event)

    def _hand_over(self, generation: Generation, event: TokenEvent) -> None:
        try:
            generation.hand_over(event)
        except Exception:
            _log.exception("%s: the receiver of %s failed; the request is cancelled", self._name, event.request_id)
            self._broken(event.request_id)
