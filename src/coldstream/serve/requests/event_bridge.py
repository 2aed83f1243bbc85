"""From the engine's thread to the event loop: events of many requests, one wake-up a step.

`deliver` is called on the engine's thread for every sequence in a step. Only the first call of a burst wakes the loop
(a system call); the others append to a deque, which is atomic under the GIL. On the loop, each stream hands over all
that has arrived since it was last asked, so a slow client costs fewer and larger writes, never a queue of tiny ones.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence

from coldstream.engine.request import TokenEvent
from coldstream.errors import DeadlineExceeded

Ended = Callable[[TokenEvent], None]


class Bridge:
    """One for an application: carries events from engine threads to the streams on its loop."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._arrived: deque[tuple[Stream, int, TokenEvent]] = deque()
        self._waking = False

    def open(self, sequences: int, cancel: Callable[[], None], ended: Ended | None = None) -> Stream:
        """A stream for a request of so many sequences, read on the running loop.

        `ended` is called there with the last terminal event when it arrives, before it is read.
        """
        self._loop = asyncio.get_running_loop()
        return Stream(self, sequences, cancel, ended)

    def put(self, stream: Stream, index: int, event: TokenEvent) -> None:
        """Hand over one event. Any thread; never blocks."""
        self._arrived.append((stream, index, event))
        if self._waking or self._loop is None:
            return
        self._waking = True
        try:
            self._loop.call_soon_threadsafe(self._flush)
        except RuntimeError:
            # The loop is closed: the server has ended, and with it everybody who could read this event.
            self._arrived.clear()

    def _flush(self) -> None:
        self._waking = False  # before the deque is emptied: an event appended from here on wakes the loop again
        while self._arrived:
            stream, index, event = self._arrived.popleft()
            stream.arrive(index, event)


class Stream:
    """The events of one HTTP request's sequences, in order. Lives on the loop; only `deliver` is for engine threads."""

    def __init__(self, bridge: Bridge, sequences: int, cancel: Callable[[], None], ended: Ended | None = None) -> None:
        self._bridge = bridge
        self._ended = ended
        self._events: list[tuple[int, TokenEvent]] = []
        self._open = set(range(sequences))
        self._cancel = cancel
        self._waiter: asyncio.Future[None] | None = None
        self.ended_early = False

    def deliver(self, index: int) -> Callable[[TokenEvent], None]:
        """The callback for the sequence of that index."""

        def callback(event: TokenEvent) -> None:
            self._bridge.put(self, index, event)

        return callback

    @property
    def finished(self) -> bool:
        """Whether every sequence's terminal event has been taken; one that has arrived is still to be read."""
        return not self._open and not self._events

    def arrive(self, index: int, event: TokenEvent) -> None:
        """Take one event, on the loop. What comes after a sequence's terminal event is dropped."""
        if index not in self._open:
            return
        if event.finish_reason is not None:
            self._open.discard(index)
            if not self._open and self._ended is not None:
                self._ended(event)
        self._events.append((index, event))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self, deadline: float | None = None) -> Sequence[tuple[int, TokenEvent]]:
        """All events since the last call, as (sequence, event); waits for at least one.

        Raises:
            DeadlineExceeded: `deadline`, on the `time.monotonic()` clock, passed first; the sequences are cancelled.
        """
        if not self._events:
            await self._wait(deadline)
        events, self._events = self._events, []
        return events

    async def _wait(self, deadline: float | None) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()):
                await self._waiter
        except TimeoutError as exc:
            self.cancel()
            raise DeadlineExceeded("the request's deadline passed before it was finished") from exc
        finally:
            self._waiter = None

    def cancel(self) -> None:
        """Stop the work of the sequences that still run."""
        if self._open:
            self._cancel()

    def end(self) -> None:
        """The server closes: stop the work and hand the reader a terminal event for each open sequence."""
        self.cancel()
        self.ended_early = True
        for index in tuple(self._open):
            self.arrive(index, TokenEvent("", finish_reason="cancelled"))
