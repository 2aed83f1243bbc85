"""The landing: bytes wait here, no more than may."""

from __future__ import annotations

import asyncio
import threading

import pytest

from coldstream.errors import StoreUnavailable
from coldstream.serve.landing import Landing
from coldstream.weights.header import TensorInfo
from coldstream.weights.stream import Landed


def tensor(number: int, size: int) -> Landed:
    info = TensorInfo(f"t{number}", "U8", (size,), "model.safetensors", 0, size)
    return Landed(info, memoryview(bytes(size)))


def test_tensors_come_out_in_order_and_end_with_the_end() -> None:
    async def fill() -> None:
        for number in range(5):
            await landing.put(tensor(number, 10))
        landing.end()

    landing = Landing()
    asyncio.run(fill())
    assert [landed.info.name for landed in landing] == ["t0", "t1", "t2", "t3", "t4"]


def test_a_failed_load_raises_its_error_at_the_reader() -> None:
    landing = Landing()
    landing.end(StoreUnavailable("gs://b/m: gone"))
    with pytest.raises(StoreUnavailable):
        next(iter(landing))


def test_never_more_than_the_capacity_waits_and_everything_arrives() -> None:
    sizes = [10, 30, 50, 70, 20, 200, 10, 90]
    landing = Landing(capacity=100)
    most: list[int] = []

    async def fill() -> None:
        for number, size in enumerate(sizes):
            await landing.put(tensor(number, size))
            most.append(landing.waiting_bytes)
        landing.end()

    writer = threading.Thread(target=lambda: asyncio.run(fill()))
    writer.start()
    got = [landed.info.nbytes for landed in landing]
    writer.join()
    assert got == sizes
    assert max(most) <= 200  # the one that is larger than the capacity may wait alone
    assert all(waiting <= 100 or waiting == 200 for waiting in most)
