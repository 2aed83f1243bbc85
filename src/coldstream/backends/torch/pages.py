"""What the system is told of a tensor's memory: that it is read from end to end."""

from __future__ import annotations

import mmap

from torch import Tensor

from coldstream.weights.transfer.memory import advise


def in_large_pages(tensor: Tensor) -> Tensor:
    """Ask for huge pages below a contiguous CPU tensor that is not written yet: fewer faults, fewer misses of the TLB.

    A wish (madvise(2), MADV_HUGEPAGE): where the system has none nothing changes. Returns the tensor.
    """
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if start < end:
        advise(start, end - start, mmap.MADV_HUGEPAGE)
    return tensor
