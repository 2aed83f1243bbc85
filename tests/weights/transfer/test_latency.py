"""What is usual for a read, and when it is late. Times are given; nothing waits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstream.weights.transfer.latency import HEDGE_FACTOR, HEDGE_FLOOR, HEDGE_SAMPLES, TAIL_FLOOR, Pace, Running

MB = 1_000_000


def paced(samples: list[tuple[int, float]]) -> Pace:
    """A pace that has seen reads of these sizes and seconds, one after another."""
    pace, moment = Pace(), 0.0
    for nbytes, seconds in samples:
        read = pace.begin(nbytes, now=moment)
        moment += seconds
        pace.completed(read, now=moment)
        pace.forget(read)
    return pace


def test_nothing_is_usual_before_enough_was_seen() -> None:
    pace = paced([(MB, 1.0)] * (HEDGE_SAMPLES - 1))
    assert pace.usual(MB) is None
    assert pace.late_at(Running(MB, 0.0), is_tail=True) is None


def test_time_to_the_first_byte_and_time_a_byte_are_told_apart() -> None:
    pace = paced([(size * MB, 0.06 + size * 0.01) for size in (2, 8, 16, 32) * 3])
    assert pace.usual(2 * MB) == pytest.approx(0.08)
    assert pace.usual(64 * MB) == pytest.approx(0.70)


def test_reads_of_one_size_tell_a_rate() -> None:
    assert paced([(MB, 0.5)] * 10).usual(2 * MB) == pytest.approx(1.0)


@given(st.lists(st.tuples(st.integers(1, 10**9), st.floats(0, 100)), min_size=HEDGE_SAMPLES), st.integers(1, 10**10))
def test_what_is_usual_is_never_negative_and_grows_with_the_size(samples: list[tuple[int, float]], size: int) -> None:
    pace = paced(samples)
    small, large = pace.usual(size), pace.usual(2 * size)
    assert small is not None
    assert large is not None
    assert -1e-9 <= small <= large + 1e-9
    assert pace.late_at(Running(size, 0.0), is_tail=False) is not None


def test_a_read_that_nobody_overtook_is_late_after_some_times_the_usual() -> None:
    pace = paced([(MB, 1.0)] * 10)
    assert pace.late_at(pace.begin(MB, now=5.0), is_tail=False) == pytest.approx(5.0 + HEDGE_FACTOR)


def test_a_read_that_alike_ones_overtook_is_late_as_soon_as_it_took_longer_than_they() -> None:
    pace = paced([(MB, 1.0)] * 10)
    read = pace.begin(MB, now=100.0)
    for _ in range(3):
        pace.completed(pace.begin(MB, now=100.1), now=101.1)
    late = pace.late_at(read, is_tail=False)
    assert late is not None
    assert 101.0 <= late < 101.5


def test_smaller_reads_overtake_only_by_their_bytes() -> None:
    pace = paced([(MB, 1.0)] * 10)
    read = pace.begin(MB, now=100.0)
    for count in range(40):
        small = pace.begin(MB // 10, now=100.1)
        pace.completed(small, now=100.2)
        pace.forget(small)
        late = pace.late_at(read, is_tail=False)
        assert late is not None
        assert (late < 101.5) is (count + 1 >= 38)  # 1.25 times what three of them carry


def test_reads_that_began_before_it_overtake_nobody() -> None:
    pace = paced([(MB, 1.0)] * 10)
    older = [pace.begin(MB, now=99.0) for _ in range(9)]
    read = pace.begin(MB, now=100.0)
    for other in older:
        pace.completed(other, now=100.1)
    assert read.overtaken == read.overtaken_bytes == 0


def test_where_reads_differ_much_one_has_to_differ_more() -> None:
    pace = paced([(MB, seconds) for seconds in (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 4.0, 4.0, 4.0, 4.0)])
    usual = pace.usual(MB)
    late = pace.late_at(pace.begin(MB, now=0.0), is_tail=True)
    assert usual == pytest.approx(2.2)
    assert late == pytest.approx(1.25 * 4.0)


def test_nobody_is_late_in_an_instant() -> None:
    pace = paced([(MB, 0.001)] * 10)
    assert pace.late_at(pace.begin(MB, now=0.0), is_tail=False) == HEDGE_FLOOR
    assert pace.late_at(pace.begin(MB, now=0.0), is_tail=True) == TAIL_FLOOR
