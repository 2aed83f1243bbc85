"""Keys and values of all running sequences, and attention over them.

Each layer has one tensor for keys and one for values, `[kv_heads, slots, head_dim]`; block b of the layer's group is
the slots `b * size ... (b + 1) * size - 1`. With the heads outside, a sequence whose blocks lie next to each other
(the engine's pool sees to that) is a view `[kv_heads, length, head_dim]` that torch's attention reads in place; only a
scattered one is gathered. On a CPU our own kernel (backends/cpu) attends, in one call a layer, block by block wherever
they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from coldstream.backends.blocks import AttentionConfig
from coldstream.backends.cpu.kv_cache import visible
from coldstream.backends.cpu.library import ATTENTION_MULTIPLE, Kernels
from coldstream.backends.protocol import BlockTable, Copy, Group
from coldstream.backends.spans import SequenceSpan
from coldstream.backends.torch.layers import PendingTurn
from coldstream.backends.torch.paged import PagedAttend, PagedKernels
from coldstream.backends.torch.transfer import to_device


def can_attend(config: AttentionConfig, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether our own kernel attends over such keys: float32 on the CPU, with heads of a multiple of 16."""
    return dtype == torch.float32 and device.type == "cpu" and config.head_dim % ATTENTION_MULTIPLE == 0


@dataclass(frozen=True, slots=True)
class _View:
    """The keys that one span sees: the slots `first ... last - 1`, or `scattered` ones."""

    rows: slice
    count: int
    first: int
    last: int
    scattered: Tensor | None
    mask: Tensor | None
    causal: bool


class Attending(Protocol):
    """The attention of one step: stores k and v, then attends."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, pending: PendingTurn | None = None) -> Tensor:
        """See `layers.Attention`."""
        ...


class KvCache:
    """The tensors. Memory is taken from the system page by page, as blocks are first written.

    `kernels` attend where they `can_attend`, on a GPU `paged` ones; without any torch does.
    """

    def __init__(
        self,
        config: AttentionConfig,
        groups: Sequence[Group],
        *,
        size: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        kernels: Kernels | None = None,
        paged: PagedKernels | None = None,
    ) -> None:
        self.size = size
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.scale = config.attention_scale
        self.device = torch.device(device)
        self.groups = tuple(groups)
        self._kernels, self._paged = kernels, paged
        by_window = {group.window: index for index, group in enumerate(groups)}
        self.group_of = tuple(by_window[layer.window] for layer in config.layers)
        shapes = [(config.kv_heads, groups[index].count * size, config.head_dim) for index in self.group_of]
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for shape in shapes]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for shape in shapes]

    def copy(self, copies: Sequence[Copy]) -> None:
        """Copy whole blocks; all are read before any is written."""
        for group in {copy.group for copy in copies}:
            mine = [copy for copy in copies if copy.group == group]
            source = to_device(self._whole([copy.source for copy in mine]), self.device)
            target = to_device(self._whole([copy.target for copy in mine]), self.device)
            for layer, layer_group in enumerate(self.group_of):
                if layer_group == group:
                    for tensor in (self.keys[layer], self.values[layer]):
                        tensor.index_copy_(1, target, tensor.index_select(1, source))

    def slots(self, table: BlockTable, start: int, end: int) -> Tensor:
        """The slots of the tokens `start ... end - 1`, int64, on the host."""
        place = start // self.size - table.first
        if end - start == 1:
            return torch.tensor([table.blocks[place] * self.size + start % self.size])
        if table.together:
            first = table.blocks[place] * self.size + start % self.size
            return torch.arange(first, first + end - start)
        whole = self._whole(table.blocks[place : -(-end // self.size) - table.first])
        return whole[start % self.size : start % self.size + end - start]

    def _whole(self, blocks: Sequence[int]) -> Tensor:
        base = torch.tensor(blocks, dtype=torch.int64) * self.size
        return (base[:, None] + torch.arange(self.size)).flatten()

    def attend(self, spans: Sequence[SequenceSpan]) -> Attending:
        """The attention of one step over these spans, which fill its flat tensor in order."""
        if self._paged is not None:
            return PagedAttend.of(self, self._paged, spans)
        return TorchAttend(self, spans) if self._kernels is None else KernelAttend(self, self._kernels, spans)


class KernelAttend:
    """One call a layer for all sequences. A token's result has the same bits in every batch."""

    def __init__(self, cache: KvCache, kernels: Kernels, spans: Sequence[SequenceSpan]) -> None:
        self._cache = cache
        self._kernels = kernels
        self._visible = visible(spans, cache.groups, cache.size)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, pending: PendingTurn | None = None) -> Tensor:
        """See `layers.Attention`."""
        if pending is not None:
            q, k = pending.applied(q, k)
        cache = self._cache
        seen, arrays = self._visible[cache.group_of[layer]], (q, k, v, cache.keys[layer], cache.values[layer])
        return torch.from_numpy(self._kernels.attention(seen, *(part.numpy() for part in arrays), scale=cache.scale))


class TorchAttend:
    """With torch's own attention, on any device, sequence by sequence.

    Each sequence is computed by itself, over its own keys only, so that its result cannot depend on who else is there.
    """

    def __init__(self, cache: KvCache, spans: Sequence[SequenceSpan]) -> None:
        self._cache = cache
        self._spans = spans
        self._tokens = sum(span.count for span in spans)
        self._slots = [
            to_device(
                torch.cat([cache.slots(span.tables[group], span.start, span.end) for span in spans]), cache.device
            )
            for group in range(len(cache.groups))
        ]
        self._views = [
            [self._view(span, span.tables[index], group.window) for span in spans]
            for index, group in enumerate(cache.groups)
        ]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, pending: PendingTurn | None = None) -> Tensor:
        """See `layers.Attention`."""
        if pending is not None:
            q, k = pending.applied(q, k)
        cache = self._cache
        keys, values, group = cache.keys[layer], cache.values[layer], cache.group_of[layer]
        keys.index_copy_(1, self._slots[group], k.transpose(0, 1))
        values.index_copy_(1, self._slots[group], v.transpose(0, 1))
        views = self._views[group]
        if len(views) == 1:
            return self._one(views[0], q, keys, values)
        return torch.cat([self._one(view, q[view.rows], keys, values) for view in views])

    def _one(self, view: _View, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """`[count, heads * head_dim]` of one span."""
        cache = self._cache
        if view.scattered is None:
            key, value = keys[None, :, view.first : view.last], values[None, :, view.first : view.last]
        else:
            key, value = keys.index_select(1, view.scattered)[None], values.index_select(1, view.scattered)[None]
        if view.count == 1:
            # Heads that share a key head are as good as tokens: one small matrix product, nothing repeated.
            query = query.view(1, cache.kv_heads, -1, cache.head_dim)
            return F.scaled_dot_product_attention(query, key, value, scale=cache.scale).view(1, -1)
        out = F.scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            key,
            value,
            attn_mask=view.mask,
            is_causal=view.causal,
            scale=cache.scale,
            enable_gqa=cache.heads != cache.kv_heads,
        )
        return out[0].transpose(0, 1).reshape(view.count, -1)

    def _view(self, span: SequenceSpan, table: BlockTable, window: int | None) -> _View:
        size = self._cache.size
        low = 0 if window is None else max(0, span.start + 1 - window)
        if span.count > 1:
            # From a multiple of the block size on: a token sums its keys in the same order in every chunk.
            low = low // size * size
        causal = span.count > 1 and span.start == 0 and (window is None or span.end <= window) and not span.images
        first = table.blocks[low // size - table.first] * size + low % size
        return _View(
            rows=slice(span.row, span.row + span.count),
            count=span.count,
            first=first,
            last=first + span.end - low,
            scattered=None
            if table.together
            else to_device(self._cache.slots(table, low, span.end), self._cache.device),
            mask=None if span.count == 1 or causal else self._mask(span, low, window),
            causal=causal,
        )

    def _mask(self, span: SequenceSpan, low: int, window: int | None) -> Tensor:
        """[count, end - low]: 0 where a token of the span sees a key, else -inf."""
        cache = self._cache
        query = torch.arange(span.start, span.end, device=cache.device)[:, None]
        key = torch.arange(low, span.end, device=cache.device)[None]
        seen = key <= query
        for start, end in span.images:
            seen |= (start <= query) & (query < end) & (start <= key) & (key < end)
        if window is not None:
            seen &= key > query - window
        zero = torch.zeros((), dtype=cache.keys[0].dtype, device=cache.device)
        return torch.where(seen, zero, float("-inf"))
