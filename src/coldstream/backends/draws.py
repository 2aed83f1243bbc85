"""Where a row's draw points in its distribution, and which tokens a grammar forbids: the same for every backend."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1), the same for the same arguments on every machine."""
    key = seed.to_bytes(16, "little", signed=True)
    digest = hashlib.blake2b(position.to_bytes(8, "little"), key=key, digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)


def forbidden(allowed: bytes, vocab: int) -> NDArray[np.bool_]:
    """bool `[vocab]` of a `SamplingRow`'s mask; true behind the mask's end as well."""
    bits = np.unpackbits(np.frombuffer(allowed, np.uint8), count=vocab, bitorder="little")
    return np.equal(bits, 0)
