"""A bucket with a shape, at the seam and without bytes: how much of its bandwidth does the schedule use?

    python -m tests.faults.shaped

60 ms to the first byte, 100 MB/s a connection, 1 GB/s in all, 2% of the ranges 20 times slower; 2.7 GB, 25 MB a tensor.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping

from coldstream.weights.checkpoint import Checkpoint, Shard
from coldstream.weights.header import Header, TensorInfo
from coldstream.weights.progress import Progress
from coldstream.weights.store import Buffer, Pin
from coldstream.weights.stream import StreamOptions, stream_ranges
from coldstream.weights.uri import Location

FIRST_BYTE, CONNECTION, TOTAL = 0.060, 100e6, 1e9
SLOW_SHARE, SLOW_FACTOR = 0.02, 20
TENSORS, SIZE = 107, 25_000_000


class ShapedStore:
    """Every read gets its share of the bandwidth, looked at every few milliseconds."""

    location = Location.parse("gs://shaped/model")

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._zeros = memoryview(bytes(SIZE * 3))
        self._running = 0
        self.slow = 0

    async def list(self) -> Mapping[str, Pin]:
        return {}

    async def pin(self, name: str) -> Pin | None:
        return None

    async def read(self, pin: Pin, start: int, end: int, *, piecewise: bool = False) -> Buffer:
        slow = self._draw.random() < SLOW_SHARE
        self.slow += slow
        rate = CONNECTION / (SLOW_FACTOR if slow else 1)
        await asyncio.sleep(FIRST_BYTE)
        left = float(end - start)
        self._running += 1
        try:
            then = time.monotonic()
            while left > 0:
                await asyncio.sleep(0.005)
                now = time.monotonic()
                left -= (now - then) * min(rate, TOTAL / self._running)
                then = now
        finally:
            self._running -= 1
        return self._zeros[: end - start]


async def run(seed: int) -> float:
    """The share of the bandwidth that was used."""
    infos = [
        TensorInfo(f"model.layers.{n}.w", "U8", (SIZE,), "model.safetensors", 8 + n * SIZE, 8 + (n + 1) * SIZE)
        for n in range(TENSORS)
    ]
    store = ShapedStore(seed)
    pin = Pin("model.safetensors", 8 + TENSORS * SIZE, generation="1")
    shard = Shard(pin, Header(tuple(infos), 8), bytes(8))
    tensors = {info.name: info for info in infos}
    checkpoint = Checkpoint(store.location, store, {pin.name: pin}, {}, None, (shard,), tensors)
    progress = Progress()
    async for _ in stream_ranges(checkpoint, options=StreamOptions(), progress=progress):
        pass
    share = progress.rate / TOTAL
    print(f"seed {seed}: {share:.3f} of {TOTAL / 1e9:g} GB/s, {store.slow} slow ranges, {progress.counters}")
    return share


if __name__ == "__main__":
    shares = sorted(asyncio.run(run(seed)) for seed in range(5))
    print(f"median {shares[len(shares) // 2]:.3f}")
