"""Logits -> the next token of each row, by the row's own parameters and nothing else.

A draw is one number in [0, 1) from a hash of (seed, position), put through the row's inverse cumulative distribution:
the same seed gives the same tokens in any batch, and no generator has state that a restart would lose. Where no filter
is asked for, our kernel goes through the whole vocabulary; filters look at the best candidates alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coldstream.backends.cpu.address import Floats, Ints
from coldstream.backends.cpu.library import Kernels
from coldstream.backends.cpu.rows import SEGMENT
from coldstream.backends.draws import forbidden, uniform
from coldstream.backends.protocol import Logprob, Sampled, Sampling, SamplingRow
from coldstream.errors import EngineError

# Nucleus sampling without top_k looks at this many candidates first, and at all only when they do not suffice.
_NUCLEUS_CANDIDATES = 1024


class Sampler:
    """The rows of a step, one after the other. Logits are float32 `[vocab]` each and stay as they are."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def sample(self, logits: Sequence[Floats], rows: Sequence[SamplingRow]) -> list[Sampled | EngineError]:
        """The next token of each row, or why there is none."""
        return [self._sample_row(one, row) for one, row in zip(logits, rows, strict=True)]

    def token_logprobs(self, logits: Floats, token_ids: Sequence[int], top: int) -> list[Logprob]:
        """The log probabilities of given tokens, one a row of the logits."""
        return [self._logprob(row, token, top) for row, token in zip(logits, token_ids, strict=True)]

    def _sample_row(self, logits: Floats, row: SamplingRow) -> Sampled | EngineError:
        best = int(logits.argmax())  # NaN counts as the largest
        if not math.isfinite(logits[best]):
            return EngineError(f"the model's best logit is {logits[best]}: its weights or its precision are broken")
        if row.is_greedy:
            return Sampled(best)
        changed = logits
        if row.changes_logits:
            changed = _changed(logits, row)
            best = int(changed.argmax())
            if not math.isfinite(changed[best]):
                return EngineError("no token may follow: the grammar and the model's vocabulary do not meet")
        token = best if row.params.temperature <= 0 else self._draw(changed, best, row)
        wanted = row.params.logprobs
        return Sampled(token, self._logprob(logits, token, wanted) if wanted is not None else None)

    def _logprob(self, logits: Floats, token: int, top: int) -> Logprob:
        """Under the unchanged logits; `top` best alternatives."""
        total = self._log_total(logits)
        own = float(np.float32(logits[token] - total))
        if not top:
            return Logprob(token, own)
        ids = self._best_of_row(logits, min(top, len(logits)))
        return Logprob(token, own, tuple((int(place), float(np.float32(logits[place] - total))) for place in ids))

    def _log_total(self, logits: Floats) -> float:
        """log(sum(exp(logits)))."""
        top = float(logits.max())
        return top + math.log(self._kernels.of_rows.mass(logits, 1.0, top)) if math.isfinite(top) else top

    def _draw(self, logits: Floats, best: int, row: SamplingRow) -> int:
        params, vocab = row.params, len(logits)
        temperature = np.float32(params.temperature)
        point = uniform(row.seed, row.position)
        top = float(logits[best] / temperature)
        if not math.isfinite(top):  # so cold that nothing but the best is left
            return best
        if 0 < params.top_k < vocab:
            ids = self._best_of_row(logits, params.top_k)
            values = logits[ids] / temperature
            return _pick(values, ids, _log_sum(values), params, point)
        if params.top_p < 1.0 or params.min_p > 0.0:
            total = top + math.log(self._kernels.of_rows.mass(logits, float(temperature), top))
            ids = self._candidates(logits, temperature, total, params)
            return _pick(logits[ids] / temperature, ids, total, params, point)
        return self._kernels.of_rows.pick(logits, float(temperature), top, point)

    def _candidates(self, logits: Floats, temperature: np.float32, total: float, params: Sampling) -> Ints:
        """At least those that the filters leave, best first. A few are tried before all are sorted."""
        ids = self._best_of_row(logits, min(_NUCLEUS_CANDIDATES, len(logits)))
        if _suffices(logits[ids] / temperature, total, params):
            return ids
        return np.argsort(-logits, kind="stable")

    def _best_of_row(self, logits: Floats, count: int) -> Ints:
        """The ids of the `count` best values of one row, best first, the lower id first where they are equal.

        They lie in the `count` segments with the best maxima, so only those are sorted.
        """
        segments = len(logits) // SEGMENT
        if len(logits) % SEGMENT or 4 * count > segments:
            return _ranked(logits, np.arange(len(logits)), count)
        tops = self._kernels.of_rows.tops(logits)
        least = np.partition(tops, segments - count)[segments - count]
        places = np.flatnonzero(tops >= least)  # more than `count` where maxima are equal: which may matter
        ids = (places[:, None] * SEGMENT + np.arange(SEGMENT)).reshape(-1)
        return _ranked(logits[ids], ids, count)


def _ranked(values: Floats, ids: Ints, count: int) -> Ints:
    """The ids of the `count` best values; `ids` ascend."""
    if count < len(values):
        least = np.partition(values, len(values) - count)[len(values) - count]
        some = np.flatnonzero(values >= least)
        values, ids = values[some], ids[some]
    return ids[np.argsort(-values, kind="stable")[:count]]


def _changed(logits: Floats, row: SamplingRow) -> Floats:
    logits, params = logits.copy(), row.params
    if params.repetition_penalty != 1.0:
        seen, penalty = _seen(row, len(logits)), np.float32(params.repetition_penalty)
        values = logits[seen]
        logits[seen] = np.where(values > 0, values / penalty, values * penalty)
    if row.counts and (params.presence_penalty or params.frequency_penalty):
        counts = np.fromiter(row.counts.values(), np.float32)
        penalties = np.float32(params.presence_penalty) + np.float32(params.frequency_penalty) * counts
        logits[np.fromiter(row.counts, np.int64)] -= penalties
    if params.logit_bias:
        ids, biases = zip(*params.logit_bias, strict=True)
        np.add.at(logits, np.array(ids), np.array(biases, np.float32))
    if row.allowed is not None:
        logits[forbidden(row.allowed, len(logits))] = -np.inf
    return logits


def _seen(row: SamplingRow, vocab: int) -> Ints:
    """The distinct ids below `vocab` of prompt and output; the prompt's are kept with the row."""
    prompt = row.kept
    if not isinstance(prompt, frozenset):
        prompt = row.kept = frozenset(token for token in row.prompt_ids if token < vocab)
    return np.fromiter(prompt | row.counts.keys(), np.int64)


def _suffices(values: Floats, total: float, params: Sampling) -> bool:
    """Whether the filters surely end within these best candidates."""
    probabilities = np.exp(values.astype(np.float64) - total)
    by_mass = params.top_p < 1.0 and float(probabilities.sum()) >= params.top_p
    by_floor = params.min_p > 0.0 and float(probabilities[-1]) < params.min_p * float(probabilities[0])
    return by_mass or by_floor


def _log_sum(values: Floats) -> float:
    """log(sum(exp(values))), whose first is the largest."""
    top = float(values[0])
    return top + math.log(float(np.exp(values.astype(np.float64) - top).sum()))


def _pick(values: Floats, ids: Ints, total: float, params: Sampling, point: float) -> int:
    """Filter the candidates, best first, by mass and floor, and invert what is left at `point`."""
    probabilities = np.exp(values.astype(np.float64) - total)
    sums = np.cumsum(probabilities)
    keep: NDArray[np.bool_] = np.ones(len(values), np.bool_)
    if params.top_p < 1.0:
        keep &= sums - probabilities < params.top_p
    keep &= probabilities >= params.min_p * probabilities[0]
    keep[0] = True
    sums = np.cumsum(probabilities * keep)
    # Rounding may put the point at the end of all; what is behind the last mass was filtered away or has none.
    last = int(np.searchsorted(sums, sums[-1]))
    return int(ids[min(int(np.searchsorted(sums, point * sums[-1], side="right")), last)])
