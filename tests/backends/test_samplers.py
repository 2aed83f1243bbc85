"""A row is drawn by its own parameters: filters as written out, seeds that repeat, penalties as their papers say."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstream.backends.cpu.library import load
from coldstream.backends.cpu.sampler import Sampler
from coldstream.backends.draws import uniform
from coldstream.backends.protocol import Logprob, Sampled, SamplingRow
from coldstream.backends.torch import sampler
from coldstream.backends.torch.transfer import Readback
from coldstream.engine.request import SamplingParams
from coldstream.errors import EngineError


def row(seed: int = 0, prompt: tuple[int, ...] = (), drawn: tuple[int, ...] = (), **params: Any) -> SamplingRow:
    made = SamplingRow(SamplingParams(**params), seed, prompt)
    for token in drawn:
        made.drawn(token)
    return made


class Both:
    """Every backend's sampler in turn: `current` is the one that is tested."""

    current = ""


@pytest.fixture(autouse=True, scope="module", params=["torch", "cpu"])
def _sampler(request: pytest.FixtureRequest) -> None:
    Both.current = request.param


def sample(logits: torch.Tensor, rows: list[SamplingRow]) -> list[Sampled | EngineError]:
    return by_cpu(logits, rows) if Both.current == "cpu" else by_torch(logits, rows)


def by_cpu(logits: torch.Tensor, rows: list[SamplingRow]) -> list[Sampled | EngineError]:
    return Sampler(load()).sample(list(logits.contiguous().numpy()), rows)


def by_torch(logits: torch.Tensor, rows: list[SamplingRow]) -> list[Sampled | EngineError]:
    readback = Readback()
    drawn = sampler.sample(logits, rows, readback)
    readback.wait()
    return drawn()


def token_logprobs(logits: torch.Tensor, token_ids: list[int], top: int) -> list[Logprob]:
    if Both.current == "cpu":
        return Sampler(load()).token_logprobs(logits.numpy(), token_ids, top)
    readback = Readback()
    scored = sampler.token_logprobs(logits, token_ids, top, readback)
    readback.wait()
    return scored()


def one(logits: list[float], made: SamplingRow) -> int:
    (outcome,) = sample(torch.tensor([logits]), [made])
    assert isinstance(outcome, Sampled)
    return outcome.token_id


def written_out(logits: list[float], params: SamplingParams) -> dict[int, float]:
    """Temperature, top_k, top_p, min_p in this order, with plain loops; the probabilities that are left."""
    best = sorted(range(len(logits)), key=lambda token: -logits[token])
    if params.top_k:
        best = best[: params.top_k]
    weights = {token: math.exp((logits[token] - max(logits)) / params.temperature) for token in best}
    total = sum(weights.values())
    kept, mass = {}, 0.0
    for token in best:
        probability = weights[token] / total
        if kept and (mass >= params.top_p or probability < params.min_p * weights[best[0]] / total):
            continue
        kept[token] = probability
        mass += probability
    total = sum(kept.values())
    return {token: probability / total for token, probability in kept.items()}


@settings(deadline=None, max_examples=20)
@given(
    order=st.permutations(list(range(8))),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 3, 8, 50]),
    top_p=st.sampled_from([0.2, 0.77, 1.0]),
    min_p=st.sampled_from([0.0, 0.3]),
)
def test_filters_leave_what_they_leave_when_written_out(
    order: list[int], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = [number * 0.37 for number in order]
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    expected = written_out(logits, params)
    rows = [SamplingRow(params, seed, ()) for seed in range(300)]
    outcomes = sample(torch.tensor([logits] * len(rows)), rows)
    drawn = Counter(outcome.token_id for outcome in outcomes if isinstance(outcome, Sampled))
    assert drawn.keys() <= expected.keys()
    for token, probability in expected.items():
        assert drawn[token] / 300 == pytest.approx(probability, abs=0.15)


def test_a_large_vocabulary_is_filtered_as_a_small_one() -> None:
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(0)).tolist()
    for params in (SamplingParams(temperature=1.0, top_p=0.9), SamplingParams(temperature=3.0, min_p=0.001)):
        expected = written_out(logits, params)
        rows = [SamplingRow(params, seed, ()) for seed in range(200)]
        outcomes = sample(torch.tensor([logits] * 200), rows)
        assert {outcome.token_id for outcome in outcomes if isinstance(outcome, Sampled)} <= expected.keys()
        assert len(expected) > 1024, "the case that needs more than the first candidates"


@pytest.mark.parametrize("vocab", [64 * 600, 64 * 600 + 1])
def test_segments_find_the_same_best_tokens_as_a_whole_row(vocab: int) -> None:
    logits = torch.randn(3, vocab, generator=torch.Generator().manual_seed(1))
    assert [one(line.tolist(), row()) for line in logits] == logits.argmax(-1).tolist()
    allowed = set(logits[0].topk(50).indices.tolist())
    rows = [row(seed, temperature=9.0, top_k=50) for seed in range(300)]
    drawn = {item.token_id for item in sample(logits[:1].expand(300, -1), rows) if isinstance(item, Sampled)}
    assert drawn <= allowed
    assert len(drawn) > 40


def test_the_same_seed_draws_the_same_in_any_company() -> None:
    logits = torch.randn(3, 500)
    mine = lambda: row(7, drawn=(1, 2), temperature=1.0)  # noqa: E731
    alone = sample(logits[1:2], [mine()])[0]
    together = sample(logits, [row(1, temperature=0.5), mine(), row(temperature=0.0)])[1]
    assert alone == together
    others = [sample(logits[1:2], [row(seed, drawn=(1, 2), temperature=1.0)])[0] for seed in range(8, 13)]
    assert any(other != alone for other in others)


@settings(deadline=None)
@given(st.integers(-(1 << 63), (1 << 64) - 1), st.integers(0, 1 << 40))
def test_a_draw_lies_between_zero_and_one_and_repeats(seed: int, position: int) -> None:
    assert 0.0 <= uniform(seed, position) < 1.0
    assert uniform(seed, position) == uniform(seed, position)
    assert uniform(seed, position) != uniform(seed, position + 1)


def test_greedy_is_the_best_token_and_temperature_zero_is_greedy() -> None:
    assert one([0.0, 3.0, 1.0], row()) == 1
    assert one([0.0, 3.0, 1.0], row(temperature=0.0, top_k=2, logprobs=1)) == 1


def test_repetition_penalty_weighs_on_prompt_and_output() -> None:
    assert one([2.0, 1.9, -1.0], row(prompt=(0,), repetition_penalty=1.5)) == 1
    assert one([2.0, 1.9, -1.0], row(prompt=(0,), drawn=(1,), repetition_penalty=1.2)) == 0
    assert one([-1.0, -1.2], row(prompt=(0,), repetition_penalty=2.0)) == 1


def test_presence_and_frequency_weigh_on_the_output_only() -> None:
    assert one([2.0, 1.5], row(prompt=(0, 0, 0), presence_penalty=1.0, frequency_penalty=1.0)) == 0
    assert one([2.0, 1.5], row(drawn=(0,), presence_penalty=1.0)) == 1
    assert one([3.0, 1.5], row(drawn=(0,), frequency_penalty=1.0)) == 0
    assert one([3.0, 1.5], row(drawn=(0, 0), frequency_penalty=1.0)) == 1


def test_logit_bias_moves_a_token_and_logprobs_stay_the_models_own() -> None:
    made = row(logit_bias=((2, 10.0),), logprobs=2)
    (outcome,) = sample(torch.tensor([[1.0, 2.0, 0.0]]), [made])
    assert isinstance(outcome, Sampled)
    assert outcome.logprob is not None
    expected = torch.tensor([1.0, 2.0, 0.0]).log_softmax(0)
    assert outcome.token_id == 2
    assert outcome.logprob.logprob == pytest.approx(float(expected[2]))
    assert [token for token, _ in outcome.logprob.top] == [1, 0]


def test_a_mask_is_never_left() -> None:
    made = row(temperature=5.0)
    for seed in range(50):
        made.seed = seed
        made.allowed = bytes([0b1010])
        assert one([9.0, 0.0, 9.0, 0.0], made) in (1, 3)


def test_a_token_behind_the_masks_end_may_not_come_and_bits_behind_the_vocabularys_say_nothing() -> None:
    made = row()
    made.allowed = bytes([0b11])
    assert one([0.0, 1.0, *[9.0] * 20], made) == 1
    made.allowed = bytes([0b11111101, 0xFF])
    assert one([1.0, 9.0, 0.0], made) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_logits_are_an_error_of_their_row_only(value: float) -> None:
    broken, fine = sample(torch.tensor([[0.0, value], [0.0, 1.0]]), [row(temperature=1.0), row()])
    assert isinstance(broken, EngineError)
    assert fine == Sampled(1)


def test_a_mask_that_allows_nothing_is_an_error() -> None:
    made = row()
    made.allowed = bytes(1)
    (outcome,) = sample(torch.tensor([[0.0, 1.0]]), [made])
    assert isinstance(outcome, EngineError)


def test_logprobs_of_given_tokens() -> None:
    logits = torch.randn(4, 9)
    scores = logits.log_softmax(-1)
    for place, item in enumerate(token_logprobs(logits, [3, 1, 4, 1], 9)):
        assert item.logprob == pytest.approx(float(scores[place, item.token_id]), abs=1e-5)
        assert [token for token, _ in item.top] == scores[place].argsort(descending=True).tolist()
    assert token_logprobs(logits[:0], [], 3) == []


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_every_backend_draws_the_same_token_by_the_same_seed(data: st.DataObject) -> None:
    """But where logits are equal: then torch's order is not said."""
    vocab = data.draw(st.sampled_from([77, 4_096, 32_768]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    logits = torch.randn(vocab, generator=generator) * data.draw(st.sampled_from([1.0, 4.0]))
    logits += torch.linspace(0, 1e-3, vocab)
    params: dict[str, Any] = {
        "temperature": data.draw(st.sampled_from([0.0, 0.5, 1.0, 1.7])),
        "top_k": data.draw(st.sampled_from([0, 1, 20, 3_000])),
        "top_p": data.draw(st.sampled_from([0.1, 0.9, 1.0])),
        "min_p": data.draw(st.sampled_from([0.0, 0.2])),
        "repetition_penalty": data.draw(st.sampled_from([0.9, 1.0, 1.3])),
        "presence_penalty": data.draw(st.sampled_from([0.0, 1.0])),
        "frequency_penalty": data.draw(st.sampled_from([0.0, -0.5])),
        "logit_bias": data.draw(st.sampled_from([(), ((5, 3.0), (7, -100.0))])),
        "logprobs": data.draw(st.sampled_from([None, 0, 4])),
    }
    allowed = data.draw(st.sampled_from([None, bytes(range(1, 256)) * 40]))
    drawn = []
    for by in (by_torch, by_cpu):
        made = row(11, prompt=(3, 4, 100_000), drawn=(6, 6, 9), **params)
        made.allowed = allowed
        (outcome,) = by(logits[None], [made])
        assert isinstance(outcome, Sampled)
        drawn.append(outcome)
    first, second = drawn
    assert second.token_id == first.token_id
    if first.logprob is not None:
        assert second.logprob is not None
        assert second.logprob.logprob == pytest.approx(first.logprob.logprob, abs=1e-5)
        assert [token for token, _ in second.logprob.top] == [token for token, _ in first.logprob.top]


def test_a_mass_that_rounding_leaves_behind_never_draws_what_is_masked() -> None:
    """The last token is masked, and the point lies at the very end."""
    kernels = load().of_rows
    for vocab in (9, 4_097, 262_144):
        logits = torch.full((vocab,), -20.0)
        logits[3], logits[vocab - 1] = 0.0, float("-inf")
        assert kernels.pick(logits.numpy(), 1.0, 0.0, 1 - 2**-53) < vocab - 1
        logits[4:] = float("-inf")
        assert kernels.pick(logits.numpy(), 1.0, 0.0, 1 - 2**-53) == 3
