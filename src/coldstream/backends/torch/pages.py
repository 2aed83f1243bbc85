"""What the system is told of a tensor's memory: that it is read from end to end."""

from __future__ import annotations

from torch import Tensor

from coldstream.host.memory import prefer_huge_pages


def in_large_pages(tensor: Tensor) -> Tensor:
    """Ask for huge pages below a contiguous CPU tensor that is not written yet; see `prefer_huge_pages`."""
    prefer_huge_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor
