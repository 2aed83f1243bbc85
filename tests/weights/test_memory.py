"""Memory that is used again only when nobody looks at it any more."""

from __future__ import annotations

import ctypes
import gc
import itertools

from hypothesis import given
from hypothesis import strategies as st

from coldstream.weights.memory import HUGE_PAGE, Slabs, populate


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
