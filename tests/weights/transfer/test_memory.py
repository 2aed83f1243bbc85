"""Memory that is used again only when no view of it is left."""

from __future__ import annotations

import ctypes
import gc
import itertools
import mmap
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from coldstream.weights.transfer.memory import HUGE_PAGE, STEP, PageChoice, Slabs, populate, steps


def address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_ubyte.from_buffer(view))


def test_a_slab_whose_views_are_gone_is_used_again() -> None:
    slabs = Slabs()
    first = slabs.take(10_000_000)
    where = address(first)
    del first
    gc.collect()
    assert address(slabs.take(9_000_000)) == where


def test_a_slice_keeps_the_slab() -> None:
    slabs = Slabs()
    whole = slabs.take(10_000_000)
    part = whole[5:10].toreadonly()
    whole[5:10] = b"12345"
    del whole
    gc.collect()
    slabs.take(10_000_000)[:] = bytes(10_000_000)
    assert bytes(part) == b"12345"


def test_what_is_not_kept_goes_back_to_the_system_though_its_neighbours_stay() -> None:
    slabs = Slabs(keep=0)
    held = slabs.take(HUGE_PAGE)
    large = slabs.take(64 * HUGE_PAGE)
    address_after = address(slabs.take(1))
    assert address(large) == address(held) + HUGE_PAGE  # one behind the other
    assert address_after == address(large) + large.nbytes
    held[:3] = b"abc"
    before = resident()
    for step in steps(large):
        step[0] = 1
    assert resident() - before > 60 * HUGE_PAGE
    del step, large
    gc.collect()
    assert resident() - before < 8 * HUGE_PAGE
    assert bytes(held[:3]) == b"abc"


def resident() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE


def test_small_reads_do_not_get_large_slabs() -> None:
    slabs = Slabs()
    where = address(slabs.take(64 * HUGE_PAGE))
    gc.collect()
    small = slabs.take(1000)
    assert address(small) != where
    assert small.nbytes == 1000


def test_no_more_is_kept_than_was_said() -> None:
    slabs = Slabs(keep=3 * HUGE_PAGE)
    views = [slabs.take(2 * HUGE_PAGE) for _ in range(4)]
    kept = {address(view) for view in views}
    views.clear()
    gc.collect()
    assert slabs.kept == 2 * HUGE_PAGE
    again = [slabs.take(2 * HUGE_PAGE) for _ in range(4)]
    assert len({address(view) for view in again}) == 4
    assert len({address(view) for view in again} & kept) >= 1


@given(st.lists(st.integers(1, 3 * HUGE_PAGE), min_size=1, max_size=8))
def test_two_views_never_share_a_byte(sizes: list[int]) -> None:
    slabs = Slabs()
    held: list[memoryview] = []
    for index, size in enumerate(sizes):
        if index % 3 == 2:
            held.pop(0)
        held.append(slabs.take(size))
        assert held[-1].nbytes == size
        spans = sorted((address(view), view.nbytes) for view in held)
        assert all(at + length <= after for (at, length), (after, _) in itertools.pairwise(spans))


def test_making_ready_changes_nothing() -> None:
    data = bytearray(b"x" * 1_000_000)
    populate(memoryview(data)[100_001:900_000])
    assert data == b"x" * 1_000_000


HUGE, SMALL = True, False


def played(choice: PageChoice, cost: Callable[[int, bool], float], count: int) -> list[bool]:
    """What is chosen, step by step, where a step of a kind costs `cost(step, kind)` seconds."""
    chosen = []
    for step in range(count):
        kind = choice.next()
        chosen.append(kind)
        choice.measured(huge=kind, seconds=cost(step, kind))
    return chosen


@given(st.booleans(), st.floats(1.1, 50.0))
def test_the_cheaper_pages_are_chosen_and_the_others_tried_less_and_less(cheap: bool, times: float) -> None:
    chosen = played(PageChoice(), lambda _, kind: 0.001 * (1.0 if kind is cheap else times), 1000)
    assert chosen[:2] == [HUGE, SMALL]
    assert 3 <= chosen.count(not cheap) <= 8
    assert {cheap} == set(chosen[-400:])


def test_pages_that_become_dear_are_given_up_within_a_few_steps() -> None:
    def cost(step: int, kind: bool) -> float:
        return 0.002 if kind is HUGE else 0.0003 if step < 500 else 0.008

    chosen = played(PageChoice(), cost, 600)
    assert SMALL in chosen[490:500]
    assert chosen[500:504].count(SMALL) == 3
    assert chosen[504:516] == [HUGE] * 12


def test_one_slow_step_changes_nothing() -> None:
    chosen = played(PageChoice(), lambda step, kind: 0.05 if step == 300 else 0.001 if kind else 0.002, 400)
    assert chosen[290:312].count(SMALL) <= 1


def test_pages_that_were_there_tell_nothing() -> None:
    target = Slabs().take(2 * STEP)
    assert populate(target) is not None
    assert populate(target) is None


@given(st.integers(0, 3 * HUGE_PAGE), st.integers(1, 7 * HUGE_PAGE))
def test_steps_are_all_of_the_target_and_end_at_huge_pages(skipped: int, nbytes: int) -> None:
    target = Slabs().take(skipped + nbytes)[skipped:]
    pieces = list(steps(target))
    ends = list(itertools.accumulate(piece.nbytes for piece in pieces))
    assert ends[-1] == nbytes
    assert all((address(target) + end) % HUGE_PAGE == 0 for end in ends[:-1])
    assert all(address(piece) == address(target) + end - piece.nbytes for piece, end in zip(pieces, ends, strict=True))
