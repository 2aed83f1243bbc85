"""When to ask again, and when to give up: on a clock that only passes while everybody sleeps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstream.errors import AccessDenied, StoreUnavailable
from coldstream.weights.stores.store import Interrupted
from coldstream.weights.transfer.retry import REFUSED_DELAY, Attempts, RetryPolicy, now, with_retries
from tests.faults.shaped import VirtualLoop

_T = TypeVar("_T")


def at_virtual_time(work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work())


class Failing:
    """Raises `failure` `count` times, then answers; remembers when it was asked."""

    def __init__(self, failure: Exception, count: int) -> None:
        self.failure, self.count = failure, count
        self.asked: list[float] = []

    async def __call__(self) -> str:
        self.asked.append(now())
        if len(self.asked) <= self.count:
            raise self.failure
        return "answer"


@given(st.integers(1, 60), st.floats(0, 1))
def test_the_delay_lies_between_zero_and_a_doubling_bound(failures: int, draw: float) -> None:
    policy = RetryPolicy(first_delay=0.1, max_delay=10.0)
    delay = policy.delay(failures, retry_after=None, draw=lambda: draw)
    assert 0 <= delay <= min(10.0, 0.1 * 2 ** (failures - 1))
    assert policy.delay(failures, retry_after=None, draw=lambda: 1.0) == min(10.0, 0.1 * 2 ** min(failures - 1, 16))


@given(st.integers(1, 60), st.floats(0, 1), st.floats(0, 100))
def test_retry_after_is_a_lower_bound(failures: int, draw: float, after: float) -> None:
    assert RetryPolicy().delay(failures, retry_after=after, draw=lambda: draw) >= after


def test_what_fails_a_few_times_is_answered() -> None:
    call = Failing(Interrupted("reset"), 3)
    assert at_virtual_time(lambda: with_retries(call, RetryPolicy(), where="x")) == "answer"
    assert len(call.asked) == 4


def test_attempts_end_with_the_last_reason() -> None:
    call = Failing(Interrupted("HTTP 500"), 99)
    with pytest.raises(StoreUnavailable, match=r"gs://b/f: HTTP 500; gave up after 5 attempts") as caught:
        at_virtual_time(lambda: with_retries(call, RetryPolicy(attempts=5), where="gs://b/f"))
    assert len(call.asked) == 5
    assert isinstance(caught.value.__cause__, Interrupted)


def test_what_retrying_cannot_mend_is_raised_at_once() -> None:
    call = Failing(AccessDenied("no"), 99)
    with pytest.raises(AccessDenied):
        at_virtual_time(lambda: with_retries(call, RetryPolicy(), where="x"))
    assert len(call.asked) == 1


def test_a_retry_after_is_waited_for() -> None:
    call = Failing(Interrupted("HTTP 429", throttled=True, retry_after=7.0), 1)
    at_virtual_time(lambda: with_retries(call, RetryPolicy(), where="x"))
    assert call.asked[1] - call.asked[0] >= 7.0


def test_a_retry_after_beyond_the_deadline_is_not_waited_for() -> None:
    call = Failing(Interrupted("HTTP 503", throttled=True, retry_after=3600.0), 1)

    async def spent() -> float:
        with pytest.raises(StoreUnavailable, match="the deadline of 60 s is spent"):
            await with_retries(call, RetryPolicy(deadline=60.0), where="x")
        return now()

    assert at_virtual_time(spent) < 60.0


def test_refused_connections_are_asked_again_every_second_at_most_for_the_whole_window() -> None:
    # The clock starts at 0.0: the window opens at the first refusal, not at the first one after zero.
    call = Failing(Interrupted("refused", refused=True), 10_000)

    async def spent() -> float:
        with pytest.raises(StoreUnavailable, match="refused; gave up"):
            await with_retries(call, RetryPolicy(attempts=3, refused_window=120.0), where="x")
        return now()

    assert 120.0 <= at_virtual_time(spent) <= 120.0 + REFUSED_DELAY
    assert max(later - earlier for earlier, later in pairwise(call.asked)) <= REFUSED_DELAY + 1e-9


def test_a_call_that_never_returns_ends_at_the_deadline() -> None:
    async def silent() -> None:
        await asyncio.Event().wait()

    async def spent() -> float:
        with pytest.raises(StoreUnavailable, match="x: no answer within the deadline of 30 s"):
            await with_retries(silent, RetryPolicy(deadline=30.0), where="x")
        return now()

    assert at_virtual_time(spent) == pytest.approx(30.0)


def test_progress_gives_all_attempts_back() -> None:
    async def count() -> int:
        attempts = Attempts(RetryPolicy(attempts=3), where="x")
        for _ in range(20):
            attempts.next_delay(Interrupted("reset"))
            attempts.next_delay(Interrupted("reset"))
            attempts.progressed()
        attempts.next_delay(Interrupted("reset"))
        attempts.next_delay(Interrupted("reset"))
        with pytest.raises(StoreUnavailable, match="3 attempts"):
            attempts.next_delay(Interrupted("reset"))
        return 1

    assert at_virtual_time(count)


def test_a_deadline_of_the_whole_load_is_shared() -> None:
    async def late() -> None:
        attempts = Attempts(RetryPolicy(deadline=10.0), where="x", deadline=now() + 5.0)
        await asyncio.sleep(6.0)
        assert attempts.remaining == pytest.approx(-1.0)
        with pytest.raises(StoreUnavailable, match="deadline"):
            attempts.check_deadline()

    at_virtual_time(late)
