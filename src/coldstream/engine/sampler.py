"""Logits -> the next token of each row, by the row's own parameters and nothing else.

A draw is one number in [0, 1) from a hash of (seed, position), put through the row's inverse cumulative distribution:
the same seed gives the same tokens in any batch, and no generator has state that a restart would lose.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from coldstream.engine.request import SamplingParams
from coldstream.errors import EngineError

# Nucleus sampling without top_k looks at this many candidates first, and at all only when they do not suffice.
_NUCLEUS_CANDIDATES = 1024
_SEGMENT = 64


@dataclass(slots=True)
class Row:
    """One sequence's state as the sampler needs it.

    `position` counts the tokens drawn so far; `allowed`, bool [vocab], is what a grammar lets come next.
    """

    params: SamplingParams
    seed: int
    prompt_ids: Sequence[int]
    position: int = 0
    counts: dict[int, int] = field(default_factory=dict)
    allowed: Tensor | None = None
    _prompt_unique: Tensor | None = None

    @property
    def is_greedy(self) -> bool:
        """Nothing but the best token, of unchanged logits, and no logprobs."""
        return self.params.temperature <= 0 and not self.changes_logits and self.params.logprobs is None

    @property
    def changes_logits(self) -> bool:
        """Some penalty, bias or grammar is at work."""
        params = self.params
        return bool(
            params.repetition_penalty != 1.0
            or params.presence_penalty
            or params.frequency_penalty
            or params.logit_bias
            or self.allowed is not None
        )

    def drawn(self, token_id: int) -> None:
        """Take note of the token that was drawn."""
        self.position += 1
        self.counts[token_id] = self.counts.get(token_id, 0) + 1

    def prompt_unique(self) -> Tensor:
        """The prompt's distinct ids, int64."""
        if self._prompt_unique is None:
            self._prompt_unique = torch.tensor(sorted(set(self.prompt_ids)), dtype=torch.int64)
        return self._prompt_unique


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token's log probability (nats) under the unchanged logits, and the best alternatives, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token of one row; `logprob` where the row asked for it."""

    token_id: int
    logprob: Logprob | None = None


def sample(logits: Tensor, rows: Sequence[Row]) -> list[Sampled | EngineError]:
    """Draw the next token of each row, or say why there is none. `logits`, float32 [len(rows), vocab], stay."""
    values, ids = _best(logits)
    outcomes: list[Sampled | EngineError] = []
    for index, (row, value, best) in enumerate(zip(rows, values.tolist(), ids.tolist(), strict=True)):
        if not math.isfinite(value):
            outcomes.append(EngineError(f"the model's best logit is {value}: its weights or its precision are broken"))
        else:
            outcomes.append(Sampled(best) if row.is_greedy else _sample_row(logits[index], row))
    return outcomes


def token_logprobs(logits: Tensor, token_ids: Sequence[int], top: int) -> list[Logprob]:
    """The log probabilities of given tokens; `logits` is float32 [len(token_ids), vocab]."""
    if not token_ids:
        return []
    ids = torch.tensor(token_ids, dtype=torch.int64, device=logits.device)
    total = torch.logsumexp(logits, dim=-1)
    own = (logits.gather(1, ids[:, None])[:, 0] - total).tolist()
    if not top:
        return [Logprob(token, value) for token, value in zip(token_ids, own, strict=True)]
    best = torch.topk(logits, min(top, logits.shape[-1]), dim=-1)
    values = (best.values - total[:, None]).tolist()
    return [
        Logprob(token, value, tuple(zip(places, tops, strict=True)))
        for token, value, places, tops in zip(token_ids, own, best.indices.tolist(), values, strict=True)
    ]


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1), the same for the same arguments on every machine."""
    key = seed.to_bytes(16, "little", signed=True)
    digest = hashlib.blake2b(position.to_bytes(8, "little"), key=key, digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)


def _best(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The best value of each row and its id, both [rows]; NaN counts as the largest.

    By segments: torch's maximum without an index is vectorised, the one with an index is not.
    """
    rows, vocab = logits.shape
    if vocab % _SEGMENT:
        best = torch.max(logits, dim=-1)
        return best.values, best.indices
    segments = logits.reshape(rows, -1, _SEGMENT)
    tops = segments.amax(-1)
    place = tops.argmax(-1)
    every = torch.arange(rows, device=logits.device)
    return tops[every, place], place * _SEGMENT + segments[every, place].argmax(-1)


def _best_of_row(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` best values of one row and their ids, best first.

    They lie in the `count` segments with the best maxima, so only those are sorted.
    """
    segments = len(logits) // _SEGMENT
    if len(logits) % _SEGMENT or 4 * count > segments:
        best = torch.topk(logits, count)
        return best.values, best.indices
    parts = logits.view(segments, _SEGMENT)
    places = torch.topk(parts.amax(-1), count, sorted=False).indices
    best = torch.topk(parts[places].flatten(), count)
    return best.values, places[best.indices // _SEGMENT] * _SEGMENT + best.indices % _SEGMENT


def _sample_row(logits: Tensor, row: Row) -> Sampled | EngineError:
    changed = _changed(logits, row) if row.changes_logits else logits
    best = int(_best(changed[None])[1])
    if not math.isfinite(float(changed[best])):
        return EngineError("no token may follow: the grammar and the model's vocabulary do not meet")
    token = best if row.params.temperature <= 0 else _draw(changed, row)
    if row.params.logprobs is None:
        return Sampled(token)
    return Sampled(token, token_logprobs(logits[None], [token], row.params.logprobs)[0])


def _changed(logits: Tensor, row: Row) -> Tensor:
    logits = logits.clone()
    params = row.params
    if params.repetition_penalty != 1.0:
        _penalise_repetition(logits, row)
    if row.counts and (params.presence_penalty or params.frequency_penalty):
        ids = torch.tensor(list(row.counts), dtype=torch.int64, device=logits.device)
        counts = torch.tensor(list(row.counts.values()), dtype=logits.dtype, device=logits.device)
        logits[ids] -= params.presence_penalty + params.frequency_penalty * counts
    for token_id, bias in params.logit_bias:
        logits[token_id] += bias
    if row.allowed is not None:
        logits.masked_fill_(~row.allowed.to(logits.device), float("-inf"))
    return logits


def _penalise_repetition(logits: Tensor, row: Row) -> None:
    seen = row.prompt_unique()
    if row.counts:
        seen = torch.unique(torch.cat([seen, torch.tensor(list(row.counts), dtype=torch.int64)]))
    seen = seen[seen < logits.shape[0]].to(logits.device)
    values = logits[seen]
    penalty = row.params.repetition_penalty
    logits[seen] = torch.where(values > 0, values / penalty, values * penalty)


def _draw(logits: Tensor, row: Row) -> int:
    params = row.params
    scaled = logits / params.temperature
    point = uniform(row.seed, row.position)
    vocab = scaled.shape[0]
    if 0 < params.top_k < vocab:
        values, ids = _best_of_row(scaled, params.top_k)
        return _pick(values, ids, torch.logsumexp(values, 0), params, point)
    total = torch.logsumexp(scaled, 0)
    if params.top_p < 1.0 or params.min_p > 0.0:
        values, ids = _best_of_row(scaled, min(_NUCLEUS_CANDIDATES, vocab))
        if not _suffices(values, total, params):
            values, ids = torch.sort(scaled, descending=True, stable=True)
        return _pick(values, ids, total, params, point)
    return _pick(scaled, None, total, params, point)


def _suffices(values: Tensor, total: Tensor, params: SamplingParams) -> bool:
    """Whether the filters surely end within these best candidates."""
    probabilities = torch.exp(values - total)
    by_mass = params.top_p < 1.0 and float(probabilities.sum()) >= params.top_p
    by_floor = params.min_p > 0.0 and float(probabilities[-1]) < params.min_p * float(probabilities[0])
    return by_mass or by_floor


def _pick(values: Tensor, ids: Tensor | None, total: Tensor, params: SamplingParams, point: float) -> int:
    """Filter the candidates (best first, unless `ids` is None) by mass and floor, and invert what is left at `point`.

    Float64: float32 sums over a vocabulary of 262,144 would make the last tokens unreachable.
    """
    probabilities = torch.exp((values - total).double())
    if ids is not None:
        before = torch.cumsum(probabilities, 0) - probabilities
        keep = before < params.top_p if params.top_p < 1.0 else torch.ones_like(before, dtype=torch.bool)
        keep &= probabilities >= params.min_p * probabilities[0]
        keep[0] = True
        probabilities = probabilities * keep
    sums = torch.cumsum(probabilities, 0)
    place = int(torch.searchsorted(sums, point * float(sums[-1]), right=True))
    place = min(place, int(torch.nonzero(probabilities)[-1]))
    return place if ids is None else int(ids[place])
