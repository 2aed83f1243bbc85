"""A load's threads give way by their name; the one that starts an engine keeps the niceness that it was made with."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from coldstream.host.threads import give_way
from coldstream.loading.threads import LoaderThreads

NAME = "load-threads"


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.fixture
def threads() -> LoaderThreads:
    return LoaderThreads("m", kernel_name=NAME)


async def test_work_is_done_on_a_thread_of_its_own_and_raises_what_it_raised(threads: LoaderThreads) -> None:
    def fail() -> None:
        raise KeyError("x")

    assert await threads.run("torch", lambda: threading.current_thread().name) == "torch m"
    with pytest.raises(KeyError):
        await threads.run("torch", fail)
    threads.end()
    threads.join(10)
    assert not [thread for thread in threading.enumerate() if thread.name.endswith(" m")]


async def test_an_engine_is_started_with_the_niceness_from_before_the_load_gave_way(threads: LoaderThreads) -> None:
    def yield_and_ask() -> int:
        give_way([NAME])
        return niceness()

    before = niceness()
    assert await threads.run("tensors", yield_and_ask) == 19
    assert await threads.run_answering(niceness) == before


async def test_what_was_given_up_goes_on_to_no_avail(threads: LoaderThreads) -> None:
    go_on, done = threading.Event(), threading.Event()

    def work() -> None:
        go_on.wait(10)
        done.set()

    waiting = asyncio.create_task(threads.run("tokenizer", work))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    go_on.set()
    threads.end()
    threads.join(10)
    assert done.is_set()
