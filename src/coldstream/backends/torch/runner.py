"""A step of runs -> logits: one flat tensor of tokens through the decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from coldstream.backends.protocol import Abandoned, StepBatch, TokenRun
from coldstream.backends.spans import SeenImage, lay_out
from coldstream.backends.torch.decoder import Embeds
from coldstream.backends.torch.graphs import DecodeGraphs
from coldstream.backends.torch.kv_cache import Attending, KvCache
from coldstream.backends.torch.layers import PendingTurn
from coldstream.backends.torch.transfer import int64


class DecoderProtocol(Protocol):
    """The model, as a step sees it; `attend(layer, q, k, v)` is the seam to the keys and values."""

    @property
    def attention_dtype(self) -> torch.dtype:
        """The dtype of q, k and v, in which keys and values are kept."""
        ...

    @property
    def has_landed(self) -> bool:
        """Whether no step waits for weights any more."""
        ...

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        attend: Attending,
        rows: Tensor,
        *,
        embeds: Embeds | None = None,
    ) -> Tensor:
        """ids, positions int64 [tokens]; rows int64 [n] -> float32 logits [n, vocab]; `embeds` are images' vectors."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Computed:
    """Logits float32 [n, vocab], and which of their rows belong to which run of the batch.

    A run that draws has its last token's row; one that is scored has a row for each of its tokens. `best` is
    `sampler.best_of` the logits, where it was computed with them.
    """

    runs: Sequence[TokenRun]
    logits: Tensor
    rows: Sequence[range]
    best: Tensor | None = None


def run(
    decoder: DecoderProtocol,
    cache: KvCache,
    batch: StepBatch,
    is_wanted: Callable[[], bool],
    graphs: DecodeGraphs | None = None,
) -> Computed:
    """Compute a step, or have it computed by what `graphs` has of its kind.

    `is_wanted` is asked before each layer's attention: the layer may have waited for its bytes.

    Raises:
        Abandoned: the step is not wanted any more; nothing of it counts.
    """
    cache.copy(batch.copies)
    laid = lay_out(batch)
    recorded = None if graphs is None else graphs.run(laid, is_wanted)
    if recorded is not None:
        return Computed(batch.runs, recorded.logits, laid.owned, recorded.best)
    placed = partial(int64, device=cache.device)
    forward = decoder.forward
    if laid.images:
        at = [row for item in laid.images for row in item.rows]
        forward = partial(forward, embeds=Embeds(placed(at), torch.cat([_vectors(item) for item in laid.images])))
    attend = _while_wanted(cache.attend(laid.spans), is_wanted)
    logits = forward(placed(laid.ids), placed(laid.positions), attend, placed(laid.rows))
    return Computed(batch.runs, logits, laid.owned)


def _while_wanted(attend: Attending, is_wanted: Callable[[], bool]) -> Attending:
    def attending(layer: int, q: Tensor, k: Tensor, v: Tensor, pending: PendingTurn | None = None) -> Tensor:
        if not is_wanted():
            raise Abandoned
        return attend(layer, q, k, v, pending)

    return attending


def _vectors(item: SeenImage) -> Tensor:
    assert isinstance(item.image.vectors, Tensor)
    return item.image.vectors[item.skipped :]
