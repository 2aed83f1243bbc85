"""One range, whatever the network does: retry, resume from the last good byte, hedge, all within a deadline."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from coldstream.errors import BadResponse
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
        self._pace = Pace()
        self._open_at = 0.0
        # After the first broken body, reads keep what has landed, at the price of a copy.
        self._piecewise = False

    async def read(self, pin: Pin, start: int, end: int) -> memoryview:
        """Bytes `start` to `end` (exclusive).

        Raises:
            StoreError: retrying cannot mend it, or the attempts or the deadline are spent.
        """
        uri = self._store.location.child(pin.name)
        attempts = Attempts(self._policy, where=f"{uri}, bytes {start}-{end}", deadline=self._deadline)
        landed: list[memoryview] = []
        position = start
        while True:
            try:
                await self._wait_until_open(attempts)
                data = await self._hedged(pin, position, end, attempts)
            except Interrupted as failure:
                if failure.partial is not None and failure.partial.nbytes:
                    position += _keep(failure.partial, end - position, landed, uri)
                    attempts.progressed()
                    self._counters.resumes += 1
                if position < end:
                    await self._back_off(failure, attempts)
            else:
                position += _keep(data, end - position, landed, uri)
                if position < end:
                    await self._back_off(Interrupted(f"only {data.nbytes} bytes came"), attempts)
            if position == end:
                return landed[0] if len(landed) == 1 else _joined(landed)

    async def _back_off(self, failure: Interrupted, attempts: Attempts) -> None:
        self._counters.retries += 1
        self._piecewise = self._piecewise or not (failure.throttled or failure.refused)
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

    async def _hedged(self, pin: Pin, start: int, end: int, attempts: Attempts) -> memoryview:
        """The first of one or two reads to end well."""
        nbytes = end - start
        running = self._pace.begin(nbytes, now=now())
        racers = {asyncio.create_task(self._timed(pin, start, end, attempts, running))}
        try:
            if await self._is_late(running, *racers) and self._may_hedge(nbytes):
                racers.add(asyncio.create_task(self._second(pin, start, end, attempts)))
            return await self._winner(racers, nbytes)
        finally:
            self._pace.forget(running)
            for racer in racers:
                racer.cancel()
            await asyncio.gather(*racers, return_exceptions=True)

    async def _is_late(self, running: Running, read: asyncio.Task[memoryview]) -> bool:
        """Wait until it has ended (False) or is late (True)."""
        while not read.done():
            is_tail = self._is_tail()
            late = self._pace.late_at(running, is_tail=is_tail)
            if late is not None and now() >= late:
                return True
            await asyncio.wait({read}, timeout=TAIL_POLL if is_tail else HEDGE_POLL)
        return False

    async def _winner(self, racers: set[asyncio.Task[memoryview]], nbytes: int) -> memoryview:
        pending = set(racers)
        while True:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            good = [racer for racer in done if racer.exception() is None]
            if good:
                if len(racers) > 1:
                    self._counters.wasted_bytes += nbytes
                return good[0].result()
            if not pending:
                return done.pop().result()

    def _may_hedge(self, nbytes: int) -> bool:
        # The second read holds memory as well, so it needs room in the budget of bytes in flight.
        if not self._reserve(nbytes):
            return False
        if not self._hedges.take(nbytes):
            self._release(nbytes)
            return False
        return True

    async def _second(self, pin: Pin, start: int, end: int, attempts: Attempts) -> memoryview:
        self._counters.hedges += 1
        self._counters.hedged_bytes += end - start
        try:
            return await self._in_pieces(pin, start, end, attempts)
        finally:
            self._release(end - start)

    async def _in_pieces(self, pin: Pin, start: int, end: int, attempts: Attempts) -> memoryview:
        count = -(-(end - start) // HEDGE_PIECE)
        edges = [start + (end - start) * index // count for index in range(count + 1)]
        tasks = [asyncio.create_task(self._hedged(pin, *span, attempts)) for span in pairwise(edges)]
        try:
            pieces = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return pieces[0] if count == 1 else _joined(pieces)

    async def _timed(self, pin: Pin, start: int, end: int, attempts: Attempts, running: Running) -> memoryview:
        self._counters.requests += 1
        limit = min(attempts.remaining, ATTEMPT_FLOOR + (end - start) / SLOWEST)
        try:
            async with asyncio.timeout(max(0.0, limit)):
                data = await self._store.read(pin, start, end, piecewise=self._piecewise)
        except TimeoutError as exc:
            self._counters.stalls += 1
            raise Interruption(f"no end after {limit:.0f} s") from exc
        self._pace.completed(running, now=now())
        return data


def _keep(data: memoryview, most: int, landed: list[memoryview], uri: object) -> int:
    """Add what arrived; how many bytes it was. A short body is resumed like a broken one."""
    if data.nbytes > most:
        raise BadResponse(f"{uri}: asked for {most} bytes, got {data.nbytes}; the server ignores ranges, use another")
    landed.append(data)
    return data.nbytes


def _joined(pieces: Sequence[memoryview]) -> memoryview:
    whole = bytearray(sum(piece.nbytes for piece in pieces))
    position = 0
    for piece in pieces:
        whole[position : position + piece.nbytes] = piece
        position += piece.nbytes
    return memoryview(whole).toreadonly()
