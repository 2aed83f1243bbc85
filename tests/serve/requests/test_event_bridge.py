"""From the engine's thread to the loop."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from coldstream.engine.request import TokenEvent
from coldstream.errors import DeadlineExceeded
from coldstream.serve.requests.event_bridge import Bridge


def text(word: str) -> TokenEvent:
    return TokenEvent("r", text=word)


LAST = TokenEvent("r", finish_reason="stop")


async def test_events_that_came_before_the_first_read_are_all_there() -> None:
    stream = Bridge().open(1, cancel=lambda: None)
    for event in (text("a"), text("b"), LAST):
        stream.arrive(0, event)
    assert not stream.finished
    assert [event for _, event in await stream.take()] == [text("a"), text("b"), LAST]
    assert stream.finished


async def test_a_burst_from_another_thread_wakes_the_loop_once() -> None:
    bridge, loop = Bridge(), asyncio.get_running_loop()
    wakes = 0
    original = loop.call_soon_threadsafe

    class Counting:
        """The loop, counting who wakes it."""

        def call_soon_threadsafe(self, callback):
            nonlocal wakes
            wakes += 1
            return original(callback)

    streams = [bridge.open(1, cancel=lambda: None) for _ in range(16)]
    bridge._loop = Counting()  # the seam is the loop itself

    def burst() -> None:
        for stream in streams:
            stream.deliver(0)(text("x"))

    thread = threading.Thread(target=burst)
    thread.start()
    thread.join()  # the loop does not turn meanwhile
    assert wakes == 1
    assert [await stream.take() for stream in streams] == [[(0, text("x"))]] * 16


async def test_nothing_is_lost_or_reordered_when_two_engines_deliver_at_once() -> None:
    bridge = Bridge()
    streams = [bridge.open(1, cancel=lambda: None) for _ in range(2)]

    def engine(stream) -> None:
        deliver = stream.deliver(0)
        for number in range(5000):
            deliver(text(str(number)))
        deliver(LAST)

    threads = [threading.Thread(target=engine, args=(stream,)) for stream in streams]
    for thread in threads:
        thread.start()
    for stream in streams:
        got = []
        while not stream.finished:
            got += [event.text for _, event in await stream.take() if event.text]
        assert got == [str(number) for number in range(5000)]
    for thread in threads:
        thread.join()


async def test_what_comes_after_the_terminal_event_is_dropped() -> None:
    stream = Bridge().open(2, cancel=lambda: None)
    for index, event in [(0, LAST), (0, text("late")), (1, text("b")), (0, LAST)]:
        stream.arrive(index, event)
    assert await stream.take() == [(0, LAST), (1, text("b"))]
    assert not stream.finished


async def test_a_deadline_cancels_the_work() -> None:
    cancelled = []
    stream = Bridge().open(1, cancel=lambda: cancelled.append(True))
    with pytest.raises(DeadlineExceeded):
        await stream.take(time.monotonic() + 0.01)
    assert cancelled == [True]


async def test_the_end_of_the_server_is_a_terminal_event_for_who_still_reads() -> None:
    stream = Bridge().open(2, cancel=lambda: None)
    stream.arrive(0, LAST)
    stream.end()
    assert [(index, event.finish_reason) for index, event in await stream.take()] == [(0, "stop"), (1, "cancelled")]
    assert stream.finished


def test_delivering_to_a_loop_that_is_gone_is_harmless() -> None:
    bridge = Bridge()

    async def opened():
        return bridge.open(1, cancel=lambda: None)

    stream = asyncio.run(opened())
    stream.deliver(0)(text("x"))
    stream.deliver(0)(text("y"))
