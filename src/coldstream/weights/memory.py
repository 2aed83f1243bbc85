"""Memory for what lands: from the kernel, given back to it or used again, and never written before it is filled.

What a page costs is most of what a byte costs: see docs/streaming.md.
"""

from __future__ import annotations

import ctypes
import mmap
import time
import weakref
from collections import deque
from collections.abc import Iterator

HUGE_PAGE = 2 * 1024 * 1024
# Memory is made ready, then filled, in steps that stay in the processor's cache between the two.
STEP = 2 * 1024 * 1024
# Linux 5.14, madvise(2); not in Python's mmap module before 3.13.
_POPULATE_WRITE = 23
_NO_HUGE_PAGE = 15
# Making ready less than this is not worth a system call.
_WORTH = 64 * 1024
# Huge pages that take longer (CPU seconds a STEP) are not lying ready: the host has to find their parts one by one, or
# the kernel to move others out of the way. Zeroing takes a fifth of this.
_READY = 0.0012
# Bytes that are kept for the next reads.
KEPT = 128 * 1024 * 1024

_libc = ctypes.CDLL(None)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def advise(begin: int, nbytes: int, advice: int) -> bool:
    """madvise(2) at an address that is a page's; whether the system took it."""
    return not _libc.madvise(begin, nbytes, advice)


class Slabs:
    """Buffers for reads. One whose views are all gone is used again: its pages are there already."""

    def __init__(self, *, keep: int = KEPT) -> None:
        self._free: deque[mmap.mmap] = deque()
        self._keep = keep

    @property
    def kept(self) -> int:
        """Bytes that wait to be used again."""
        return sum(len(slab) for slab in list(self._free))

    def take(self, nbytes: int) -> memoryview:
        """`nbytes` (at least one) of writable memory, with anything in it."""
        slab = self._fitting(nbytes) or self._fresh(nbytes)
        # An array, because a memoryview cannot say when it and all of its slices are gone.
        array = (ctypes.c_ubyte * len(slab)).from_buffer(slab)
        weakref.finalize(array, self._back, slab).atexit = False
        return memoryview(array).cast("B")[:nbytes]

    def _fitting(self, nbytes: int) -> mmap.mmap | None:
        for _ in range(len(self._free)):
            try:
                slab = self._free.popleft()
            except IndexError:  # another thread took it
                return None
            if nbytes <= len(slab) <= max(2 * nbytes, HUGE_PAGE):
                return slab
            self._free.append(slab)
        return None

    def _fresh(self, nbytes: int) -> mmap.mmap:
        size = -(-nbytes // HUGE_PAGE) * HUGE_PAGE
        slab = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if nbytes >= HUGE_PAGE:
            # Only where it will be filled.
            slab.madvise(mmap.MADV_HUGEPAGE, 0, nbytes // HUGE_PAGE * HUGE_PAGE)
        return slab

    def _back(self, slab: mmap.mmap) -> None:
        if self.kept + len(slab) <= self._keep:
            self._free.append(slab)


def steps(target: memoryview) -> Iterator[memoryview]:
    """`target` piece by piece, each with its pages; once they turn out dear, the rest is not in huge ones."""
    cheap = True
    for position in range(0, target.nbytes, STEP):
        step = target[position : position + STEP]
        if populate(step) and cheap:
            cheap = False
            _in_small_pages(target[position + STEP :])
        yield step


def address(target: memoryview) -> int:
    """Where a writable buffer lies."""
    return ctypes.addressof(ctypes.c_ubyte.from_buffer(target))


def populate(target: memoryview) -> bool:
    """Have the kernel find the pages in one call, instead of one page fault for each. Only a matter of speed.

    Returns: whether it was so dear that the rest should not be in huge pages.
    """
    if target.nbytes < _WORTH:
        return False
    end = address(target) + target.nbytes
    begin = address(target) & ~(mmap.PAGESIZE - 1)
    began = time.thread_time()
    advise(begin, end - begin, _POPULATE_WRITE)
    return time.thread_time() - began > _READY


def _in_small_pages(target: memoryview) -> None:
    if target.nbytes >= HUGE_PAGE:
        begin = -(-address(target) // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (address(target) + target.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        advise(begin, end - begin, _NO_HUGE_PAGE)
