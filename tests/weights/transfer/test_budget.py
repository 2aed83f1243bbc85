"""Bytes in flight: never over the limit, and no reader waits for ever."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstream.weights.transfer.budget import ByteBudget


def test_what_fits_is_taken_and_what_does_not_is_left() -> None:
    budget = ByteBudget(10)
    assert budget.try_reserve(10)
    assert not budget.try_reserve(1)
    assert budget.try_reserve(0)
    budget.release(4)
    assert budget.try_reserve(4)
    assert (budget.used, budget.peak) == (10, 10)


async def test_what_can_never_fit_is_refused_instead_of_waiting() -> None:
    with pytest.raises(ValueError, match="11 bytes never fit into 10"):
        await ByteBudget(10).reserve(11)


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        ByteBudget(0)


@given(st.integers(1, 50), st.lists(st.integers(1, 50), max_size=60), st.integers(0, 2**32))
def test_everybody_gets_a_turn_and_the_limit_holds(limit: int, wants: list[int], seed: int) -> None:
    budget = ByteBudget(limit)
    draw = random.Random(seed)

    async def one(nbytes: int) -> None:
        await budget.reserve(nbytes)
        assert budget.used <= limit
        for _ in range(draw.randrange(3)):
            await asyncio.sleep(0)
        budget.release(nbytes)

    async def everybody() -> None:
        async with asyncio.timeout(30.0):
            await asyncio.gather(*(one(min(want, limit)) for want in wants))

    asyncio.run(everybody())
    assert budget.used == 0
    assert budget.peak <= limit
