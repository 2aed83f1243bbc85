"""One range, whatever the network does: retry, resume from the last good byte, hedge, all within a deadline."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from coldstream.weights.memory import Slabs
from coldstream.weights.progress import Counters
from coldstream.weights.retry import Attempts, RetryPolicy, now
from coldstream.weights.store import Interrupted, Pin, Store

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
# A second read goes in pieces, side by side, because it has less time.
HEDGE_PIECE = 8 * 1024 * 1024
# No useful connection is slower (bytes a second); a read below it is cut and resumed.
SLOWEST = 256 * 1024
ATTEMPT_FLOOR = 30.0


class Interruption(Interrupted):
    """A read that was cut by us, because it took too long."""


@dataclass(slots=True)
class HedgeBudget:
    """Bytes that second reads may cost."""

    left: int

    def take(self, nbytes: int) -> bool:
        """Whether there was enough."""
        if nbytes > self.left:
            return False
        self.left -= nbytes
        return True


@dataclass(slots=True, eq=False)
class Running:
    """A read that has begun, and what of all that began later has ended: no smaller reads, and bytes."""

    nbytes: int
    began: float
    overtaken: int = 0
    overtaken_bytes: int = 0


class Pace:
    """How long reads take: a time to the first byte and a time for each byte, by least squares over the last ones."""

    def __init__(self) -> None:
        self._samples: deque[tuple[int, float]] = deque(maxlen=32)
        self._running: set[Running] = set()
        self._line: tuple[float, float, float] | None = None

    def begin(self, nbytes: int, *, now: float) -> Running:
        """A read begins."""
        read = Running(nbytes, now)
        self._running.add(read)
        return read

    def completed(self, read: Running, *, now: float) -> None:
        """It ended well."""
        self._samples.append((read.nbytes, now - read.began))
        self._line = None
        for other in self._running:
            if other.began < read.began:
                other.overtaken += other.nbytes <= read.nbytes
                other.overtaken_bytes += read.nbytes

    def forget(self, read: Running) -> None:
        """It ended, in whatever way."""
        self._running.discard(read)

    def usual(self, nbytes: int) -> float | None:
        """Seconds that a read of this size takes; None while too little is known."""
        if len(self._samples) < HEDGE_SAMPLES:
            return None
        first, per_byte, _ = self._fitted()
        return first + per_byte * nbytes

    def late_at(self, read: Running, *, is_tail: bool) -> float | None:
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

    def _is_behind(self, read: Running) -> bool:
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
    size = fmean(nbytes for nbytes, _ in samples)
    time = fmean(seconds for _, seconds in samples)
    spread = sum((nbytes - size) ** 2 for nbytes, _ in samples)
    common = sum((nbytes - size) * (seconds - time) for nbytes, seconds in samples)
    # Neither can be negative, whatever noise says; reads of one size tell nothing about the first byte.
    per_byte = min(max(common / spread, 0.0), time / size) if spread else time / size
    first = time - per_byte * size
    ratios = sorted(seconds / max(first + per_byte * nbytes, 1e-9) for nbytes, seconds in samples)
    return first, per_byte, ratios[len(ratios) * 9 // 10]


class Fetcher:
    """Reads ranges of pinned objects. Shared by all reads of a load, so that they learn from each other."""

    def __init__(
        self,
        store: Store,
        *,
        policy: RetryPolicy,
        counters: Counters,
        deadline: float,
        hedges: HedgeBudget,
        reserve: Callable[[int], bool],
        release: Callable[[int], None],
        throttled: Callable[[], None],
        is_tail: Callable[[], bool],
        slabs: Slabs,
    ) -> None:
        self._store = store
        self._policy = policy
        self._counters = counters
        self._deadline = deadline
        self._hedges = hedges
        self._reserve = reserve
        self._release = release
        self._throttled = throttled
        self._is_tail = is_tail
        self._slabs = slabs
        self._pace = Pace()
        self._open_at = 0.0

    async def read(self, pin: Pin, start: int, target: memoryview) -> None:
        """Fill `target` with the bytes from `start` on. When it ends, nobody writes to `target` any more.

        Raises:
            StoreError: retrying cannot mend it, or the attempts or the deadline are spent.
        """
        uri = self._store.location.child(pin.name)
        end = start + target.nbytes
        attempts = Attempts(self._policy, where=f"{uri}, bytes {start}-{end}", deadline=self._deadline)
        landed = 0
        while landed < target.nbytes:
            try:
                await self._wait_until_open(attempts)
                await self._hedged(pin, start + landed, target[landed:], attempts)
                return
            except Interrupted as failure:
                if failure.landed:
                    landed += failure.landed
                    attempts.progressed()
                    self._counters.resumes += 1
                if landed < target.nbytes:
                    await self._back_off(failure, attempts)

    async def _back_off(self, failure: Interrupted, attempts: Attempts) -> None:
        self._counters.retries += 1
        delay = attempts.next_delay(failure)
        if failure.throttled:
            self._counters.throttles += 1
            self._throttled()
            if failure.retry_after is not None:
                # The server spoke to all of us, not only to this read.
                self._open_at = max(self._open_at, now() + failure.retry_after)
        await asyncio.sleep(delay)

    async def _wait_until_open(self, attempts: Attempts) -> None:
        while (wait := self._open_at - now()) > 0:
            await asyncio.sleep(max(0.0, min(wait, attempts.remaining)))
            attempts.check_deadline()

    async def _hedged(self, pin: Pin, start: int, target: memoryview, attempts: Attempts) -> None:
        """Until one of one or two reads has ended well."""
        running = self._pace.begin(target.nbytes, now=now())
        racers = [asyncio.create_task(self._timed(pin, start, target, attempts, running))]
        try:
            if not await self._is_late(running, racers[0]) or not self._may_hedge(target.nbytes):
                return await racers[0]
            # Into memory of its own: the first one may still write to the target.
            spare = self._slabs.take(target.nbytes)
            racers.append(asyncio.create_task(self._second(pin, start, spare, attempts)))
            winner = await self._winner(racers)
        finally:
            self._pace.forget(running)
            await _ended(racers)
        if winner is racers[1]:
            target[:] = spare
        return winner.result()

    async def _is_late(self, running: Running, read: asyncio.Task[None]) -> bool:
        """Wait until it has ended (False) or is late (True)."""
        while not read.done():
            is_tail = self._is_tail()
            late = self._pace.late_at(running, is_tail=is_tail)
            if late is not None and now() >= late:
                return True
            await asyncio.wait({read}, timeout=TAIL_POLL if is_tail else HEDGE_POLL)
        return False

    async def _winner(self, racers: Sequence[asyncio.Task[None]]) -> asyncio.Task[None]:
        """The first to end well; when none does the first racer, because only what it has landed lies in the target."""
        pending = set(racers)
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for racer in done:
                if racer.exception() is None:
                    return racer
        return racers[0]

    def _may_hedge(self, nbytes: int) -> bool:
        # The second read holds memory as well, so it needs room in the budget of bytes in flight.
        if not self._reserve(nbytes):
            return False
        if not self._hedges.take(nbytes):
            self._release(nbytes)
            return False
        return True

    async def _second(self, pin: Pin, start: int, target: memoryview, attempts: Attempts) -> None:
        self._counters.hedges += 1
        self._counters.hedged_bytes += target.nbytes
        self._counters.wasted_bytes += target.nbytes  # by one of the two
        try:
            await self._in_pieces(pin, start, target, attempts)
        finally:
            self._release(target.nbytes)

    async def _in_pieces(self, pin: Pin, start: int, target: memoryview, attempts: Attempts) -> None:
        count = -(-target.nbytes // HEDGE_PIECE)
        edges = [target.nbytes * index // count for index in range(count + 1)]
        tasks = [
            asyncio.create_task(self._hedged(pin, start + low, target[low:high], attempts))
            for low, high in pairwise(edges)
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            await _ended(tasks)

    async def _timed(self, pin: Pin, start: int, target: memoryview, attempts: Attempts, running: Running) -> None:
        self._counters.requests += 1
        limit = min(attempts.remaining, ATTEMPT_FLOOR + target.nbytes / SLOWEST)
        try:
            async with asyncio.timeout(max(0.0, limit)):
                await self._store.read_into(pin, start, target)
        except TimeoutError as exc:
            self._counters.stalls += 1
            raise Interruption(f"no end after {limit:.0f} s") from exc
        self._pace.completed(running, now=now())


async def _ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel those that still run, and wait until all are gone."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
