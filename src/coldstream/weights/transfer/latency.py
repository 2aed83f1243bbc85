"""How long reads take, and which of them is late: what they are held against is the other reads of the load."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

# A read is late when it takes this many times the usual for its size; sooner when it fell behind the others, and when
# nothing else is left to read, because then everybody waits for it.
HEDGE_FACTOR = 3.0
EARLY_FACTOR = 1.4
BEHIND = 1.25
# ... and as many times what one in ten takes, so that a network whose reads differ much is not mistaken for a slow one.
SPREAD_FACTOR = 1.25
HEDGE_FLOOR = 0.25
TAIL_FLOOR = 0.1
HEDGE_POLL = 0.05
TAIL_POLL = 0.02
# Reads that must have ended before "usual" means something.
HEDGE_SAMPLES = 8


@dataclass(slots=True, eq=False)
class RunningRead:
    """A read that has begun, and what of all that began later has ended: no smaller reads, and bytes."""

    nbytes: int
    began: float
    overtaken: int = 0
    overtaken_bytes: int = 0


class Pace:
    """How long reads take: a time to the first byte and a time for each byte, by least squares over the last ones."""

    def __init__(self) -> None:
        self._samples: deque[tuple[int, float]] = deque(maxlen=32)
        self._running: set[RunningRead] = set()
        self._line: tuple[float, float, float] | None = None

    def begin(self, nbytes: int, *, now: float) -> RunningRead:
        """A read begins."""
        read = RunningRead(nbytes, now)
        self._running.add(read)
        return read

    def completed(self, read: RunningRead, *, now: float) -> None:
        """It ended well."""
        self._samples.append((read.nbytes, now - read.began))
        self._line = None
        for other in self._running:
            if other.began < read.began:
                other.overtaken += other.nbytes <= read.nbytes
                other.overtaken_bytes += read.nbytes

    def forget(self, read: RunningRead) -> None:
        """It ended, in whatever way."""
        self._running.discard(read)

    def usual(self, nbytes: int) -> float | None:
        """Seconds that a read of this size takes; None while too little is known."""
        if len(self._samples) < HEDGE_SAMPLES:
            return None
        first, per_byte, _ = self._fitted()
        return first + per_byte * nbytes

    def late_at(self, read: RunningRead, *, is_tail: bool) -> float | None:
        """When it will be late, if nothing else happens; None while too little is known."""
        usual = self.usual(read.nbytes)
        if usual is None:
            return None
        factor = max(EARLY_FACTOR, SPREAD_FACTOR * self._fitted()[2])
        if self._is_behind(read):
            factor = max(1.0, SPREAD_FACTOR * self._fitted()[2])
        elif not is_tail:
            factor = max(factor, HEDGE_FACTOR)
        return read.began + max(TAIL_FLOOR if is_tail else HEDGE_FLOOR, usual * factor)

    def gains(self, read: RunningRead, landed: int, *, now: float) -> bool:
        """Whether what is left would come sooner by another read than by this one, of which so much has landed."""
        left = read.nbytes - landed
        usual = self.usual(left)
        return left > 0 and usual is not None and (not landed or usual * landed < (now - read.began) * left)

    def _is_behind(self, read: RunningRead) -> bool:
        """Whether others did in its time what it should have done, which is no matter of how busy the store is.

        Alike reads pass it one by one when it is late; of small ones as many bytes as all that run have pass in time.
        """
        running = max(3, len(self._running))
        return read.overtaken >= max(3, running // 2) or read.overtaken_bytes >= BEHIND * running * read.nbytes

    def _fitted(self) -> tuple[float, float, float]:
        """Seconds to the first byte, seconds a byte, and how many times that one read in ten takes."""
        if self._line is None:
            self._line = _line(list(self._samples))
        return self._line


def _line(samples: list[tuple[int, float]]) -> tuple[float, float, float]:
    size = sum(nbytes for nbytes, _ in samples) / len(samples)
    time = sum(seconds for _, seconds in samples) / len(samples)
    spread = sum((nbytes - size) ** 2 for nbytes, _ in samples)
    common = sum((nbytes - size) * (seconds - time) for nbytes, seconds in samples)
    # Neither can be negative, whatever noise says; reads of one size tell nothing about the first byte.
    per_byte = min(max(common / spread, 0.0), time / size) if spread else time / size
    first = time - per_byte * size
    ratios = sorted(seconds / max(first + per_byte * nbytes, 1e-9) for nbytes, seconds in samples)
    return first, per_byte, ratios[len(ratios) * 9 // 10]


class ReadWatch:
    """Waits for what has no event: one look at all waiting reads, every `period()` seconds."""

    def __init__(self, period: Callable[[], float]) -> None:
        self._period = period
        self._waiting: dict[asyncio.Future[bool], Callable[[], bool]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def until(self, condition: Callable[[], bool], task: asyncio.Task[None]) -> bool:
        """Wait until the condition holds (True) or the task has ended (False)."""
        verdict: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def ended(_: asyncio.Task[None]) -> None:
            if not verdict.done():
                verdict.set_result(False)

        self._waiting[verdict] = condition
        task.add_done_callback(ended)
        if self._timer is None:
            self._look()
        try:
            return await verdict
        finally:
            task.remove_done_callback(ended)
            del self._waiting[verdict]
            if not self._waiting and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _look(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._period(), self._look)
        for verdict, condition in self._waiting.items():
            if not verdict.done() and condition():
                verdict.set_result(True)
