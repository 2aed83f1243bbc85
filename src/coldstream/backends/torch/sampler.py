"""Logits -> the next token of each row, by the row's own parameters and nothing else.

A draw is one number in [0, 1) from a hash of (seed, position), put through the row's inverse cumulative distribution:
the same seed gives the same tokens in any batch, and no generator has state that a restart would lose.

Everything is computed on the device of the logits and only queued there; what was drawn is told after the step's
`Readback`, so that a step waits for its device once, however many rows it has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from coldstream.backends.draws import forbidden, uniform
from coldstream.backends.protocol import Logprob, Sampled, Sampling, SamplingRow
from coldstream.backends.torch import transfer
from coldstream.backends.torch.transfer import Numbers, Readback
from coldstream.errors import EngineError

# Nucleus sampling without top_k looks at this many candidates first, and at all only when they do not suffice.
_NUCLEUS_CANDIDATES = 1024
_SEGMENT = 64


def sample(
    logits: Tensor, rows: Sequence[SamplingRow], readback: Readback, best: Tensor | None = None
) -> Callable[[], list[Sampled | EngineError]]:
    """Draw the next token of each row; what is returned tells it after `readback.wait`, or why there is none.

    `logits`, float32 [len(rows), vocab], stay; `best` is `best_of` them, where that is there already.
    """
    bests = readback.add(best_of(logits) if best is None else best)
    others = {index: _sample_row(logits[index], row, readback) for index, row in enumerate(rows) if not row.is_greedy}

    def drawn() -> list[Sampled | EngineError]:
        outcomes: list[Sampled | EngineError] = []
        for index, (value, token) in enumerate(bests().T.tolist()):
            if not math.isfinite(value):
                message = f"the model's best logit is {value}: its weights or its precision are broken"
                outcomes.append(EngineError(message))
            else:
                outcomes.append(others[index]() if index in others else Sampled(int(token)))
        return outcomes

    return drawn


def token_logprobs(
    logits: Tensor, token_ids: Sequence[int], top: int, readback: Readback
) -> Callable[[], list[Logprob]]:
    """The log probabilities of given tokens, after `readback.wait`; `logits` is float32 [len(token_ids), vocab]."""
    if not token_ids:
        return list
    return _logprobs(logits, transfer.int64(token_ids, logits.device), top, readback)


def _logprobs(logits: Tensor, ids: Tensor, top: int, readback: Readback) -> Callable[[], list[Logprob]]:
    total = torch.logsumexp(logits, dim=-1)
    own = readback.add(_together(logits.gather(1, ids[:, None])[:, 0] - total, ids))
    if not top:
        return lambda: [Logprob(int(token), value) for value, token in own().T.tolist()]
    values, places = torch.topk(logits, min(top, logits.shape[-1]), dim=-1)
    best = readback.add(_together(values - total[:, None], places))

    def scored() -> list[Logprob]:
        values, places = best()
        return [
            Logprob(int(token), value, _ranked(value_row, place_row))
            for (value, token), value_row, place_row in zip(own().T.tolist(), values, places, strict=True)
        ]

    return scored


def _ranked(values: Numbers, places: Numbers) -> tuple[tuple[int, float], ...]:
    return tuple((int(place), value) for place, value in zip(places.tolist(), values.tolist(), strict=True))


def _together(values: Tensor, ids: Tensor) -> Tensor:
    """float64 `[2, *shape]`."""
    return torch.stack([values.double(), ids.double()])


def best_of(logits: Tensor) -> Tensor:
    """float64 `[2, rows]`: the best value of each row and its id."""
    return _together(*_best(logits))


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


def _sample_row(logits: Tensor, row: SamplingRow, readback: Readback) -> Callable[[], Sampled | EngineError]:
    changed = _changed(logits, row) if row.changes_logits else logits
    value, best = _best(changed[None])
    token = best if row.params.temperature <= 0 else _draw(changed, row)
    chosen = readback.add(_together(value, token))
    wanted = row.params.logprobs
    scored = _logprobs(logits[None], token, wanted, readback) if wanted is not None else None

    def drawn() -> Sampled | EngineError:
        [[best_value], [token_id]] = chosen().tolist()
        if not math.isfinite(best_value):
            return EngineError("no token may follow: the grammar and the model's vocabulary do not meet")
        return Sampled(int(token_id), scored()[0] if scored is not None else None)

    return drawn


def _changed(logits: Tensor, row: SamplingRow) -> Tensor:
    logits = logits.clone()
    params, device = row.params, logits.device
    if params.repetition_penalty != 1.0:
        _penalise_repetition(logits, row)
    if row.counts and (params.presence_penalty or params.frequency_penalty):
        counts = transfer.float32(list(row.counts.values()), device)
        penalties = params.presence_penalty + params.frequency_penalty * counts
        logits.index_add_(0, transfer.int64(list(row.counts), device), -penalties)
    if params.logit_bias:
        ids, biases = zip(*params.logit_bias, strict=True)
        logits.index_add_(0, transfer.int64(ids, device), transfer.float32(biases, device))
    if row.allowed is not None:
        logits.masked_fill_(
            transfer.to_device(torch.from_numpy(forbidden(row.allowed, len(logits))), device), float("-inf")
        )
    return logits


def _penalise_repetition(logits: Tensor, row: SamplingRow) -> None:
    seen = _seen(row, len(logits), logits.device)
    values = logits[seen]
    penalty = row.params.repetition_penalty
    logits[seen] = torch.where(values > 0, values / penalty, values * penalty)


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A prompt's distinct ids; `placed`, int64 on the device, are those below the vocabulary's size."""

    ids: frozenset[int]
    placed: Tensor


def _seen(row: SamplingRow, vocab: int, device: torch.device) -> Tensor:
    """The distinct ids below `vocab` of prompt and output, int64; the prompt's are put on the device once."""
    prompt = row.kept
    if not isinstance(prompt, _Prompt):
        ids = frozenset(row.prompt_ids)
        prompt = row.kept = _Prompt(ids, transfer.int64(sorted(token for token in ids if token < vocab), device))
    new = [token for token in row.counts if token not in prompt.ids]
    return torch.cat([prompt.placed, transfer.int64(new, device)]) if new else prompt.placed


def _draw(logits: Tensor, row: SamplingRow) -> Tensor:
    """int64 `[1]`."""
    params = row.params
    scaled = logits / params.temperature
    point = uniform(row.seed, row.position)
    vocab = scaled.shape[0]
    if 0 < params.top_k < vocab:
        values, ids = _best_of_row(scaled, params.top_k)
        return _pick(values, ids, torch.logsumexp(values, 0), params, point)
    total = torch.logsumexp(scaled, 0)
    if params.top_p < 1.0 or params.min_p > 0.0:
        return _pick(*_candidates(scaled, total, params), total, params, point)
    return _pick(scaled, None, total, params, point)


def _candidates(scaled: Tensor, total: Tensor, params: Sampling) -> tuple[Tensor, Tensor]:
    """At least those that the filters leave, best first, and their ids.

    On the CPU a few are tried first. Elsewhere to ask whether they suffice would be a wait, and sorting all costs less.
    """
    if scaled.device.type == "cpu":
        values, ids = _best_of_row(scaled, min(_NUCLEUS_CANDIDATES, len(scaled)))
        if _suffices(values, total, params):
            return values, ids
    return torch.sort(scaled, descending=True, stable=True)


def _suffices(values: Tensor, total: Tensor, params: Sampling) -> bool:
    """Whether the filters surely end within these best candidates."""
    probabilities = torch.exp(values - total)
    by_mass = params.top_p < 1.0 and float(probabilities.sum()) >= params.top_p
    by_floor = params.min_p > 0.0 and float(probabilities[-1]) < params.min_p * float(probabilities[0])
    return by_mass or by_floor


def _pick(values: Tensor, ids: Tensor | None, total: Tensor, params: Sampling, point: float) -> Tensor:
    """Filter the candidates (best first, unless `ids` is None) by mass and floor, and invert what is left at `point`.

    Float64: float32 sums over a vocabulary of 262,144 would make the last tokens unreachable.
    """
    probabilities = torch.exp((values - total).double())
    if ids is not None:
        before = torch.cumsum(probabilities, 0) - probabilities
        keep = before < params.top_p if params.top_p < 1.0 else torch.ones_like(before, dtype=torch.bool)
        keep &= probabilities >= params.min_p * probabilities[:1]
        keep[:1].fill_(True)
        probabilities = probabilities * keep
    sums = torch.cumsum(probabilities, 0)
    mass = sums[-1:]
    # Rounding may put the point at the end of all; what is behind the last mass was filtered away or has none.
    last = torch.searchsorted(sums, mass).clamp(max=len(sums) - 1)
    place = torch.minimum(torch.searchsorted(sums, point * mass, right=True), last)
    return place if ids is None else ids[place]
