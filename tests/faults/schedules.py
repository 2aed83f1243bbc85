"""Seeded fault schedules: right bytes or a named error, every time, and never a hang.

python -m tests.faults.schedules --seeds 500
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import Counter

from coldstream.errors import ColdstreamError
from coldstream.weights.checkpoint.checkpoint import open_checkpoint_async
from coldstream.weights.transfer.concurrency import Bounds
from coldstream.weights.transfer.retry import RetryPolicy
from coldstream.weights.transfer.stream import StreamOptions, stream
from tests.support import files
from tests.support.fault_stores import KINDS, Fault, FaultStore, MemoryStore, Request

# Long enough for every schedule that can end well, short enough to see a hang.
HANG = 20.0
POLICY = RetryPolicy(attempts=4, first_delay=0.001, max_delay=0.01, refused_window=0.1, deadline=10.0)


async def run(seed: int) -> str:
    """The outcome of one schedule: "right", or the error's name.

    Raises:
        AssertionError: wrong bytes, or tensors missing, without an error.
        TimeoutError: a hang.
    """
    draw = random.Random(seed)
    tensors = files.model(seed, layers=draw.randint(1, 6), width=draw.choice([1, 3, 8, 32]))
    inner = MemoryStore(files.checkpoint(tensors, shards=draw.randint(1, 4)), checksums=True)
    store = FaultStore(inner, _schedule(draw))
    try:
        async with asyncio.timeout(HANG):
            checkpoint = await open_checkpoint_async(store.location, store=store, retry=POLICY)
            loaded = stream(checkpoint, options=_options(draw))
            got = {landed.info.name: bytes(landed.data) async for landed in loaded}
    except ColdstreamError as error:
        return type(error).__name__
    assert got == {name: data for name, (_, _, data) in tensors.items()}, f"seed {seed}: wrong bytes"
    return "right"


def _options(draw: random.Random) -> StreamOptions:
    return StreamOptions(
        max_bytes_in_flight=draw.choice([None, 64, 300, 5000]),
        concurrency=draw.choice([None, 1, 3, Bounds(1, 2, 9)]),
        part_size=draw.choice([16, 100, 256, 4096]),
        hedge_fraction=draw.choice([0.0, 0.04, 1.0]),
        retry=POLICY,
    )


def _schedule(draw: random.Random) -> Faults:
    kinds = draw.sample(KINDS, k=draw.randint(1, 5))
    if draw.random() < 0.7:  # most schedules can end well
        kinds = [kind for kind in kinds if kind not in ("denied", "long", "replaced")] or ["reset"]
    return Faults(draw, kinds, chance=draw.choice([0.01, 0.05, 0.2, 0.6]), most=draw.choice([1, 3, 20, 10_000]))


class Faults:
    """Each read meets one of `kinds` with `chance`, until `most` have been met."""

    def __init__(self, draw: random.Random, kinds: list[str], *, chance: float, most: int) -> None:
        self._draw, self._kinds, self._chance, self._left = draw, kinds, chance, most

    def __call__(self, request: Request) -> Fault | None:
        if not request.name.endswith(".safetensors") or not self._left or self._draw.random() >= self._chance:
            return None
        self._left -= 1
        return Fault(self._draw.choice(self._kinds), self._draw.randrange(4096), self._draw.random() * 0.02)


def main() -> None:
    """Run them all; exits with a traceback at the first that goes wrong."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=500)
    count = parser.parse_args().seeds
    began = time.monotonic()
    outcomes = Counter(asyncio.run(run(seed)) for seed in range(count))
    print(f"{count} schedules in {time.monotonic() - began:.0f} s: {dict(outcomes.most_common())}")


if __name__ == "__main__":
    main()
