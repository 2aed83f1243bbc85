"""One range, whatever the network does: retry, resume from the last good byte, hedge, all within a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from coldstream.weights.stores.store import Interrupted, Pin, Store
from coldstream.weights.transfer.checksum import Digest
from coldstream.weights.transfer.latency import HEDGE_POLL, TAIL_POLL, Pace, ReadWatch, RunningRead
from coldstream.weights.transfer.memory import Slabs
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


@dataclass(frozen=True, slots=True)
class _Range:
    """Bytes from `start` on of a pinned object, for `target`; `landed` of them are there."""

    pin: Pin
    start: int
    target: memoryview
    landed: Digest

    @property
    def left(self) -> int:
        return self.target.nbytes - self.landed.nbytes

    def part(self, low: int, high: int) -> _Range:
        """A range of its own, for the same memory."""
        return _Range(self.pin, self.start + low, self.target[low:high], self.landed.another())


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
        self._watch = ReadWatch(lambda: TAIL_POLL if is_tail() else HEDGE_POLL)
        self._open_at = 0.0

    async def read(self, pin: Pin, start: int, target: memoryview, *, checked: bool = True) -> int:
        """Fill `target` with the bytes from `start` on. When it ends, no thread writes to `target` any more.

        Returns: the CRC32C of what landed; 0 if it is not to be `checked`.

        Raises:
            StoreError: retrying cannot mend it, or the attempts or the deadline are spent.
        """
        uri = self._store.location.child(pin.name)
        end = start + target.nbytes
        attempts = Attempts(self._policy, where=f"{uri}, bytes {start}-{end}", deadline=self._deadline)
        wanted = _Range(pin, start, target, Digest(checked=checked))
        while wanted.left:
            before = wanted.landed.nbytes
            try:
                await self._wait_until_open(attempts)
                await self._hedged(wanted, attempts)
            except Interrupted as failure:
                if wanted.landed.nbytes > before:
                    attempts.progressed()
                    self._counters.resumes += 1
                if wanted.left:
                    await self._back_off(failure, attempts)
        return wanted.landed.crc

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

    async def _hedged(self, wanted: _Range, attempts: Attempts) -> None:
        """What is left of a range, until one of one or two reads has ended well."""
        landed, running = wanted.landed, self._pace.begin(wanted.left, now=now())
        began = landed.nbytes
        racers = [asyncio.create_task(self._timed(wanted, attempts, running))]
        second: _Range | None = None
        try:
            late = await self._watch.until(lambda: self._is_late(running, landed.nbytes - began), racers[0])
            split = landed.so_far
            left = wanted.target.nbytes - split.nbytes
            if late and left and self._may_hedge(left):
                # Into memory of its own: the first one may still write to the target.
                spare = self._slabs.take(left)
                second = _Range(wanted.pin, wanted.start + split.nbytes, spare, landed.another())
                racers.append(asyncio.create_task(self._second(second, attempts)))
            winner = await self._winner(racers)
        finally:
            self._pace.forget(running)
            await _ended(racers)
        if second is not None and winner is racers[1]:
            wanted.target[split.nbytes :] = second.target
            landed.so_far = split  # what came after it is overwritten
            landed.append(second.landed)
        return winner.result()

    def _is_late(self, running: RunningRead, landed: int) -> bool:
        """Whether a second read should begin, if that is allowed."""
        late = self._pace.late_at(running, is_tail=self._is_tail())
        return late is not None and now() >= late and self._pace.gains(running, landed, now=now())

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

    async def _second(self, wanted: _Range, attempts: Attempts) -> None:
        nbytes = wanted.target.nbytes
        self._counters.hedges += 1
        self._counters.hedged_bytes += nbytes
        self._counters.wasted_bytes += nbytes  # by one of the two
        try:
            await self._in_pieces(wanted, attempts)
        finally:
            self._release(nbytes)

    async def _in_pieces(self, wanted: _Range, attempts: Attempts) -> None:
        nbytes = wanted.target.nbytes
        count = -(-nbytes // HEDGE_PIECE)
        edges = [nbytes * index // count for index in range(count + 1)]
        pieces = [wanted.part(low, high) for low, high in pairwise(edges)]
        tasks = [asyncio.create_task(self._hedged(piece, attempts)) for piece in pieces]
        try:
            await asyncio.gather(*tasks)
        finally:
            await _ended(tasks)
        for piece in pieces:
            wanted.landed.append(piece.landed)

    async def _timed(self, wanted: _Range, attempts: Attempts, running: RunningRead) -> None:
        """One request for what is left of a range."""
        self._counters.requests += 1
        start, rest = wanted.start + wanted.landed.nbytes, wanted.target[wanted.landed.nbytes :]
        limit = min(attempts.remaining, ATTEMPT_FLOOR + rest.nbytes / SLOWEST)
        try:
            async with asyncio.timeout(max(0.0, limit)):
                await self._store.read_into(wanted.pin, start, rest, wanted.landed.add)
        except TimeoutError as exc:
            self._counters.stalls += 1
            raise Interruption(f"no end after {limit:.0f} s") from exc
        if wanted.left:
            raise Interruption(f"only {rest.nbytes - wanted.left} of {rest.nbytes} bytes came")
        self._pace.completed(running, now=now())


async def _ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel those that still run, and wait until all are gone."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
