"""Keys and values of all running sequences in float32, and attention over them by our kernel.

Each layer has one array for keys and one for values, `[kv_heads, slots, head_dim]`, the last rounded up to what the
kernel takes; block b of the layer's group is the slots `b * size ... (b + 1) * size - 1`. The kernel reads blocks
wherever they lie, in one call a layer for all sequences.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from coldstream.backends.blocks import AttentionConfig
from coldstream.backends.cpu.address import Floats, Ints
from coldstream.backends.cpu.library import ATTENTION_MULTIPLE, Kernels, Visible
from coldstream.backends.protocol import Copy, Group
from coldstream.backends.spans import SequenceSpan


def padded_head(config: AttentionConfig) -> int:
    """A head's size in the cache: zeros are added to it, which change no score."""
    return -(-config.head_dim // ATTENTION_MULTIPLE) * ATTENTION_MULTIPLE


class BlockCache:
    """The arrays. Memory is taken from the system page by page, as blocks are first written."""

    def __init__(self, config: AttentionConfig, groups: Sequence[Group], *, size: int, kernels: Kernels) -> None:
        self.size, self.groups = size, tuple(groups)
        self.head_dim, self.scale = config.head_dim, config.attention_scale
        self.kernels = kernels
        by_window = {group.window: index for index, group in enumerate(groups)}
        self.group_of = tuple(by_window[layer.window] for layer in config.layers)
        shapes = [(config.kv_heads, groups[index].count * size, padded_head(config)) for index in self.group_of]
        self.keys = [np.empty(shape, np.float32) for shape in shapes]
        self.values = [np.empty(shape, np.float32) for shape in shapes]

    def copy(self, copies: Sequence[Copy]) -> None:
        """Copy whole blocks; all are read before any is written."""
        for group in {copy.group for copy in copies}:
            mine = [copy for copy in copies if copy.group == group]
            source, target = self._slots(copy.source for copy in mine), self._slots(copy.target for copy in mine)
            for layer, layer_group in enumerate(self.group_of):
                if layer_group == group:
                    for array in (self.keys[layer], self.values[layer]):
                        array[:, target] = array[:, source]

    def attend(self, spans: Sequence[SequenceSpan]) -> BlockAttention:
        """The attention of one step over these spans, which fill its flat row in order."""
        return BlockAttention(self, spans)

    def _slots(self, blocks: Iterable[int]) -> Ints:
        base = np.fromiter(blocks, np.int64) * self.size
        return (base[:, None] + np.arange(self.size)).reshape(-1)


class BlockAttention:
    """One call a layer for all sequences. A token's result has the same bits in any company."""

    def __init__(self, cache: BlockCache, spans: Sequence[SequenceSpan]) -> None:
        self._cache = cache
        self._visible = visible(spans, cache.groups, cache.size)

    def __call__(self, layer: int, q: Floats, k: Floats, v: Floats) -> Floats:
        """q `[tokens, heads, head_dim]`, k and v `[tokens, kv_heads, head_dim]` -> `[tokens, heads * head_dim]`.

        A token's heads lie side by side in each.
        """
        cache = self._cache
        seen, keys, values = self._visible[cache.group_of[layer]], cache.keys[layer], cache.values[layer]
        missing = keys.shape[2] - cache.head_dim
        if not missing:
            return cache.kernels.attention(seen, q, k, v, keys, values, scale=cache.scale)
        q, k, v = (np.pad(part, ((0, 0), (0, 0), (0, missing))) for part in (q, k, v))
        out = cache.kernels.attention(seen, q, k, v, keys, values, scale=cache.scale)
        return out.reshape(len(q), -1, keys.shape[2])[:, :, : cache.head_dim].reshape(len(q), -1)


def visible(spans: Sequence[SequenceSpan], groups: Sequence[Group], size: int) -> list[Visible]:
    """Who sees which keys, for the layers of each group."""
    row, start, count = (
        np.array([getattr(span, name) for span in spans], np.int64) for name in ("row", "start", "count")
    )
    upper = np.fromiter(itertools.chain.from_iterable(span.seen_up_to for span in spans), np.int64)
    return [
        Visible(size, group.window, row, start, count, *_tables(spans, index), upper)
        for index, group in enumerate(groups)
    ]


def _tables(spans: Sequence[SequenceSpan], group: int) -> tuple[Ints, Ints, Ints]:
    """Each span's first place and where its blocks begin, `[spans]`; and all blocks, one table behind the other."""
    tables = [span.tables[group] for span in spans]
    begins = list(itertools.accumulate((len(table.blocks) for table in tables), initial=0))
    blocks = np.fromiter(itertools.chain.from_iterable(table.blocks for table in tables), np.int64)
    return np.array([table.first for table in tables], np.int64), np.array(begins[:-1], np.int64), blocks
