"""When to ask again: full jitter, Retry-After, a window in which a refused connection is waited out, a deadline."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from coldstream.errors import StoreUnavailable
from coldstream.weights.stores.store import Interrupted

# A refusal costs nothing, and the network may come up at any moment.
REFUSED_DELAY = 1.0

_T = TypeVar("_T")


def now() -> float:
    """Seconds on the event loop's clock, which a simulation may set."""
    return asyncio.get_running_loop().time()


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Times in seconds.

    `attempts` without a single new byte end a read; `refused_window` from the first refusal is waited out, because a
    new instance's network may come up later than the instance (Cloud Run with Direct VPC egress).
    """

    attempts: int = 8
    first_delay: float = 0.1
    max_delay: float = 10.0
    refused_window: float = 120.0
    deadline: float = 1800.0

    def delay(self, failures: int, *, retry_after: float | None, draw: Callable[[], float] = random.random) -> float:
        """Full jitter, never before Retry-After.

        https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        """
        backoff: float = draw() * min(self.max_delay, self.first_delay * 2 ** min(failures - 1, 16))
        return backoff if retry_after is None else retry_after + backoff * 0.1


class Attempts:
    """The state of one read: how often it failed since the last good byte, and when it has to end."""

    def __init__(self, policy: RetryPolicy, *, where: str, deadline: float | None = None) -> None:
        self._policy = policy
        self._where = where
        self._started = now()
        self._deadline = self._started + policy.deadline if deadline is None else deadline
        self._failures = 0
        self._refused_since: float | None = None

    @property
    def remaining(self) -> float:
        """Seconds until the deadline."""
        return self._deadline - now()

    def check_deadline(self) -> None:
        """Raises StoreUnavailable when no time is left."""
        if self.remaining <= 0:
            raise StoreUnavailable(
                f"{self._where}: the deadline of {self._policy.deadline:g} s is spent; try again later"
            )

    def progressed(self) -> None:
        """Bytes arrived: the count of failures starts again."""
        self._failures = 0
        self._refused_since = None

    def next_delay(self, failure: Interrupted) -> float:
        """How long to wait before the next attempt.

        Raises:
            StoreUnavailable: the attempts, the window or the deadline are spent.
        """
        self._failures += 1
        moment = now()
        delay = self._policy.delay(self._failures, retry_after=failure.retry_after)
        if moment + delay >= self._deadline:
            raise StoreUnavailable(
                f"{self._where}: {failure}; the deadline of {self._policy.deadline:g} s is spent"
            ) from failure
        if failure.refused:
            delay = min(delay, REFUSED_DELAY)
            if self._refused_since is None:  # a moment may be 0.0
                self._refused_since = moment
            if moment - self._refused_since < self._policy.refused_window:
                return delay
        if self._failures >= self._policy.attempts:
            seconds = moment - self._started
            raise StoreUnavailable(
                f"{self._where}: {failure}; gave up after {self._failures} attempts in {seconds:.0f} s, try again later"
            ) from failure
        return delay


async def with_retries(call: Callable[[], Awaitable[_T]], policy: RetryPolicy, *, where: str) -> _T:
    """Run `call` until it succeeds.

    Raises:
        StoreUnavailable: the attempts or the deadline are spent.
    """
    attempts = Attempts(policy, where=where)
    while True:
        try:
            async with asyncio.timeout(max(0.0, attempts.remaining)):
                return await call()
        except Interrupted as failure:
            await asyncio.sleep(attempts.next_delay(failure))
        except TimeoutError as exc:
            raise StoreUnavailable(f"{where}: no answer within the deadline of {policy.deadline:g} s") from exc
