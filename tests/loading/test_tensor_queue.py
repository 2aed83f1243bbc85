"""The tensor queue: bytes wait here, no more than may."""

from __future__ import annotations

import asyncio
import threading

import pytest

from coldstream.errors import StoreUnavailable
from coldstream.loading.tensor_queue import TensorQueue
from coldstream.weights.header import TensorInfo
from coldstream.weights.stream import Landed


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
    assert [landed.info.name for landed in queue] == ["t0", "t1", "t2", "t3", "t4"]


def test_a_failed_load_raises_its_error_at_the_reader() -> None:
    queue = TensorQueue()
    queue.end(StoreUnavailable("gs://b/m: gone"))
    with pytest.raises(StoreUnavailable):
        next(iter(queue))


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
    got = [landed.info.nbytes for landed in queue]
    writer.join()
    assert got == sizes
    assert max(most) <= 200  # the one that is larger than the capacity may wait alone
    assert all(waiting <= 100 or waiting == 200 for waiting in most)
