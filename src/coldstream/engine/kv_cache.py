"""Keys and values of all running sequences, and attention over them.

Each layer has one tensor for keys and one for values, `[kv_heads, slots, head_dim]`; block b is the slots
`b * size ... (b + 1) * size - 1`. With the heads outside, a sequence whose blocks lie next to each other (`blocks.py`
sees to that) is a view `[kv_heads, length, head_dim]` that attention reads in place; only a scattered one is gathered.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

# Keys of a sliding layer are taken from a multiple of this on, so that a token is computed the same in every chunk.
_KEY_ALIGNMENT = 32


class Layer(Protocol):
    """What attention needs to know of a layer."""

    @property
    def window(self) -> int | None:
        """A token sees itself and the `window - 1` tokens before it; None: all before it."""
        ...


class AttentionConfig(Protocol):
    """What the cache needs to know of a model."""

    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def attention_scale(self) -> float: ...
    @property
    def layers(self) -> Sequence[Layer]: ...


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `start ... end - 1` of a sequence, at `row` of the step's flat tensor, whose blocks are `blocks`."""

    row: int
    start: int
    end: int
    blocks: Sequence[int]

    @property
    def count(self) -> int:
        """How many tokens of the step are the sequence's."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class _View:
    """The keys `low ... end - 1` of one span: consecutive slots from `first` on, or the scattered `slots`."""

    rows: slice
    count: int
    first: int
    last: int
    slots: Tensor | None
    mask: Tensor | None
    causal: bool


def bytes_per_block(config: AttentionConfig, size: int, dtype: torch.dtype) -> int:
    """Memory of one block of `size` tokens over all layers, keys and values."""
    return 2 * len(config.layers) * config.kv_heads * config.head_dim * size * dtype.itemsize


class KvCache:
    """The tensors. Memory is taken from the system page by page, as blocks are first written."""

    def __init__(
        self,
        config: AttentionConfig,
        *,
        blocks: int,
        size: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (config.kv_heads, blocks * size, config.head_dim)
        self.size = size
        self._config = config
        self._windows = [layer.window for layer in config.layers]
        self._keys = [torch.empty(shape, dtype=dtype, device=device) for _ in config.layers]
        self._values = [torch.empty(shape, dtype=dtype, device=device) for _ in config.layers]
        self._device = torch.device(device)

    def copy(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, (from, to)."""
        if not copies:
            return
        offsets = torch.arange(self.size)
        source = (torch.tensor([pair[0] for pair in copies])[:, None] * self.size + offsets).flatten()
        target = (torch.tensor([pair[1] for pair in copies])[:, None] * self.size + offsets).flatten()
        for tensor in (*self._keys, *self._values):
            tensor[:, target] = tensor[:, source]

    def attend(self, spans: Sequence[Span]) -> Attend:
        """The attention of one step over these spans."""
        return Attend(self, spans)


class Attend:
    """`attend(layer, q, k, v)` of one step: stores k and v, then attends, sequence by sequence."""

    def __init__(self, cache: KvCache, spans: Sequence[Span]) -> None:
        self._cache = cache
        self._spans = spans
        self._slots = torch.cat([_slots(span.blocks, cache.size, span.start, span.end) for span in spans])
        self._views: dict[int | None, list[_View]] = {}
        self._all = torch.arange(0)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q `[tokens, heads, head_dim]`, k and v `[tokens, kv_heads, head_dim]` -> `[tokens, heads * head_dim]`."""
        cache = self._cache
        keys, values = cache._keys[layer], cache._values[layer]
        keys.index_copy_(1, self._slots, k.transpose(0, 1).to(keys.dtype))
        values.index_copy_(1, self._slots, v.transpose(0, 1).to(values.dtype))
        window = cache._windows[layer]
        views = self._views.get(window)
        if views is None:
            views = self._views[window] = [self._view(span, window) for span in self._spans]
        outs = [self._one(view, q, keys, values) for view in views]
        out = outs[0] if len(outs) == 1 else torch.cat(outs)
        return out.to(q.dtype)

    def _one(self, view: _View, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """`[count, heads * head_dim]` of one span."""
        config = self._cache._config
        if view.slots is None:
            key, value = keys[:, view.first : view.last], values[:, view.first : view.last]
        else:
            key, value = keys.index_select(1, view.slots), values.index_select(1, view.slots)
        query = q[view.rows].to(keys.dtype)
        if view.count == 1:
            # The heads that share a key head are as good as tokens: one small matrix product, nothing repeated.
            query = query.view(1, config.kv_heads, -1, config.head_dim)
            out = F.scaled_dot_product_attention(query, key[None], value[None], scale=config.attention_scale)
            return out.reshape(1, -1)
        out = F.scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            key[None],
            value[None],
            attn_mask=view.mask,
            is_causal=view.causal,
            scale=config.attention_scale,
            enable_gqa=config.heads != config.kv_heads,
        )
        return out[0].transpose(0, 1).reshape(view.count, -1)

    def _view(self, span: Span, window: int | None) -> _View:
        low = 0 if window is None else max(0, span.start + 1 - window)
        if span.count > 1:
            low = low // _KEY_ALIGNMENT * _KEY_ALIGNMENT
        size = self._cache.size
        blocks = span.blocks[low // size : -(-span.end // size)]
        together = blocks[-1] - blocks[0] == len(blocks) - 1 and all(
            right == left + 1 for left, right in itertools.pairwise(blocks)
        )
        first = blocks[0] * size + low % size
        causal = span.count > 1 and low == span.start == 0 and (window is None or span.end <= window)
        return _View(
            rows=slice(span.row, span.row + span.count),
            count=span.count,
            first=first,
            last=first + span.end - low,
            slots=None if together else _slots(span.blocks, size, low, span.end),
            mask=None if span.count == 1 or causal else _mask(span, low, window),
            causal=causal,
        )


def _slots(blocks: Sequence[int], size: int, start: int, end: int) -> Tensor:
    """The slots of the tokens `start ... end - 1`, int64."""
    if end - start == 1:
        return torch.tensor([blocks[start // size] * size + start % size])
    first = start // size
    base = torch.tensor(blocks[first : -(-end // size)], dtype=torch.int64)
    slots = (base[:, None] * size + torch.arange(size)).flatten()
    return slots[start - first * size : end - first * size]


def _mask(span: Span, low: int, window: int | None) -> Tensor:
    """float32 [count, end - low]: 0 where a token of the span sees a key, else -inf."""
    query = torch.arange(span.start, span.end)[:, None]
    key = torch.arange(low, span.end)[None]
    seen = key <= query
    if window is not None:
        seen &= key > query - window
    return torch.zeros(seen.shape).masked_fill_(~seen, float("-inf"))
