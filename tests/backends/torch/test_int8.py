"""int8: close to float32, exact in its integers, and a row never depends on its batch, its thread or its delivery."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coldstream.backends.assembly import Assembly
from coldstream.backends.cpu.library import Kernels, load
from coldstream.backends.torch.decoder import Decoder
from coldstream.backends.torch.int8 import Int8Linear, Int8Table
from coldstream.backends.torch.layers import DenseAttention, DenseSequence
from coldstream.model.config import ModelConfig
from tests.support import tiny

WIDE = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3, "initializer_range": 0.02}


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return load()


@pytest.fixture(scope="module")
def made() -> tiny.Tiny:
    return tiny.gemma3(**WIDE)


@pytest.fixture(scope="module")
def packed(made: tiny.Tiny) -> Decoder:
    return filled(made)


def filled(made: tiny.Tiny, *, workers: int = 0, again: tuple[str, ...] = ()) -> Decoder:
    decoder = Decoder(ModelConfig.from_json(made.config), precision="int8")
    assembly = Assembly(decoder, {name: tensor.shape for name, tensor in made.tensors.items()}, workers=workers)
    for name in again:
        assembly.assign(name, torch.zeros_like(made.tensors[name]))
    for name, tensor in made.tensors.items():
        assembly.assign(name, tensor)
    for name in again:
        assembly.assign(name, made.tensors[name])
    assembly.finish()
    return decoder


def step(decoder: Decoder, prompts: list[list[int]]) -> Tensor:
    """Logits of every token of a batch of prompts, in one flat step."""
    attend = DenseAttention(decoder.config)
    positions = attend.begin([(DenseSequence(), len(prompt)) for prompt in prompts])
    ids = torch.tensor([token for prompt in prompts for token in prompt])
    return decoder.forward(ids, positions, attend, torch.arange(len(ids))).clone()


@pytest.mark.parametrize("bias", [False, True])
def test_a_product_is_within_rounding_of_the_exact_one_even_with_outliers(kernels: Kernels, bias: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(size, 256, generator=generator).bfloat16() for size in (40, 24)]
    linear = Int8Linear(256, (40, 24), bias=bias, kernels=kernels)
    offset = torch.zeros(64)
    for part, weight in enumerate(weights):
        linear.fill(part, weight)
    if bias:
        offset = torch.randn(64, generator=generator)
        linear.fill_bias(0, offset[:40])
        linear.fill_bias(1, offset[40:])
    x = torch.randn(5, 256, generator=generator)
    x[:, 7] *= 60  # what makes plain per-token int8 useless
    exact = x @ torch.cat(weights).float().T + offset
    got = linear.joined(x)
    assert float((got - exact).norm() / (exact - offset).norm()) < 0.015
    assert torch.equal(torch.cat(linear.split(x), -1), got)


def test_a_row_of_zeros_gives_zeros(kernels: Kernels) -> None:
    linear = Int8Linear(64, (8,), bias=False, kernels=kernels)
    linear.fill(0, torch.randn(8, 64))
    assert torch.equal(linear.joined(torch.zeros(2, 64)), torch.zeros(2, 8))


def test_a_part_that_comes_again_after_packing_replaces_only_itself(kernels: Kernels) -> None:
    old, new, other = torch.randn(3, 16, 128).unbind()
    linear, expected = (
        Int8Linear(128, (16, 16), bias=False, kernels=kernels),
        Int8Linear(128, (16, 16), bias=False, kernels=kernels),
    )
    for part, weight in ((0, old), (1, other), (0, new)):
        linear.fill(part, weight)
    for part, weight in ((1, other), (0, new)):
        expected.fill(part, weight)
    x = torch.randn(3, 128)
    assert torch.equal(linear.joined(x), expected.joined(x))


def test_a_table_gives_back_its_rows_and_multiplies_with_them_across_blocks(kernels: Kernels) -> None:
    rows = 17_000  # more than one piece
    weight = torch.randn(rows, 64, generator=torch.Generator().manual_seed(2)).bfloat16()
    table = Int8Table(64, rows, kernels=kernels)
    table.use(looked_up=True, multiplied=True)
    table.parameter("embed_tokens.weight", "embedding").fill(weight)
    ids = torch.tensor([0, 5, 8_191, 8_192, 16_999])
    exact = weight[ids].float()
    assert float((table.lookup(ids) - exact).norm() / exact.norm()) < 0.01
    x = torch.randn(2, 64)
    product = x @ weight.float().T
    assert float((table.logits(x) - product).norm() / product.norm()) < 0.015


@pytest.mark.parametrize("make", [tiny.gemma3, tiny.llama, tiny.qwen2], ids=["gemma3", "llama untied", "qwen2 biases"])
def test_a_whole_model_stays_near_float32(make: object) -> None:
    made = make(**WIDE)  # type: ignore[operator]
    exact = Decoder(ModelConfig.from_json(made.config))
    assembly = Assembly(exact, {name: tensor.shape for name, tensor in made.tensors.items()})
    for name, tensor in made.tensors.items():
        assembly.assign(name, tensor)
    assembly.finish()
    prompt = [list(range(3, 40))]
    reference, got = step(exact, prompt).log_softmax(-1), step(filled(made), prompt).log_softmax(-1)
    divergence = (reference.exp() * (reference - got)).sum(-1).mean()
    assert 0 < float(divergence) < 0.02


@settings(max_examples=15, deadline=None)
@given(prompts=st.lists(st.lists(st.integers(0, 130), min_size=1, max_size=12), min_size=1, max_size=9))
def test_a_rows_result_is_bit_for_bit_the_same_in_any_batch(packed: Decoder, prompts: list[list[int]]) -> None:
    together = step(packed, prompts)
    alone = torch.cat([step(packed, [prompt]) for prompt in prompts])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("workers", [1, 3])
def test_packing_beside_the_loader_gives_the_same_model_also_when_tensors_come_twice(
    made: tiny.Tiny, workers: int
) -> None:
    again = ("model.layers.1.self_attn.k_proj.weight", "model.embed_tokens.weight", "model.norm.weight")
    prompt = [[1, 2, 3, 4, 5]]
    assert torch.equal(step(filled(made, workers=workers, again=again), prompt), step(filled(made), prompt))


def test_a_failure_while_packing_ends_the_load_with_that_error(made: tiny.Tiny) -> None:
    decoder = Decoder(ModelConfig.from_json(made.config), precision="int8")
    assembly = Assembly(decoder, {name: tensor.shape for name, tensor in made.tensors.items()}, workers=2)
    name = "model.layers.0.mlp.up_proj.weight"
    assembly.assign(name, torch.empty(made.tensors[name].shape, device="meta"))
    with pytest.raises(NotImplementedError):
        assembly.finish()
    with pytest.raises(NotImplementedError):
        step(decoder, [[1]])


def test_logits_take_the_place_of_those_before_and_more_rows_than_that_holds_are_right_too(kernels: Kernels) -> None:
    rows = torch.randn(96, 64, generator=torch.Generator().manual_seed(4))
    table = Int8Table(64, 1024, kernels=kernels)
    table.use(looked_up=False, multiplied=True)
    table.parameter("lm_head.weight", "head").fill(torch.randn(1024, 64))
    many = table.logits(rows)
    first = table.logits(rows[:8])
    assert torch.equal(first, many[:8])
    second = table.logits(rows[8:24])
    assert torch.equal(second, many[8:24])
    assert second.data_ptr() == first.data_ptr()
