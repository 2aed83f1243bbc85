"""Assembly: any order, any thread, twice; nothing unfilled, nothing silent."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coldstream.backends.assembly import Assembly
from coldstream.backends.torch.decoder import Decoder
from coldstream.backends.torch.layers import DenseAttention, DenseSequence
from coldstream.errors import ParameterMismatch, StoreUnavailable
from coldstream.model.config import ModelConfig
from tests.support import tiny
from tools.parity import greedy

PROMPT = [4, 8, 15, 16, 23, 42]


@pytest.fixture(scope="module")
def gemma() -> tiny.Tiny:
    return tiny.gemma3()


@pytest.fixture(scope="module")
def llama() -> tiny.Tiny:
    return tiny.llama()


def shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def decoder(made: tiny.Tiny) -> Decoder:
    return Decoder(ModelConfig.from_json(made.config))


def fill(target: Decoder, tensors: dict[str, Tensor]) -> Assembly:
    assembly = Assembly(target, shapes(tensors))
    for name, tensor in tensors.items():
        assembly.assign(name, tensor)
    assembly.finish()
    return assembly


def logits(target: Decoder) -> Tensor:
    return greedy(target, PROMPT, 1)[1]


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_order_does_not_matter_and_the_later_delivery_wins(gemma: tiny.Tiny, data: st.DataObject) -> None:
    again = data.draw(st.lists(st.sampled_from(sorted(gemma.tensors)), max_size=5))
    order = data.draw(st.permutations(sorted(gemma.tensors)))
    target = decoder(gemma)
    assembly = Assembly(target, shapes(gemma.tensors))
    for name in again:
        assembly.assign(name, torch.full_like(gemma.tensors[name], 7.0))
    for name in order:
        assembly.assign(name, gemma.tensors[name])
    assembly.finish()
    expected = decoder(gemma)
    fill(expected, gemma.tensors)
    assert torch.equal(logits(target), logits(expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_converted_whether_or_not_they_share_a_matrix(llama: tiny.Tiny, dtype: torch.dtype) -> None:
    mixed = {name: tensor.to(dtype) if "k_proj" not in name else tensor for name, tensor in llama.tensors.items()}
    target, expected = decoder(llama), decoder(llama)
    fill(target, mixed)
    fill(expected, {name: tensor.float() for name, tensor in mixed.items()})
    assert torch.allclose(logits(target), logits(expected), atol=1e-5)


def test_a_tensor_of_the_run_s_dtype_is_aliased_not_copied(llama: tiny.Tiny) -> None:
    tensors = {name: tensor.clone() for name, tensor in llama.tensors.items()}
    target = decoder(llama)
    fill(target, tensors)
    before = logits(target)
    tensors["model.layers.0.mlp.down_proj.weight"].zero_()
    assert not torch.equal(logits(target), before)


def test_who_filled_what_can_be_asked(gemma: tiny.Tiny) -> None:
    tensors = {f"language_model.{name}": tensor for name, tensor in gemma.tensors.items()}
    vision = {"vision_tower.post_layernorm.bias": torch.zeros(3)}
    assembly = fill(decoder(gemma), tensors | vision)
    assert assembly.filled_by["layers.0.mlp.up_proj.weight"] == "language_model.model.layers.0.mlp.up_proj.weight"
    assert assembly.filled_by["lm_head.weight"] == "language_model.model.embed_tokens.weight"
    assert assembly.vision == ("vision_tower.post_layernorm.bias",)
    assert "vision" in assembly.ignored["vision_tower.post_layernorm.bias"]


def test_a_head_in_the_file_wins_over_a_config_that_says_tied(gemma: tiny.Tiny) -> None:
    head = torch.randn_like(gemma.tensors["model.embed_tokens.weight"])
    target, tied = decoder(gemma), decoder(gemma)
    assembly = fill(target, gemma.tensors | {"lm_head.weight": head})
    fill(tied, gemma.tensors)
    assert not assembly.tied
    assert not torch.allclose(logits(target), logits(tied), atol=1e-2)


def test_a_head_that_is_absent_from_an_untied_model_is_missing(llama: tiny.Tiny) -> None:
    tensors = {name: tensor for name, tensor in llama.tensors.items() if name != "lm_head.weight"}
    with pytest.raises(ParameterMismatch, match=r"lm_head\.weight is missing.*tie_word_embeddings"):
        Assembly(decoder(llama), shapes(tensors))


def test_missing_unexpected_misshapen_and_doubled_are_all_named_before_a_byte_is_fetched(llama: tiny.Tiny) -> None:
    wrong = dict(llama.tensors)
    del wrong["model.layers.2.mlp.up_proj.weight"]
    wrong["model.layers.9.mlp.up_proj.weight"] = torch.zeros(1)
    wrong["model.norm.weight"] = torch.zeros(5)
    wrong["module.model.embed_tokens.weight"] = wrong["model.embed_tokens.weight"]
    with pytest.raises(ParameterMismatch) as caught:
        Assembly(decoder(llama), shapes(wrong))
    message = str(caught.value)
    assert "layers.2.mlp.up_proj.weight is missing" in message
    assert "model.layers.9.mlp.up_proj.weight is unexpected" in message
    assert "model.norm.weight has shape [5]" in message
    assert "module.model.embed_tokens.weight and model.embed_tokens.weight would both fill" in message


def test_a_tensor_that_is_not_what_the_header_announced_is_refused(llama: tiny.Tiny) -> None:
    assembly = Assembly(decoder(llama), shapes(llama.tensors))
    with pytest.raises(ParameterMismatch, match="shape"):
        assembly.assign("model.norm.weight", torch.zeros(3))
    with pytest.raises(ParameterMismatch, match="dtype"):
        assembly.assign("model.norm.weight", torch.zeros(48, dtype=torch.int8))
    with pytest.raises(ParameterMismatch, match="announced"):
        assembly.assign("model.nothing.weight", torch.zeros(3))


def test_an_unfilled_parameter_ends_the_load_and_every_waiting_forward(llama: tiny.Tiny) -> None:
    target = decoder(llama)
    assembly = Assembly(target, shapes(llama.tensors))
    for name, tensor in llama.tensors.items():
        if name != "model.layers.3.mlp.down_proj.weight":
            assembly.assign(name, tensor)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(logits, target)
        with pytest.raises(ParameterMismatch, match=r"layers\.3\.mlp\.down_proj\.weight"):
            assembly.finish()
        with pytest.raises(ParameterMismatch, match=r"layers\.3\.mlp\.down_proj\.weight"):
            waiting.result()


def test_forward_runs_each_layer_as_soon_as_its_own_tensors_are_there(gemma: tiny.Tiny) -> None:
    target = decoder(gemma)
    assembly = Assembly(target, shapes(gemma.tensors))
    reached = [threading.Event() for _ in target.layers]
    attend = DenseAttention(target.config)
    positions = attend.begin([(DenseSequence(), len(PROMPT))])

    def watched(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        reached[layer].set()
        return attend(layer, q, k, v)

    with ThreadPoolExecutor(1) as pool:
        rows = torch.arange(len(PROMPT))
        running = pool.submit(target.forward, torch.tensor(PROMPT), positions, watched, rows)
        assembly.assign("model.embed_tokens.weight", gemma.tensors["model.embed_tokens.weight"])
        for index in range(len(target.layers)):
            assert not reached[index].is_set()
            for name, tensor in gemma.tensors.items():
                if f"layers.{index}." in name:
                    assembly.assign(name, tensor)
            assert reached[index].wait(30)
        assert not running.done()
        assembly.assign("model.norm.weight", gemma.tensors["model.norm.weight"])
        landed = running.result(30)
    assembly.finish()
    torch.testing.assert_close(landed, logits(target))  # torch's sums differ with a thread's number of threads


def test_a_load_that_fails_reaches_every_forward_with_its_own_error(llama: tiny.Tiny) -> None:
    target = decoder(llama)
    assembly = Assembly(target, shapes(llama.tensors))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(logits, target)
        assembly.fail(StoreUnavailable("the bucket is gone"))
        with pytest.raises(StoreUnavailable, match="gone"):
            waiting.result(30)
    with pytest.raises(StoreUnavailable, match="gone"):
        logits(target)
    with pytest.raises(StoreUnavailable, match="gone"):
        assembly.finish()
