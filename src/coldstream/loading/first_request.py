"""What the timeline says of the first request: its prefill, layer by layer, and its first token.

Both wrap a seam and step aside after the first time: the decoder's `forward`, and the engine's `submit`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from coldstream.timeline import Span, Timeline

if TYPE_CHECKING:
    from coldstream.engine.request import Deliver, Request, TokenEvent
    from coldstream.engines.protocol import Answers

Attend = Callable[..., Any]
"""(layer, q, k, v) -> what was attended to; a decoder on a GPU adds what is still to be done to q and k."""


class FirstForward:
    """A decoder whose first `forward` is recorded: a layer lasts from its attention to the next layer's."""

    def __init__(self, decoder: Any, timeline: Timeline) -> None:
        self._decoder, self._timeline = decoder, timeline
        self._is_first = True

    @property
    def attention_dtype(self) -> Any:
        """Of a decoder of torch's; see `Decoder.attention_dtype`."""
        return self._decoder.attention_dtype

    @property
    def has_landed(self) -> Any:
        """Of a decoder of torch's; see `Decoder.has_landed`."""
        return self._decoder.has_landed

    def forward(self, ids: Any, positions: Any, attend: Attend, rows: Any, **more: Any) -> Any:
        """See `Decoder.forward`."""
        if not self._is_first:
            return self._decoder.forward(ids, positions, attend, rows, **more)
        self._is_first = False
        starts: list[float] = []

        def timed(layer: int, q: Any, k: Any, v: Any, *pending: Any) -> Any:
            starts.append(self._timeline.now())
            return attend(layer, q, k, v, *pending)

        with self._timeline.span("first prefill", tokens=len(ids)):
            logits = self._decoder.forward(ids, positions, timed, rows, **more)
        thread = threading.current_thread().name
        for layer, (start, end) in enumerate(zip(starts, [*starts[1:], self._timeline.now()], strict=True)):
            self._timeline.record(Span("prefill layer", start, end, thread, {"layer": layer}))
        return logits


class WatchedEngine:
    """An engine that marks the moment in which the first token of all was there."""

    def __init__(self, engine: Answers, timeline: Timeline) -> None:
        self._engine, self._timeline = engine, timeline
        self._is_first = True

    def submit(self, request: Request, deliver: Deliver) -> None:
        """See `Answers.submit`."""
        self._engine.submit(request, self._watched(deliver) if self._is_first else deliver)

    def cancel(self, request_id: str) -> None:
        """See `Answers.cancel`."""
        self._engine.cancel(request_id)

    def stats(self) -> Any:
        """See `Answers.stats`."""
        return self._engine.stats()

    def _watched(self, deliver: Deliver) -> Deliver:
        self._timeline.mark("first request")

        def watched(event: TokenEvent) -> None:
            if self._is_first and event.token_ids:
                self._is_first = False
                self._timeline.mark("first token")
            deliver(event)

        return watched
