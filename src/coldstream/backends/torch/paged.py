"""Attention through our GPU kernels: one launch a layer for all sequences, wherever their blocks lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from coldstream.backends.cuda.variants import width
from coldstream.backends.spans import SequenceSpan
from coldstream.backends.torch.device_kernels import DeviceKernels
from coldstream.backends.torch.layers import PendingTurn
from coldstream.backends.torch.step_tables import StepTables, layout_of, most_parts, pack
from coldstream.backends.torch.transfer import to_device

if TYPE_CHECKING:
    from coldstream.backends.torch.kv_cache import KvCache

PART = 512
"""Positions of a long sequence that one program reads when it decodes: a multiple of a block, the same in any batch."""
_ARRIVED = 1 << 16


class PagedKernels:
    """The kernels with what their launches share: a place for parts' results to meet. For one stream."""

    def __init__(self, kernels: DeviceKernels, device: torch.device) -> None:
        self.kernels = kernels
        self._arrived = torch.zeros(_ARRIVED, dtype=torch.int32, device=device)
        self._outgrown: list[Tensor] = []

    def scratch(self, programs: int, parts: int, group: int, head_dim: int) -> tuple[Tensor, Tensor]:
        """float32 room for so many programs' partial results, and int32 counters, which are zero between launches."""
        if programs > len(self._arrived):
            self._outgrown.append(self._arrived)  # steps that were recorded with them go on with them
            self._arrived = torch.zeros(programs, dtype=torch.int32, device=self._arrived.device)
        floats = programs * parts * group * (width(head_dim) + 2) if parts > 1 else 1
        return torch.empty(floats, dtype=torch.float32, device=self._arrived.device), self._arrived


class PagedAttend:
    """The attention of one step; `decodes`: no sequence has more than one token in it.

    `tables` are on the device, `parts` the most that a sequence's keys are divided in, for each group.
    """

    def __init__(
        self, cache: KvCache, paged: PagedKernels, tables: StepTables, parts: Sequence[int], *, decodes: bool
    ) -> None:
        self._cache, self._paged = cache, paged
        self._tables, self._parts, self._decodes = tables, parts, decodes
        self._scratch: dict[int, tuple[Tensor, Tensor]] = {}

    @classmethod
    def of(cls, cache: KvCache, paged: PagedKernels, spans: Sequence[SequenceSpan]) -> PagedAttend:
        """For these spans, whose tables are queued to the device in one copy."""
        decodes = all(span.count == 1 for span in spans)
        group = cache.heads // cache.kv_heads
        tile_tokens = paged.kernels.tile_tokens(cache.keys[0].dtype, group, decodes=decodes)
        layout = layout_of(spans, tile_tokens=tile_tokens)
        packed = to_device(pack(spans, layout, size=cache.size, tile_tokens=tile_tokens), cache.device)
        parts = [most_parts(spans, item.window, part=PART) for item in cache.groups]
        return cls(cache, paged, layout.view(packed), parts, decodes=decodes)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, pending: PendingTurn | None = None) -> Tensor:
        """See `layers.Attention`."""
        cache, index = self._cache, self._cache.group_of[layer]
        keys, values, own = cache.keys[layer], cache.values[layer], self._tables.groups[index]
        if pending is None:
            query = q.contiguous()
            slots = own.slots.long()
            keys.index_copy_(1, slots, k.transpose(0, 1))
            values.index_copy_(1, slots, v.transpose(0, 1))
        else:
            query = torch.empty(q.shape, dtype=q.dtype, device=q.device)
            self._paged.kernels.place(pending, query, keys, values, own.slots)
        out = torch.empty_like(query)
        self._paged.kernels.attend(
            out,
            query,
            keys,
            values,
            (self._tables.positions, self._tables.seen, own.tiles, self._tables.blocks),
            self._room(index, len(own.tiles)),
            scale=cache.scale,
            window=cache.groups[index].window,
            part=PART,
            parts=self._parts[index],
            decodes=self._decodes,
        )
        return out.view(len(out), -1)

    def _room(self, index: int, tiles: int) -> tuple[Tensor, Tensor]:
        """Layers of a group come one after the other, so that they share theirs."""
        if index not in self._scratch:
            cache = self._cache
            group = cache.heads // cache.kv_heads
            self._scratch[index] = self._paged.scratch(
                tiles * cache.kv_heads, self._parts[index], group, cache.head_dim
            )
        return self._scratch[index]
