"""The tensor queue: bytes wait here, no more than may."""

from __future__ import annotations

import asyncio
import threading

import pytest

from coldstream.errors import StoreUnavailable
from coldstream.loading.tensor_queue import FileVerified, TensorQueue
from coldstream.weights.checkpoint.header import TensorInfo
from coldstream.weights.transfer.stream import Landed


def tensor(number: int, size: int) -> Landed:
    info = TensorInfo(f"t{number}", "U8", (size,), "model.safetensors", 0, size)
    return Landed(info, memoryview(bytes(size)))


def test_tensors_come_out_in_order_and_end_with_the_end() -> None:
    async def fill() -> None:
        for number in range(5):
            await queue.put(tensor(number, 10))
        queue.end()

    queue = TensorQueue()
    asyncio.run(fill())
    assert [landed.info.name for landed in queue if isinstance(landed, Landed)] == ["t0", "t1", "t2", "t3", "t4"]


def test_events_come_in_their_place_between_tensors() -> None:
    async def fill() -> None:
        await queue.put(tensor(0, 10))
        queue.tell(FileVerified("a", redelivered=False))
        await queue.put(tensor(1, 10))
        queue.end()

    queue = TensorQueue()
    asyncio.run(fill())
    assert list(queue) == [tensor(0, 10), FileVerified("a", redelivered=False), tensor(1, 10)]


def test_a_failed_load_raises_its_first_error_at_the_reader_and_nothing_more_is_taken() -> None:
    queue = TensorQueue()
    asyncio.run(queue.put(tensor(0, 10)))
    queue.fail(StoreUnavailable("gs://b/m: gone"))
    queue.fail(StoreUnavailable("gs://b/m: later"))
    with pytest.raises(StoreUnavailable, match="gone"):
        next(iter(queue))
    with pytest.raises(StoreUnavailable, match="gone"):
        queue.check()


def test_never_more_than_the_capacity_waits_and_everything_arrives() -> None:
    sizes = [10, 30, 50, 70, 20, 200, 10, 90]
    queue = TensorQueue(capacity=100)
    most: list[int] = []

    async def fill() -> None:
        for number, size in enumerate(sizes):
            await queue.put(tensor(number, size))
            most.append(queue.waiting_bytes)
        queue.end()

    writer = threading.Thread(target=lambda: asyncio.run(fill()))
    writer.start()
    got = [landed.info.nbytes for landed in queue if isinstance(landed, Landed)]
    writer.join()
    assert got == sizes
    assert max(most) <= 200  # the one that is larger than the capacity may wait alone
    assert all(waiting <= 100 or waiting == 200 for waiting in most)
