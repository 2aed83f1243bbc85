"""One range, whatever the network does: retry, resume from the last good byte, hedge, all within a deadline."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from coldstream.errors import BadResponse
from coldstream.weights.progress import Counters
from coldstream.weights.retry import Attempts, RetryPolicy, now
from coldstream.weights.store import Interrupted, Pin, Store

# A read is late when it takes this many times the usual for its size, and at least HEDGE_FLOOR seconds; sooner when
# nothing else is left to read, because then everybody waits for it.
HEDGE_FACTOR = 3.0
TAIL_FACTOR = 1.5
HEDGE_FLOOR = 0.25
HEDGE_POLL = 0.05
# Reads that must have ended before "usual" means something.
HEDGE_SAMPLES = 8
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


class Pace:
    """How long reads take, per byte, from the last ones."""

    def __init__(self) -> None:
        self._seconds_per_byte: deque[float] = deque(maxlen=64)

    def completed(self, nbytes: int, seconds: float) -> None:
        """A read ended well."""
        self._seconds_per_byte.append(seconds / max(nbytes, 1))

    def usual(self, nbytes: int) -> float | None:
        """Seconds that a read of this size takes; None while too little is known."""
        if len(self._seconds_per_byte) < HEDGE_SAMPLES:
            return None
        return median(self._seconds_per_byte) * nbytes


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
        first = asyncio.create_task(self._timed(pin, start, end, attempts))
        racers = {first}
        try:
            if await self._is_late(first, nbytes) and self._may_hedge(nbytes):
                racers.add(asyncio.create_task(self._second(pin, start, end, attempts)))
            return await self._winner(racers, nbytes)
        finally:
            for racer in racers:
                racer.cancel()
            await asyncio.gather(*racers, return_exceptions=True)

    async def _is_late(self, read: asyncio.Task[memoryview], nbytes: int) -> bool:
        """Wait until it has ended (False) or is late (True)."""
        began = now()
        while not read.done():
            usual = self._pace.usual(nbytes)
            if usual is not None:
                late = max(HEDGE_FLOOR, usual * (TAIL_FACTOR if self._is_tail() else HEDGE_FACTOR))
                if now() - began >= late:
                    return True
            await asyncio.wait({read}, timeout=HEDGE_POLL)
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
            return await self._timed(pin, start, end, attempts)
        finally:
            self._release(end - start)

    async def _timed(self, pin: Pin, start: int, end: int, attempts: Attempts) -> memoryview:
        self._counters.requests += 1
        nbytes = end - start
        limit = min(attempts.remaining, ATTEMPT_FLOOR + nbytes / SLOWEST)
        began = now()
        try:
            async with asyncio.timeout(max(0.0, limit)):
                data = await self._store.read(pin, start, end, piecewise=self._piecewise)
        except TimeoutError as exc:
            self._counters.stalls += 1
            raise Interruption(f"no end after {limit:.0f} s") from exc
        self._pace.completed(nbytes, now() - began)
        return data


def _keep(data: memoryview, most: int, landed: list[memoryview], uri: object) -> int:
    """Add what arrived; how many bytes it was. A short body is resumed like a broken one."""
    if data.nbytes > most:
        raise BadResponse(f"{uri}: asked for {most} bytes, got {data.nbytes}; the server ignores ranges, use another")
    landed.append(data)
    return data.nbytes


def _joined(pieces: list[memoryview]) -> memoryview:
    whole = bytearray(sum(piece.nbytes for piece in pieces))
    position = 0
    for piece in pieces:
        whole[position : position + piece.nbytes] = piece
        position += piece.nbytes
    return memoryview(whole).toreadonly()
