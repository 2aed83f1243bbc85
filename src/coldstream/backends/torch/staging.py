"""Landed bytes into a GPU's memory through one page-locked buffer, so that the host never holds a tensor twice."""

from __future__ import annotations

import torch
from torch import Tensor

STAGING = 16 << 20
"""Bytes."""


class Staging:
    """`target.copy_(source)` for a target on a GPU. For one thread, the loader's.

    The driver copies out of pageable memory through a buffer of its own, more slowly; and torch converts a whole tensor
    on the host before it sends it. `is_pinned` False is for targets on the CPU.
    """

    def __init__(self, size: int = STAGING, *, is_pinned: bool = True) -> None:
        self._buffer = torch.empty(size, dtype=torch.uint8, pin_memory=is_pinned)

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Fill the target, contiguous, with a source of its shape and any dtype; it is there on return."""
        into, out_of = target.view(-1), source.reshape(-1)
        staging = self._buffer.view(target.dtype)
        for start in range(0, into.numel(), staging.numel()):
            piece = into[start : start + staging.numel()]
            staged = staging[: piece.numel()]
            staged.copy_(out_of[start : start + staging.numel()])
            # Blocking: the buffer is written again right after, and the gate may open.
            piece.copy_(staged)
