"""A step of runs -> logits: one flat tensor of tokens through the decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from coldstream.backends.protocol import Abandoned, ImageRun, StepBatch, TokenRun
from coldstream.backends.torch.decoder import Embeds
from coldstream.backends.torch.kv_cache import Attending, KvCache, SequenceSpan
from coldstream.backends.torch.transfer import int64


class DecoderProtocol(Protocol):
    """The model, as a step sees it; `attend(layer, q, k, v)` is the seam to the keys and values."""

    @property
    def attention_dtype(self) -> torch.dtype:
        """The dtype of q, k and v, in which keys and values are kept."""
        ...

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        attend: Callable[[int, Tensor, Tensor, Tensor], Tensor],
        rows: Tensor,
        *,
        embeds: Embeds | None = None,
    ) -> Tensor:
        """ids, positions int64 [tokens]; rows int64 [n] -> float32 logits [n, vocab]; `embeds` are images' vectors."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Computed:
    """Logits float32 [n, vocab], and which of their rows belong to which run of the batch.

    A run that draws has its last token's row; one that is scored has a row for each of its tokens.
    """

    runs: Sequence[TokenRun]
    logits: Tensor
    rows: Sequence[range]


def run(decoder: DecoderProtocol, cache: KvCache, batch: StepBatch, is_wanted: Callable[[], bool]) -> Computed:
    """Compute a step. `is_wanted` is asked before each layer's attention: the layer may have waited for its bytes.

    Raises:
        Abandoned: the step is not wanted any more; nothing of it counts.
    """
    cache.copy(batch.copies)
    spans: list[SequenceSpan] = []
    ids: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    owned: list[range] = []
    seen: list[_Seen] = []
    for item in batch.runs:
        flat = len(ids)
        spans.append(
            SequenceSpan(flat, item.start, item.end, item.tables, [(image.start, image.end) for image in item.images])
        )
        seen += [_vectors(image, item, flat) for image in item.images]
        ids += item.token_ids
        positions += range(item.start, item.end)
        wanted = _wanted(item, flat)
        owned.append(range(len(rows), len(rows) + len(wanted)))
        rows += wanted
    placed = partial(int64, device=cache.device)
    forward = decoder.forward
    if seen:
        at = [row for item in seen for row in item.rows]
        forward = partial(forward, embeds=Embeds(placed(at), torch.cat([item.vectors for item in seen])))
    attend = _while_wanted(cache.attend(spans), is_wanted)
    return Computed(batch.runs, forward(placed(ids), placed(positions), attend, placed(rows)), owned)


def _while_wanted(attend: Attending, is_wanted: Callable[[], bool]) -> Attending:
    def attending(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not is_wanted():
            raise Abandoned
        return attend(layer, q, k, v)

    return attending


class _Seen(NamedTuple):
    """Vectors of an image, on the device, and the rows of the step that they stand at."""

    rows: range
    vectors: Tensor


def _vectors(image: ImageRun, item: TokenRun, flat: int) -> _Seen:
    """The part of an image that is not in the cache yet: to its end, since no run cuts one."""
    assert image.end <= item.end
    assert isinstance(image.vectors, Tensor)
    first = max(image.start, item.start)
    start = flat + first - item.start
    return _Seen(range(start, start + image.end - first), image.vectors[first - image.start :])


def _wanted(item: TokenRun, flat: int) -> range:
    end = flat + len(item.token_ids)
    return range(flat if item.scoring is not None else end - item.draws, end)
