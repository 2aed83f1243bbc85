"""A bucket with a long tail, on virtual time: its bandwidth is used, at the cost of a few per cent of bytes."""

from __future__ import annotations

from statistics import median

import pytest

from tests.faults.shaped import TOTAL_BYTES, Outcome, simulate

pytestmark = pytest.mark.more


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return [simulate(seed) for seed in range(9)]


def test_nine_tenths_of_the_bandwidth_are_used(outcomes: list[Outcome]) -> None:
    assert median(outcome.share for outcome in outcomes) >= 0.9


def test_no_load_waits_for_a_slow_range_to_its_end(outcomes: list[Outcome]) -> None:
    assert min(outcome.share for outcome in outcomes) >= 0.75


def test_second_reads_are_made_for_slow_ranges_and_stay_within_their_share(outcomes: list[Outcome]) -> None:
    assert sum(outcome.slow for outcome in outcomes) > 10
    for outcome in outcomes:
        assert outcome.counters.hedges <= outcome.slow + 1
        assert outcome.counters.hedged_bytes <= 0.06 * TOTAL_BYTES
