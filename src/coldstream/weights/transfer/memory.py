"""Memory for what lands: from the kernel, given back to it or used again, and never written before it is filled.

What a page costs is most of what a byte costs: see docs/lab/2026-11-23-streaming.md.
"""

from __future__ import annotations

import ctypes
import mmap
import resource
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

HUGE_PAGE = 2 * 1024 * 1024
# Memory is made ready, filled and checked in steps that stay in the processor's cache meanwhile. Whole huge pages.
STEP = 2 * HUGE_PAGE
# Linux 5.14, madvise(2); not in Python's mmap module before 3.13.
_POPULATE_WRITE = 23
_NO_HUGE_PAGE = 15
# Making ready less than this is not worth a system call.
_WORTH = 64 * 1024
# Steps after which the other kind of page is tried again, at first; twice as many each time that it is still dearer.
_TRIED_AFTER = 16
_REMEMBERED = 3
# Bytes that are kept for the next reads.
KEPT = 128 * 1024 * 1024
# Addresses that are mapped at once.
ARENA = 256 * 1024 * 1024

_libc = ctypes.CDLL(None)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def advise(begin: int, nbytes: int, advice: int) -> bool:
    """madvise(2) at an address that is a page's; whether the system took it."""
    return not _libc.madvise(begin, nbytes, advice)


@dataclass(frozen=True, slots=True)
class _Slab:
    """A piece of an arena, in whole pages. It keeps the arena."""

    arena: mmap.mmap
    offset: int
    nbytes: int


class Slabs:
    """Buffers for reads, one behind the other in arenas. One whose views are all gone is used again: it has its pages.

    Mapping memory waits until no thread is finding pages, and page faults wait for it, so it is done for many
    reads at once; and neighbours share the huge page on which one ends and the next begins.
    """

    def __init__(self, *, keep: int = KEPT) -> None:
        self._free: deque[_Slab] = deque()
        self._keep = keep
        self._lock = threading.Lock()
        self._arena: mmap.mmap | None = None
        self._used = 0

    @property
    def kept(self) -> int:
        """Bytes that wait to be used again."""
        return sum(slab.nbytes for slab in list(self._free))

    def take(self, nbytes: int) -> memoryview:
        """`nbytes` (at least one) of writable memory, with anything in it."""
        slab = self._fitting(nbytes) or self._fresh(nbytes)
        # An array, because a memoryview cannot say when it and all of its slices are gone.
        array = bytes_type(slab.nbytes).from_buffer(slab.arena, slab.offset)
        weakref.finalize(array, self._back, slab).atexit = False
        return memoryview(array).cast("B")[:nbytes]

    def _fitting(self, nbytes: int) -> _Slab | None:
        for _ in range(len(self._free)):
            try:
                slab = self._free.popleft()
            except IndexError:  # another thread took it
                return None
            if nbytes <= slab.nbytes <= max(2 * nbytes, HUGE_PAGE):
                return slab
            self._free.append(slab)
        return None

    def _fresh(self, nbytes: int) -> _Slab:
        size = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        with self._lock:
            if self._arena is None or self._used + size > len(self._arena):
                self._arena, self._used = _arena(max(size, ARENA)), 0
            slab = _Slab(self._arena, self._used, size)
            self._used += size
        return slab

    def _back(self, slab: _Slab) -> None:
        if self.kept + slab.nbytes <= self._keep:
            self._free.append(slab)
        else:
            begin = ctypes.addressof(ctypes.c_ubyte.from_buffer(slab.arena, slab.offset))
            advise(begin, slab.nbytes, mmap.MADV_DONTNEED)  # mmap's own would keep the GIL


def _arena(nbytes: int) -> mmap.mmap:
    """Addresses without memory; the reader that fills them by `steps` says which pages they get."""
    arena = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    arena.madvise(mmap.MADV_HUGEPAGE)
    return arena


@cache
def bytes_type(nbytes: int) -> type[ctypes.Array[ctypes.c_ubyte]]:
    """The ctypes array of that length. Kept, because a class is expensive to make and is garbage in a cycle."""
    return ctypes.c_ubyte * nbytes


class PageChoice:
    """Huge pages or small ones, by what they cost at the moment. Threads may share it: a lost figure does no harm.

    Neither is always cheaper. Huge pages that are at hand cost a third of small ones; where the host of a virtual
    machine has yet to find them, and small ones lie ready in fragments of memory, they cost several times as much.
    """

    def __init__(self) -> None:
        # CPU seconds a STEP, the last few; the cheapest of them counts, because a pause of the machine says nothing.
        self._huge: deque[float] = deque(maxlen=_REMEMBERED)
        self._small: deque[float] = deque(maxlen=_REMEMBERED)
        self._trial_in = self._trial_after = _TRIED_AFTER

    def next(self) -> bool:
        """Whether the next step should have huge pages; now and then it is the kind that was dearer."""
        if not self._huge or not self._small:
            return not self._huge
        self._trial_in -= 1
        if self._trial_in > 0:
            return self._prefers_huge
        self._trial_in = self._trial_after = 2 * self._trial_after
        return not self._prefers_huge

    def measured(self, *, huge: bool, seconds: float) -> None:
        """What a step cost whose pages had to be found."""
        before = self._prefers_huge
        (self._huge if huge else self._small).append(seconds)
        if self._prefers_huge != before:
            self._trial_in = self._trial_after = _TRIED_AFTER

    @property
    def _prefers_huge(self) -> bool:
        # Copies, because another thread may add to them.
        return min(tuple(self._huge), default=0.0) <= min(tuple(self._small), default=0.0)


_CHOICE = PageChoice()


def steps(target: memoryview, *, choice: PageChoice = _CHOICE) -> Iterator[memoryview]:
    """`target` piece by piece up to multiples of STEP, each with its pages, of the kind that is cheaper."""
    kind = True  # what an arena is mapped for
    begin = 0
    while begin < target.nbytes:
        end = min(begin + STEP - address(target[begin:]) % STEP, target.nbytes)
        step = target[begin:end]
        if step.nbytes < STEP:  # may share its huge page with another read: tells nothing
            populate(step)
        else:
            huge = choice.next()
            if huge != kind:  # for all that is left, because this waits for those who are finding pages
                kind = huge
                advise(*_whole_pages(target[begin:]), mmap.MADV_HUGEPAGE if huge else _NO_HUGE_PAGE)
            seconds = populate(step)
            if seconds is not None:
                choice.measured(huge=huge, seconds=seconds)
        yield step
        begin = end


def address(target: memoryview) -> int:
    """Where a writable buffer lies."""
    return ctypes.addressof(ctypes.c_ubyte.from_buffer(target))


def populate(target: memoryview) -> float | None:
    """Have the kernel find the pages in one call, instead of one page fault for each. Only a matter of speed.

    Returns: CPU seconds; None when all were there, which says nothing about what a page costs.
    """
    if target.nbytes < _WORTH:
        return None
    faults, began = _faults(), time.thread_time()
    advise(*_whole_pages(target), _POPULATE_WRITE)
    return time.thread_time() - began if _faults() > faults else None


def _faults() -> int:
    """Pages that the kernel has found for this thread."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt


def _whole_pages(target: memoryview) -> tuple[int, int]:
    """Address and length of the pages that the target lies in."""
    begin = address(target) & ~(mmap.PAGESIZE - 1)
    return begin, address(target) + target.nbytes - begin
