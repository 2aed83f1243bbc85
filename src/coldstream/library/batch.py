"""Many requests through an engine at once, each in the place that it was given. Plain threads, no event loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from queue import SimpleQueue

from coldstream.engine.request import Request, TokenEvent, Usage
from coldstream.engines.protocol import Answers
from coldstream.errors import ColdstreamError, EngineError
from coldstream.library.completion import Completion


class Parts:
    """The events of one request, put together."""

    def __init__(self) -> None:
        self._events: list[TokenEvent] = []

    def add(self, event: TokenEvent) -> None:
        """One more; an end that is no answer is raised as its error."""
        if event.finish_reason in ("error", "deadline", "cancelled"):
            raise bad_end(event)
        self._events.append(event)

    def whole(self) -> Completion:
        """Once the last one is there."""
        last = self._events[-1]
        assert last.finish_reason is not None
        return Completion(
            "".join(event.text for event in self._events),
            tuple(token for event in self._events for token in event.token_ids),
            last.finish_reason,
            last.usage or Usage(),
            tuple(score for event in self._events for score in event.logprobs),
        )


def bad_end(event: TokenEvent) -> ColdstreamError:
    """The error of an end that is no answer."""
    return event.error or EngineError(f"generating ended as {event.finish_reason!r}; was the model closed meanwhile?")


def answers(
    engine: Answers, requests: Sequence[Request], *, window: int, ended: Callable[[Completion], None]
) -> list[Completion]:
    """The answers in the requests' order; `window` of them at most are with the engine. `ended` hears of each.

    When one fails, or the caller is interrupted, the others are cancelled.

    Raises:
        ColdstreamError: of the request that failed first.
    """
    made: list[Completion | None] = [None] * len(requests)
    for place, completion in _as_they_end(engine, requests, window):
        made[place] = completion
        ended(completion)
    return [completion for completion in made if completion is not None]


def _as_they_end(engine: Answers, requests: Sequence[Request], window: int) -> Iterator[tuple[int, Completion]]:
    arrived = SimpleQueue[tuple[int, TokenEvent]]()
    left = iter(enumerate(requests))
    running: dict[int, Parts] = {}
    try:
        while True:
            for place, request in islice(left, window - len(running)):
                running[place] = Parts()
                engine.submit(request, _into(arrived, place))
            if not running:
                return
            place, event = arrived.get()
            running[place].add(event)
            if event.finish_reason is not None:
                yield place, running.pop(place).whole()
    finally:
        for place in running:
            engine.cancel(requests[place].id)


def _into(arrived: SimpleQueue[tuple[int, TokenEvent]], place: int) -> Callable[[TokenEvent], None]:
    return lambda event: arrived.put((place, event))


def pieces(engine: Answers, request: Request) -> Iterator[str]:
    """The answer's text as it comes; a caller that stops reading ends the request.

    Raises:
        ColdstreamError: generating failed.
    """
    arrived = SimpleQueue[TokenEvent]()
    engine.submit(request, arrived.put)
    is_open = True
    try:
        while is_open:
            event = arrived.get()
            is_open = event.finish_reason is None
            if event.finish_reason in ("error", "deadline", "cancelled"):
                raise bad_end(event)
            if event.text:
                yield event.text
    finally:
        if is_open:
            engine.cancel(request.id)
