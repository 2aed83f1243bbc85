"""An async generator seen from a plain thread: its items, its errors, and its end."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncGenerator

import pytest

from coldstream.weights.transfer.background import BackgroundIterator


class Counting:
    """Counts up; remembers where it ran and that it was closed."""

    def __init__(self, count: int = 1_000_000, *, fails_at: int | None = None) -> None:
        self.count, self.fails_at = count, fails_at
        self.closed = threading.Event()
        self.threads: set[str] = set()

    async def items(self) -> AsyncGenerator[int, None]:
        try:
            for number in range(self.count):
                self.threads.add(threading.current_thread().name)
                if number == self.fails_at:
                    raise KeyError("broken")
                await asyncio.sleep(0)
                yield number
        finally:
            await asyncio.sleep(0)  # closing may wait, as ending requests does
            self.closed.set()


def started(counting: Counting) -> BackgroundIterator[int]:
    return BackgroundIterator(counting.items(), name="under-test")


def running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "under-test"]


def test_items_come_in_order_from_a_thread_of_its_own() -> None:
    counting = Counting(5)
    assert list(started(counting)) == [0, 1, 2, 3, 4]
    assert counting.threads == {"under-test"}
    assert running() == []


def test_an_end_is_an_end_for_ever() -> None:
    items = started(Counting(1))
    assert list(items) == [0]
    assert list(items) == []


def test_an_error_comes_out_where_the_items_do_and_ends_the_thread() -> None:
    counting = Counting(fails_at=2)
    items = started(counting)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(KeyError, match="broken"):
        next(items)
    assert running() == []
    assert list(items) == []


def test_close_ends_the_generator_and_the_thread() -> None:
    counting = Counting()
    items = started(counting)
    assert next(items) == 0
    items.close()
    assert counting.closed.is_set()
    assert running() == []
    items.close()
    assert list(items) == []


def test_close_before_the_first_item() -> None:
    items = started(Counting())
    items.close()
    assert running() == []
    assert list(items) == []


def test_an_iterator_that_nobody_holds_ends_by_itself() -> None:
    counting = Counting()
    items = started(counting)
    assert next(items) == 0
    del items
    gc.collect()
    assert counting.closed.is_set()
    assert running() == []


def test_tasks_that_the_generator_started_are_cancelled() -> None:
    cancelled = threading.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def with_a_task() -> AsyncGenerator[int, None]:
        task = asyncio.create_task(forever())
        await asyncio.sleep(0)
        yield 1
        await task

    items = BackgroundIterator(with_a_task(), name="under-test")
    assert next(items) == 1
    items.close()
    assert cancelled.is_set()


def test_the_generator_goes_on_between_items() -> None:
    """What was started lands while the caller computes."""
    landed = threading.Event()

    async def with_background_work() -> AsyncGenerator[int, None]:
        task = asyncio.create_task(asyncio.sleep(0.01))
        task.add_done_callback(lambda _: landed.set())
        yield 1
        await task

    items = BackgroundIterator(with_background_work(), name="under-test")
    assert next(items) == 1
    assert landed.wait(10.0)
    items.close()
