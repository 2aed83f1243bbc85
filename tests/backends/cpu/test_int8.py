"""int8: close to float32, exact in its integers, and a row never depends on its batch, its thread or its delivery."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstream.backends.assembly import Assembly
from coldstream.backends.cpu.decoder import CpuDecoder
from coldstream.backends.cpu.library import Kernels, load
from coldstream.backends.cpu.linear import PackedMatrices, PackedTable
from coldstream.model.config import ModelConfig
from tests.support import tiny
from tests.support.cpu_models import as_stored, filled_cpu_decoder, one_step

WIDE = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3, "initializer_range": 0.02}


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return load()


@pytest.fixture(scope="module")
def made() -> tiny.Tiny:
    return tiny.gemma3(**WIDE)


@pytest.fixture(scope="module")
def packed(made: tiny.Tiny) -> CpuDecoder:
    return filled(made)


def filled(made: tiny.Tiny, *, workers: int = 0, again: tuple[str, ...] = ()) -> CpuDecoder:
    decoder = CpuDecoder(ModelConfig.from_json(made.config), precision="int8")
    assembly = Assembly(decoder, {name: tensor.shape for name, tensor in made.tensors.items()}, workers=workers)
    for name in again:
        assembly.assign(name, as_stored(torch.zeros_like(made.tensors[name])))
    for name, tensor in made.tensors.items():
        assembly.assign(name, as_stored(tensor))
    for name in again:
        assembly.assign(name, as_stored(made.tensors[name]))
    assembly.finish()
    return decoder


@pytest.mark.parametrize("bias", [False, True])
def test_a_product_is_within_rounding_of_the_exact_one_even_with_outliers(kernels: Kernels, bias: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(size, 256, generator=generator).bfloat16() for size in (40, 24)]
    linear = PackedMatrices(256, (40, 24), bias=bias, kernels=kernels)
    offset = torch.zeros(64)
    for part, weight in enumerate(weights):
        linear.fill(part, as_stored(weight))
    if bias:
        offset = torch.randn(64, generator=generator)
        linear.fill_bias(0, offset[:40].numpy())
        linear.fill_bias(1, offset[40:].numpy())
    x = torch.randn(5, 256, generator=generator)
    x[:, 7] *= 60  # what makes plain per-token int8 useless
    exact = x @ torch.cat(weights).float().T + offset
    got = torch.from_numpy(linear.product(x.numpy()))
    assert float((got - exact).norm() / (exact - offset).norm()) < 0.015


def test_a_row_of_zeros_gives_zeros(kernels: Kernels) -> None:
    linear = PackedMatrices(64, (8,), bias=False, kernels=kernels)
    linear.fill(0, torch.randn(8, 64).numpy())
    assert not linear.product(np.zeros((2, 64), np.float32)).any()


def test_a_part_that_comes_again_after_packing_replaces_only_itself(kernels: Kernels) -> None:
    old, new, other = torch.randn(3, 16, 128).numpy()
    linear, expected = (
        PackedMatrices(128, (16, 16), bias=False, kernels=kernels),
        PackedMatrices(128, (16, 16), bias=False, kernels=kernels),
    )
    for part, weight in ((0, old), (1, other), (0, new)):
        linear.fill(part, weight)
    for part, weight in ((1, other), (0, new)):
        expected.fill(part, weight)
    x = torch.randn(3, 128).numpy()
    assert np.array_equal(linear.product(x), expected.product(x))


def test_a_table_gives_back_its_rows_and_multiplies_with_them_across_blocks(kernels: Kernels) -> None:
    rows = 17_000  # more than one piece
    weight = torch.randn(rows, 64, generator=torch.Generator().manual_seed(2)).bfloat16()
    table = PackedTable(64, rows, kernels=kernels)
    table.use(looked_up=True, multiplied=True)
    table.parameter("embed_tokens.weight", "embedding").fill(as_stored(weight))
    ids = torch.tensor([0, 5, 8_191, 8_192, 16_999])
    exact = weight[ids].float()
    assert float((torch.from_numpy(table.lookup(ids.numpy())) - exact).norm() / exact.norm()) < 0.01
    x = torch.randn(2, 64)
    product = x @ weight.float().T
    assert float((torch.from_numpy(table.logits(x.numpy())) - product).norm() / product.norm()) < 0.015


@pytest.mark.parametrize("make", [tiny.gemma3, tiny.llama, tiny.qwen2], ids=["gemma3", "llama untied", "qwen2 biases"])
def test_a_whole_model_stays_near_float32(make: object) -> None:
    made = make(**WIDE)  # type: ignore[operator]
    exact = filled_cpu_decoder(made.config, made.tensors)
    prompt = [list(range(3, 40))]
    reference, got = one_step(exact, prompt).log_softmax(-1), one_step(filled(made), prompt).log_softmax(-1)
    divergence = (reference.exp() * (reference - got)).sum(-1).mean()
    assert 0 < float(divergence) < 0.02


@settings(max_examples=15, deadline=None)
@given(prompts=st.lists(st.lists(st.integers(0, 130), min_size=1, max_size=12), min_size=1, max_size=9))
def test_a_rows_result_is_bit_for_bit_the_same_in_any_batch(packed: CpuDecoder, prompts: list[list[int]]) -> None:
    together = one_step(packed, prompts)
    alone = torch.cat([one_step(packed, [prompt]) for prompt in prompts])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("workers", [1, 3])
def test_packing_beside_the_loader_gives_the_same_model_also_when_tensors_come_twice(
    made: tiny.Tiny, workers: int
) -> None:
    again = ("model.layers.1.self_attn.k_proj.weight", "model.embed_tokens.weight", "model.norm.weight")
    prompt = [[1, 2, 3, 4, 5]]
    assert torch.equal(one_step(filled(made, workers=workers, again=again), prompt), one_step(filled(made), prompt))


class Unreadable:
    """A tensor whose bytes cannot be had any more."""

    dtype = np.dtype(np.float32)

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        raise ZeroDivisionError


def test_a_failure_while_packing_ends_the_load_with_that_error(made: tiny.Tiny) -> None:
    decoder = CpuDecoder(ModelConfig.from_json(made.config), precision="int8")
    assembly = Assembly(decoder, {name: tensor.shape for name, tensor in made.tensors.items()}, workers=2)
    name = "model.layers.0.mlp.up_proj.weight"
    assembly.assign(name, Unreadable(made.tensors[name].shape))
    with pytest.raises(ZeroDivisionError):
        assembly.finish()
    with pytest.raises(ZeroDivisionError):
        one_step(decoder, [[1]])


def test_logits_take_the_place_of_those_before_and_more_rows_than_that_holds_are_right_too(kernels: Kernels) -> None:
    rows = torch.randn(96, 64, generator=torch.Generator().manual_seed(4)).numpy()
    table = PackedTable(64, 1024, kernels=kernels)
    table.use(looked_up=False, multiplied=True)
    table.parameter("lm_head.weight", "head").fill(torch.randn(1024, 64).numpy())
    many = table.logits(rows)
    first = table.logits(rows[:8])
    assert np.array_equal(first, many[:8])
    second = table.logits(rows[8:24])
    assert np.array_equal(second, many[8:24])
    assert np.shares_memory(second[:8], first)
