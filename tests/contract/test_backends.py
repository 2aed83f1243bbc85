"""What every backend owes the engine, on those that there are and on one that answers late."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from coldstream.backends.cpu.decoder import CpuPrecision
from coldstream.backends.protocol import (
    Abandoned,
    Backend,
    Copy,
    Group,
    Outcome,
    Sampled,
    SamplingRow,
    Scoring,
    StepBatch,
    TokenRun,
)
from coldstream.backends.torch.backend import TorchBackend
from coldstream.backends.torch.decoder import DecoderPrecision
from coldstream.engine.kvcache.pool import Table
from coldstream.engine.request import SamplingParams
from tests.support.late_backend import LateBackend
from tests.support.parts import GEMMA, LLAMA, VOCAB, make_cpu_backend, make_cpu_decoder, make_decoder

SIZE = 32
PROMPT = [5 + (7 * place) % 250 for place in range(70)]
OTHER = [9 + (11 * place) % 240 for place in range(45)]


INT8 = {**GEMMA, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


def through_torch(config: Mapping[str, Any], precision: DecoderPrecision = "float32") -> Backend:
    decoder = make_decoder(config, precision=precision)
    return TorchBackend(decoder, decoder.config, threads=1)


def on_the_cpu(config: Mapping[str, Any], precision: CpuPrecision = "float32") -> Backend:
    return make_cpu_backend(make_cpu_decoder(config, precision=precision))


MAKERS: Mapping[str, Callable[[], Backend]] = {
    "late": lambda: LateBackend(len(VOCAB)),
    "torch": lambda: through_torch(LLAMA),
    "torch, sliding windows": lambda: through_torch(GEMMA),
    "torch, own attention": lambda: through_torch({**GEMMA, "head_dim": 16}),
    "cpu": lambda: on_the_cpu(LLAMA),
    "cpu, sliding windows": lambda: on_the_cpu(GEMMA),
    "cpu, int8": lambda: on_the_cpu(INT8, "int8"),
    "cpu, int8, odd heads": lambda: on_the_cpu({**INT8, "head_dim": 20}, "int8"),
}


@pytest.fixture(scope="module", params=list(MAKERS.values()), ids=list(MAKERS))
def backend(request: pytest.FixtureRequest) -> Backend:
    made: Backend = request.param()
    made.allocate([Group(window, 24) for window in made.windows], SIZE)
    return made


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> bool:
    """Whether sums depend on how many rows are computed together; those of whole numbers do not."""
    return request.node.callspec.id not in ("late", "cpu, int8", "cpu, int8, odd heads")


def tables(backend: Backend, *blocks: int) -> list[Table]:
    table = Table(1, 0, list(blocks))
    table.changed()
    return [table for _ in backend.windows]


def step(
    backend: Backend,
    *runs: TokenRun,
    copies: Sequence[Copy] = (),
    rows: Sequence[SamplingRow | None] | None = None,
    is_wanted: Callable[[], bool] = lambda: True,
) -> Sequence[Outcome]:
    with backend.thread():
        backend.launch(StepBatch(runs, copies), is_wanted)
        return backend.collect([greedy() if run.draws else None for run in runs] if rows is None else rows)


def greedy(**params: Any) -> SamplingRow:
    return SamplingRow(SamplingParams(**params), 0, ())


def token(outcome: Outcome) -> int:
    assert isinstance(outcome.sampled, Sampled)
    return outcome.sampled.token_id


def scored(ids: Sequence[int], start: int, end: int, where: Sequence[Table]) -> TokenRun:
    return TokenRun(ids[start:end], start, where, draws=end == len(ids), scoring=Scoring(ids[start + 1 : end + 1], 2))


@pytest.fixture(scope="module")
def alone(backend: Backend) -> Outcome:
    """The prompt in one piece, by itself."""
    (outcome,) = step(backend, scored(PROMPT, 0, 70, tables(backend, 0, 1, 2)))
    return outcome


def test_a_prompt_is_scored_token_by_token_and_the_next_one_drawn(backend: Backend, alone: Outcome) -> None:
    assert [item.token_id for item in alone.scored] == PROMPT[1:]
    for item in alone.scored:
        assert len(item.top) == 2
        assert item.logprob <= item.top[0][1] + 1e-6
    assert 0 <= token(alone) < len(VOCAB)


def test_a_prompt_in_pieces_beside_others_gives_what_it_gives_alone(
    backend: Backend, alone: Outcome, rounds: bool
) -> None:
    mine, other = tables(backend, 4, 5, 6), tables(backend, 9, 10)
    pieces = []
    for start, end in ((0, 32), (32, 64), (64, 70)):
        beside = TokenRun(OTHER[: end - start], 0, other)
        outcomes = step(backend, beside, scored(PROMPT, start, end, mine))
        assert outcomes[0] == Outcome()
        pieces.append(outcomes[1])
    together = [item for piece in pieces for item in piece.scored]
    assert [item.logprob for item in together] == pytest.approx(
        [item.logprob for item in alone.scored], abs=1e-4 if rounds else 0.0, rel=0.0
    )
    assert token(pieces[-1]) == token(alone)
    assert pieces[0].sampled is None


def test_blocks_may_lie_anywhere(backend: Backend, alone: Outcome) -> None:
    (outcome,) = step(backend, scored(PROMPT, 0, 70, tables(backend, 14, 3, 8)))
    assert token(outcome) == token(alone)


def test_a_copied_block_holds_what_its_source_held(backend: Backend, alone: Outcome) -> None:
    step(backend, TokenRun(PROMPT[:64], 0, tables(backend, 4, 5)))
    copies = [Copy(group, *pair) for group in range(len(backend.windows)) for pair in ((4, 5), (5, 4))]
    (outcome,) = step(backend, TokenRun(PROMPT[64:], 64, tables(backend, 5, 4, 6), draws=True), copies=copies)
    assert token(outcome) == token(alone), "each was read before the other was written"


def test_no_token_is_drawn_without_a_row(backend: Backend) -> None:
    runs = [TokenRun(OTHER, 0, tables(backend, *where), draws=True) for where in ((9, 10), (12, 13))]
    first, second = step(backend, *runs, rows=[None, greedy()])
    assert first.sampled is None
    assert isinstance(second.sampled, Sampled)
    assert step(backend, *runs, rows=[None, None]) == [Outcome(), Outcome()]


def test_a_row_is_drawn_by_its_own_parameters(backend: Backend) -> None:
    run = TokenRun(OTHER, 0, tables(backend, 9, 10), draws=True)
    masked = greedy()
    masked.allowed = bytes([0, 0b100])
    biased, wanted = greedy(logit_bias=((77, 100.0),)), greedy(logprobs=1)
    runs = [TokenRun(OTHER, 0, tables(backend, *where), draws=True) for where in ((9, 10), (12, 13), (15, 16))]
    outcomes = step(backend, *runs, rows=[masked, biased, wanted])
    (plain,) = step(backend, run)
    assert [token(outcome) for outcome in outcomes] == [10, 77, token(plain)]
    assert outcomes[2].sampled.logprob.top[0][0] == token(plain)  # type: ignore[union-attr]


def test_a_seed_draws_the_same_again(backend: Backend) -> None:
    run = TokenRun(OTHER, 0, tables(backend, 9, 10), draws=True)
    drawn = []
    for seed in (1, 1, 2, 3, 4, 5, 6):
        (outcome,) = step(backend, run, rows=[SamplingRow(SamplingParams(temperature=50.0), seed, ())])
        drawn.append(token(outcome))
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


def test_what_a_batch_names_may_change_once_it_is_launched(backend: Backend, alone: Outcome) -> None:
    where = tables(backend, 0, 1, 2)
    with backend.thread():
        backend.launch(StepBatch([TokenRun(PROMPT, 0, where, draws=True)]), lambda: True)
        for table in where:
            table.blocks.clear()
        (outcome,) = backend.collect([greedy()])
    assert token(outcome) == token(alone)


def test_a_step_that_is_not_wanted_is_given_up_and_the_next_one_computed(backend: Backend, alone: Outcome) -> None:
    run = TokenRun(PROMPT, 0, tables(backend, 0, 1, 2), draws=True)
    with pytest.raises(Abandoned):
        step(backend, run, is_wanted=lambda: False)
    (outcome,) = step(backend, run)
    assert token(outcome) == token(alone)


def test_what_blocks_take_is_said_for_each_window(backend: Backend) -> None:
    assert len(backend.block_bytes(SIZE)) == len(backend.windows)
    assert all(size > 0 for size in backend.block_bytes(SIZE))
    assert backend.cache_bytes(step_tokens=512, rows=16) > 0
