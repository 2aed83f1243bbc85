"""A bucket with a shape, at the seam and without bytes: how much of its bandwidth does the schedule use?

    python -m tests.faults.shaped --seeds 40

60 ms to the first byte, 100 MB/s a connection, 1 GB/s in all, 2% of the ranges 20 times slower; 2.7 GB.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from coldstream.host.memory import allocate
from coldstream.weights.checkpoint.checkpoint import Checkpoint, Shard
from coldstream.weights.checkpoint.header import Header, TensorInfo
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores.store import Pin
from coldstream.weights.transfer.progress import Counters, Progress
from coldstream.weights.transfer.stream import StreamOptions, stream_ranges

FIRST_BYTE, CONNECTION, TOTAL = 0.060, 100e6, 1e9
SLOW_SHARE, SLOW_FACTOR = 0.02, 20
STEP = 0.002
# A layer of a 1.3 B model: four attention and three MLP matrices.
LAYERS, SIZES = 20, (8_388_608,) * 4 + (33_554_432,) * 3
TOTAL_BYTES = LAYERS * sum(SIZES)


# What every read brings: memory that nothing looks at, so that it is never there.
_NOTHING = allocate(max(SIZES) * len(SIZES)).toreadonly()


class ShapedStore:
    """Every read gets its share of the bandwidth, looked at every STEP seconds; what the slow ones cannot use is the
    others'.
    """

    location = Location.parse("gs://shaped/model")

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._running = [0, 0]  # usual ones, slow ones
        self.slow = 0

    async def list(self) -> Mapping[str, Pin]:
        return {}

    async def pin(self, name: str) -> Pin | None:
        return None

    async def read_range(
        self, pin: Pin, start: int, end: int, *, piecewise: bool = False
    ) -> AsyncGenerator[memoryview, None]:
        slow = self._draw.random() < SLOW_SHARE
        self.slow += slow
        await asyncio.sleep(FIRST_BYTE * self._draw.uniform(0.8, 1.2))
        left = float(end - start)
        self._running[slow] += 1
        try:
            while left > 0:
                await asyncio.sleep(STEP)
                left -= STEP * self._rate(slow)
            yield _NOTHING[: end - start]
        finally:
            self._running[slow] -= 1

    def close_idle(self) -> None:
        pass

    def _rate(self, slow: bool) -> float:
        if slow:
            return CONNECTION / SLOW_FACTOR
        return min(CONNECTION, (TOTAL - self._running[True] * CONNECTION / SLOW_FACTOR) / self._running[False])


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time that passes only while everybody sleeps, so the machine's speed plays no part."""

    def __init__(self) -> None:
        super().__init__()
        self._virtual = 0.0

    def time(self) -> float:
        return self._virtual

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """At once: a thread would work in real time, while the virtual one runs away."""
        done = self.create_future()
        done.set_result(func(*args))
        return done

    def _run_once(self) -> None:
        # A timer that was cancelled may lie before the others; were its time taken, the rest would be slept through.
        alive = [timer.when() for timer in self._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
        if not self._ready and alive:  # type: ignore[attr-defined]
            self._virtual = max(self._virtual, min(alive))
        super()._run_once()  # type: ignore[misc]


async def run(seed: int) -> Outcome:
    """A whole load with this seed's slow ranges."""
    infos: list[TensorInfo] = []
    position = 8
    for number, size in enumerate(SIZES * LAYERS):
        name = f"model.layers.{number // len(SIZES)}.{number % len(SIZES)}"
        infos.append(TensorInfo(name, "U8", (size,), "model.safetensors", position, position + size))
        position += size
    store = ShapedStore(seed)
    pin = Pin("model.safetensors", position, generation="1")
    shard = Shard(pin, Header(tuple(infos), 8), bytes(8))
    tensors = {info.name: info for info in infos}
    checkpoint = Checkpoint(store.location, store, {pin.name: pin}, {}, None, (shard,), tensors)
    progress = Progress()
    began = asyncio.get_running_loop().time()
    async for _ in stream_ranges(checkpoint, options=StreamOptions(), progress=progress):
        pass
    share = TOTAL_BYTES / (asyncio.get_running_loop().time() - began) / TOTAL
    return Outcome(share, store.slow, progress.counters)


@dataclass(frozen=True)
class Outcome:
    """The share of the bandwidth that was used, the ranges that were slow, and what was done about them."""

    share: float
    slow: int
    counters: Counters


def simulate(seed: int) -> Outcome:
    """One load, in no time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(run(seed))


def main() -> None:
    """Print every load, and the median."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=40)
    shares = []
    for seed in range(parser.parse_args().seeds):
        outcome = simulate(seed)
        shares.append(outcome.share)
        hedged = f"{outcome.counters.hedges} hedges of {outcome.counters.hedged_bytes / 1e6:.0f} MB"
        print(f"seed {seed}: {outcome.share:.3f} of {TOTAL / 1e9:g} GB/s, {outcome.slow} slow ranges, {hedged}")
    shares.sort()
    print(f"median {median(shares):.3f}, a quarter below {shares[len(shares) // 4]:.3f}, the worst {shares[0]:.3f}")


if __name__ == "__main__":
    main()
