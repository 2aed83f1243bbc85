"""One range, whatever the network does: retry, resume from the last good byte, hedge, all within a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import pairwise

from coldstream.weights.stores.store import Interrupted, Pin, Store
from coldstream.weights.transfer.latency import HEDGE_POLL, TAIL_POLL, Pace, ReadWatch, RunningRead
from coldstream.weights.transfer.progress import Counters
from coldstream.weights.transfer.retry import Attempts, RetryPolicy, now

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


@dataclass(slots=True)
class _Range:
    """Bytes `start` to `end` (exclusive) of a pinned object, and those that are there, from `start` on.

    Once a read of them has broken they are read `piecewise`, so that the next one begins where that one breaks.
    """

    pin: Pin
    start: int
    end: int
    piecewise: bool = False
    pieces: list[memoryview] = field(default_factory=list)
    landed: int = 0

    @property
    def left(self) -> int:
        return self.end - self.start - self.landed

    def add(self, piece: memoryview) -> None:
        self.pieces.append(piece)
        self.landed += piece.nbytes

    def rest(self) -> _Range:
        """What is missing, as a range of its own."""
        return _Range(self.pin, self.start + self.landed, self.end, self.piecewise)

    def part(self, low: int, high: int) -> _Range:
        """Bytes `low` to `high` of it, as a range of its own."""
        return _Range(self.pin, self.start + low, self.start + high, self.piecewise)


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
        self._watch = ReadWatch(lambda: TAIL_POLL if is_tail() else HEDGE_POLL)
        self._open_at = 0.0

    async def read(self, pin: Pin, start: int, end: int) -> list[memoryview]:
        """Bytes `start` to `end` (exclusive), in order, in the buffers that they came in: in one, if all went well.

        Raises:
            StoreError: retrying cannot mend it, or the attempts or the deadline are spent.
        """
        uri = self._store.location.child(pin.name)
        attempts = Attempts(self._policy, where=f"{uri}, bytes {start}-{end}", deadline=self._deadline)
        wanted = _Range(pin, start, end)
        while wanted.left:
            before = wanted.landed
            try:
                await self._wait_until_open(attempts)
                await self._hedged(wanted, attempts)
            except Interrupted as failure:
                if wanted.landed > before:
                    attempts.progressed()
                    self._counters.resumes += 1
                if not failure.throttled and not failure.refused:
                    wanted.piecewise = True
                if wanted.left:
                    await self._back_off(failure, attempts)
        return wanted.pieces

    async def _back_off(self, failure: Interrupted, attempts: Attempts) -> None:
        self._counters.retries += 1
        delay = attempts.next_delay(failure)
        if failure.throttled:
            self._counters.throttles += 1
            self._throttled()
            # The server spoke to all of us, not only to this read.
            self._open_at = max(self._open_at, now() + (delay if failure.retry_after is None else failure.retry_after))
        await asyncio.sleep(delay)

    async def _wait_until_open(self, attempts: Attempts) -> None:
        while (wait := self._open_at - now()) > 0:
            await asyncio.sleep(max(0.0, min(wait, attempts.remaining)))
            attempts.check_deadline()

    async def _hedged(self, wanted: _Range, attempts: Attempts) -> None:
        """What is left of a range, until one of one or two reads has ended well."""
        running = self._pace.begin(wanted.left, now=now())
        began = wanted.landed
        racers = [asyncio.create_task(self._timed(wanted, attempts, running))]
        second: _Range | None = None
        try:
            late = await self._watch.until(lambda: self._is_late(running, wanted.landed - began), racers[0])
            split = len(wanted.pieces)
            if late and wanted.left and self._may_hedge(wanted.left):
                second = wanted.rest()
                racers.append(asyncio.create_task(self._second(second, attempts)))
            winner = await self._winner(racers)
        finally:
            self._pace.forget(running)
            await _ended(racers)
        if second is not None and winner is racers[1]:
            wanted.pieces[split:] = second.pieces
            wanted.landed = second.start - wanted.start + second.landed
        return winner.result()

    def _is_late(self, running: RunningRead, landed: int) -> bool:
        """Whether a second read should begin, if that is allowed."""
        late = self._pace.late_at(running, is_tail=self._is_tail())
        return late is not None and now() >= late and self._pace.gains(running, landed, now=now())

    async def _winner(self, racers: Sequence[asyncio.Task[None]]) -> asyncio.Task[None]:
        """The first to end well; when none does the first racer, because only what it has landed is kept."""
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

    async def _second(self, wanted: _Range, attempts: Attempts) -> None:
        nbytes = wanted.left
        self._counters.hedges += 1
        self._counters.hedged_bytes += nbytes
        self._counters.wasted_bytes += nbytes  # by one of the two
        try:
            await self._in_pieces(wanted, attempts)
        finally:
            self._release(nbytes)

    async def _in_pieces(self, wanted: _Range, attempts: Attempts) -> None:
        nbytes = wanted.left
        count = -(-nbytes // HEDGE_PIECE)
        edges = [nbytes * index // count for index in range(count + 1)]
        pieces = [wanted.part(low, high) for low, high in pairwise(edges)]
        tasks = [asyncio.create_task(self._hedged(piece, attempts)) for piece in pieces]
        try:
            await asyncio.gather(*tasks)
        finally:
            await _ended(tasks)
        for piece in pieces:
            for buffer in piece.pieces:
                wanted.add(buffer)

    async def _timed(self, wanted: _Range, attempts: Attempts, running: RunningRead) -> None:
        """One request for what is left of a range."""
        self._counters.requests += 1
        start, left = wanted.start + wanted.landed, wanted.left
        limit = min(attempts.remaining, ATTEMPT_FLOOR + left / SLOWEST)
        read = self._store.read_range(wanted.pin, start, wanted.end, piecewise=wanted.piecewise)
        try:
            async with asyncio.timeout(max(0.0, limit)), aclosing(read) as pieces:
                async for piece in pieces:
                    wanted.add(piece)
        except TimeoutError as exc:
            self._counters.stalls += 1
            raise Interruption(f"no end after {limit:.0f} s") from exc
        if wanted.left:
            raise Interruption(f"only {left - wanted.left} of {left} bytes came")
        self._pace.completed(running, now=now())


async def _ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel those that still run, and wait until all are gone."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
