"""Sequences without an engine: every one keeps all its blocks. For parity, the quality check and tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coldstream.backends.blocks import windows
from coldstream.backends.cpu.address import Floats, Ints
from coldstream.backends.cpu.decoder import CpuDecoder
from coldstream.backends.cpu.kv_cache import BlockAttention, BlockCache
from coldstream.backends.protocol import Group
from coldstream.backends.spans import SequenceSpan

_SIZE = 32


@dataclass(frozen=True, slots=True)
class _Table:
    """Blocks that lie one behind the other, from the first on."""

    blocks: Sequence[int]
    first: int = 0
    together: bool = True


class LoneSequences:
    """Keys and values of `count` sequences of up to `capacity` tokens each; what `forward` attends with.

    Call `begin` before each forward pass.
    """

    def __init__(self, decoder: CpuDecoder, *, count: int = 1, capacity: int) -> None:
        each = -(-capacity // _SIZE)
        self._lengths = [0] * count
        self._tables = [_Table(range(index * each, (index + 1) * each)) for index in range(count)]
        self._groups = windows(decoder.config)
        groups = [Group(window, count * each) for window in self._groups]
        self._cache = BlockCache(decoder.config, groups, size=_SIZE, kernels=decoder.kernels)
        self._attention: BlockAttention | None = None

    def begin(self, *counts: int) -> Ints:
        """So many tokens of each sequence come next; returns their positions, int64 `[tokens]`."""
        spans, row = [], 0
        for index, count in enumerate(counts):
            start = self._lengths[index]
            if count:
                spans.append(SequenceSpan(row, start, start + count, [self._tables[index]] * len(self._groups)))
            self._lengths[index] += count
            row += count
        self._attention = self._cache.attend(spans)
        return np.concatenate([np.arange(span.start, span.end) for span in spans])

    def __call__(self, layer: int, q: Floats, k: Floats, v: Floats) -> Floats:
        """See `layer.Attend`."""
        assert self._attention is not None, "begin comes first"
        return self._attention(layer, q, k, v)
