"""A step of runs -> logits: one flat row of tokens through the decoder, and a token of each run that draws one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from coldstream.backends.cpu.address import Floats, Ints
from coldstream.backends.cpu.decoder import ImageEmbeds
from coldstream.backends.cpu.kv_cache import BlockCache
from coldstream.backends.cpu.layer import Attend
from coldstream.backends.protocol import Abandoned, StepBatch, TokenRun
from coldstream.backends.spans import SeenImage, lay_out


class Forward(Protocol):
    """The model, as a step sees it."""

    def forward(self, ids: Ints, positions: Ints, attend: Attend, rows: Ints, **more: Any) -> Floats:
        """See `CpuDecoder.forward`."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class StepLogits:
    """Logits float32 `[n, vocab]`, and which of their rows belong to which run of the batch."""

    runs: Sequence[TokenRun]
    logits: Floats
    rows: Sequence[range]


def run(decoder: Forward, cache: BlockCache, batch: StepBatch, is_wanted: Callable[[], bool]) -> StepLogits:
    """Compute a step. `is_wanted` is asked before each layer's attention: the layer may have waited for its bytes.

    Raises:
        Abandoned: the step is not wanted any more; nothing of it counts.
    """
    cache.copy(batch.copies)
    laid = lay_out(batch)
    more: dict[str, Any] = {}
    if laid.images:
        at = np.array([row for item in laid.images for row in item.rows], np.int64)
        more["embeds"] = ImageEmbeds(at, np.concatenate([_vectors(item) for item in laid.images]))
    attention = cache.attend(laid.spans)

    def attend(layer: int, q: Floats, k: Floats, v: Floats) -> Floats:
        if not is_wanted():
            raise Abandoned
        return attention(layer, q, k, v)

    ids, positions, rows = (np.array(part, np.int64) for part in (laid.ids, laid.positions, laid.rows))
    return StepLogits(batch.runs, decoder.forward(ids, positions, attend, rows, **more), laid.owned)


def _vectors(item: SeenImage) -> Floats:
    assert isinstance(item.image.vectors, np.ndarray)
    return item.image.vectors[item.skipped :]
