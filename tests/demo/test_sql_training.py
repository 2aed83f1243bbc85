"""The SQL model's training: its plain torch is Gemma 3, and questions that share a schema do not see each other."""

from __future__ import annotations

import random

import pytest

torch = pytest.importorskip("torch")

from sql_batches import flat, shared  # noqa: E402  where torch is
from sql_model import Model, Shape, orthogonal, spell, wire  # noqa: E402

SHAPE = Shape(60, hidden=64, inner=96, layers=4, heads=4, kv_heads=2, head=16)
ROWS = [
    ([1, 2, 3, 4], [([5, 6], [7, 8, 9]), ([10], [11, 12])]),
    ([13, 14], [([15, 16, 17], [18])]),
]


def model() -> Model:
    torch.manual_seed(0)
    made = Model(SHAPE)
    spell(made, [f"▁w{number}" for number in range(60)], {"w1": ["one"]})
    return made


@torch.no_grad()
def test_a_question_in_a_batch_is_computed_as_if_it_were_alone() -> None:
    made, batch = model(), flat(ROWS)
    together = made(batch.ids, batch.positions, batch.places)[batch.speaking]
    apart = []
    for schema, asked in ROWS:
        for question, answer in asked:
            alone = flat([(schema, [(question, answer)])])
            apart.append(made(alone.ids, alone.positions, alone.places)[alone.speaking])
    torch.testing.assert_close(together, torch.cat(apart))
    assert batch.labels.tolist() == [7, 8, 9, 11, 12, 18]


@torch.no_grad()
def test_a_name_once_begun_goes_on_as_it_did_before_any_training() -> None:
    """In the wired start, the second layer's first head looks at what followed the same token earlier."""
    shape = Shape(60)  # narrower heads hold too little
    torch.manual_seed(0)
    made = Model(shape)
    chance = random.Random(0)
    spell(made, ["▁" + "".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(60)], {})
    wire(made)
    ids = [20, 21, 22, 23, 24, 25, 26, 27, 21]
    batch = flat([(ids, [([30], [31])])])
    seen: list[torch.Tensor] = []
    made.layers[1].self_attn.q_proj.register_forward_hook(lambda _, args, out: seen.extend((args[0], out)))
    made(batch.ids, batch.positions, batch.places)
    attention, (states, q) = made.layers[1].self_attn, seen
    k = attention.k_proj(states).view(-1, shape.kv_heads, shape.head)[: len(ids), 0]
    score = (attention.k_norm(k) @ attention.q_norm(q.view(-1, shape.heads, shape.head))[len(ids) - 1, 0]).tolist()
    assert score.index(max(score)) == 2  # 22 stands behind the first 21


@pytest.mark.more
@torch.no_grad()
def test_it_is_gemma_3() -> None:
    hf = pytest.importorskip("transformers")
    from sql_train import gemma_config

    made, s = model(), SHAPE
    theirs = hf.Gemma3TextModel(gemma_config(s)).float().eval()
    theirs.load_state_dict(made.state_dict())
    ids = torch.arange(1, 13)
    batch = flat([(ids[:8].tolist(), [(ids[8:10].tolist(), ids[10:].tolist())])])
    ours = made(batch.ids, batch.positions, batch.places)
    torch.testing.assert_close(ours, theirs(ids[None]).last_hidden_state[0], atol=1e-4, rtol=1e-4)


def test_an_update_is_nearly_orthogonal() -> None:
    torch.manual_seed(0)
    singular = torch.linalg.svdvals(orthogonal(torch.randn(24, 40)))
    assert 0.4 < singular.min() <= singular.max() < 1.4


def test_what_lists_share_is_their_beginning() -> None:
    assert shared([[1, 2, 3], [1, 2, 4], [1, 2]]) == 2
    assert shared([[1], [2]]) == 0
