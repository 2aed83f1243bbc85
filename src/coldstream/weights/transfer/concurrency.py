"""How many reads run at once: slow start, then additive increase and multiplicative decrease. Pure: the clock is given.

After TCP's congestion control (RFC 5681), with goodput in place of loss: a store that is at its limit answers 429 or
503, or simply gives every connection less.
"""

from __future__ import annotations

from dataclasses import dataclass

# Seconds over which goodput is measured; shorter ones see single reads, not the store.
WINDOW = 0.25
GROWTH = 1.5
BACKOFF = 0.5
# Growing goes on while goodput rises by this much; less than FALLING of the best seen is taken for congestion. The best
# fades, so that growth is tried again after a while.
RISING = 1.1
FALLING = 0.5
FADING = 0.97


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limit stays within `low` and `high`, and begins at `start`."""

    low: int = 2
    start: int = 16
    high: int = 48

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.start <= self.high:
            raise ValueError(f"needs 1 <= low <= start <= high, not {self.low}, {self.start}, {self.high}")

    @classmethod
    def fixed(cls, connections: int) -> Bounds:
        """Always the same number."""
        return cls(connections, connections, connections)


class Concurrency:
    """The limit now; told of every read that ended and every refusal. Times in seconds on any one clock."""

    def __init__(self, bounds: Bounds, *, now: float) -> None:
        self._bounds = bounds
        self._limit = float(bounds.start)
        self._slow_start = True
        self._before = self._limit
        self._window_began: float | None = None
        self._window_bytes = 0
        self._window_reads = 0
        self._best = 0.0
        self._decreased_at = now - WINDOW

    @property
    def limit(self) -> int:
        """Reads that may run at once."""
        return int(self._limit)

    def completed(self, nbytes: int, *, now: float) -> None:
        """A read ended well."""
        self._window_reads += 1
        if self._window_began is None:
            # The first generation of reads began together, and says nothing about goodput.
            if self._window_reads >= self._limit:
                self._open_window(now)
            return
        self._window_bytes += nbytes
        elapsed = now - self._window_began
        if elapsed >= WINDOW and self._window_reads >= self._limit:
            self._judge(self._window_bytes / elapsed, now)
            self._open_window(now)

    def throttled(self, *, now: float) -> None:
        """The store asked for less. One burst of refusals counts once."""
        if now - self._decreased_at >= WINDOW:
            self._decrease(now)

    def _open_window(self, now: float) -> None:
        self._window_began, self._window_bytes, self._window_reads = now, 0, 0

    def _judge(self, goodput: float, now: float) -> None:
        rising = goodput > RISING * self._best
        falling = goodput < FALLING * self._best
        self._best = max(self._best * FADING, goodput)
        if falling:
            self._best = goodput
            self._decrease(now)
        elif rising:
            self._before = self._limit
            self._set(self._limit * GROWTH if self._slow_start else self._limit + 1)
        elif self._before < self._limit:
            # More reads at once did not bring more, they only make each of them slower, and the last ones later.
            self._slow_start = False
            self._set(self._before)

    def _decrease(self, now: float) -> None:
        self._slow_start = False
        self._decreased_at = now
        self._set(self._limit * BACKOFF)
        self._before = self._limit

    def _set(self, limit: float) -> None:
        self._limit = min(max(limit, self._bounds.low), self._bounds.high)
