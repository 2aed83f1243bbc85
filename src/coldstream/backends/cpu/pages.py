"""Memory that is read from end to end: in huge pages, where the system has them."""

from __future__ import annotations

import numpy as np

from coldstream.backends.cpu.address import Floats
from coldstream.host.memory import allocate


def empty_in_large_pages(shape: tuple[int, ...]) -> Floats:
    """float32 of such a shape, all 0, on huge pages if they can be had: fewer faults, fewer misses of the TLB."""
    return np.frombuffer(allocate(int(np.prod(shape)) * 4), np.float32).reshape(shape)
