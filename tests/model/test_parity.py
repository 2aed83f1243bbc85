"""The native decoder agrees with transformers on every architecture, spelling and key layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from coldstream.backends.assembly import Assembly
from coldstream.backends.cpu.decoder import CpuDecoder
from coldstream.backends.torch.decoder import Decoder
from coldstream.model.config import ModelConfig
from tests.support import tiny
from tests.support.cpu_models import cpu_greedy, filled_cpu_decoder
from tools.parity import greedy

STEPS = 64
PROMPT = [5, 9, 2, 77, 31, 8, 8, 120, 64, 3, 17]

MODELS: dict[str, Callable[[], tiny.Tiny]] = {
    "gemma3": tiny.gemma3,
    "gemma3 with a linear rope factor": lambda: tiny.gemma3(
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 50_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 3_000.0},
        }
    ),
    "gemma3 with biases": lambda: tiny.gemma3(attention_bias=True),
    "gemma3 with a logit softcap": lambda: tiny.gemma3(final_logit_softcapping=3.0),
    "gemma3 untied": lambda: tiny.gemma3(tie_word_embeddings=False),
    "llama": tiny.llama,
    "smollm2 (llama, tied)": lambda: tiny.llama(tie_word_embeddings=True),
    "llama with biases": lambda: tiny.llama(attention_bias=True, mlp_bias=True),
    "llama without head_dim, one group": lambda: tiny.llama(head_dim=None, num_key_value_heads=4),
    "llama linear": lambda: tiny.llama(**tiny.rope("linear", factor=4.0)),
    "llama llama3": lambda: tiny.llama(
        **tiny.rope(
            "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
        )
    ),
    "llama yarn": lambda: tiny.llama(**tiny.rope("yarn", factor=8.0, original_max_position_embeddings=64)),
    "llama yarn, every option": lambda: tiny.llama(
        **tiny.rope(
            "yarn",
            factor=8.0,
            original_max_position_embeddings=64,
            beta_fast=16.0,
            beta_slow=2.0,
            mscale=0.7,
            mscale_all_dim=1.3,
            truncate=False,
        )
    ),
    "mistral": tiny.mistral,
    "mistral without a window": lambda: tiny.mistral(sliding_window=None),
    "qwen2": tiny.qwen2,
    "qwen2 with windows": lambda: tiny.qwen2(use_sliding_window=True, sliding_window=8, max_window_layers=2),
    "qwen3": tiny.qwen3,
    "qwen3 with biases and windows": lambda: tiny.qwen3(
        attention_bias=True, use_sliding_window=True, sliding_window=6, max_window_layers=1
    ),
}


def filled(config: dict[str, Any], tensors: dict[str, Tensor]) -> Decoder:
    decoder = Decoder(ModelConfig.from_json(config))
    assembly = Assembly(decoder, {name: tensor.shape for name, tensor in tensors.items()})
    for name, tensor in tensors.items():
        assembly.assign(name, tensor)
    assembly.finish()
    return decoder


def assert_agrees(decoder: Decoder | CpuDecoder, model: Any) -> None:
    """Same greedy tokens over 64 steps, every logit within 1e-3: prefill and decode of ours, one pass of theirs."""
    if isinstance(decoder, CpuDecoder):
        tokens, logits = cpu_greedy(decoder, PROMPT, STEPS)
    else:
        tokens, logits = greedy(decoder, PROMPT, STEPS)
    with torch.inference_mode():
        reference = model(torch.tensor([PROMPT + tokens[:-1]])).logits[0]
    assert float((logits - reference).abs().max()) < 1e-3
    assert tokens == reference[len(PROMPT) - 1 :].argmax(-1).tolist()


@pytest.mark.parametrize("fill", [filled, filled_cpu_decoder], ids=["torch", "cpu"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_and_greedy_tokens_are_those_of_transformers(name: str, fill: Callable[..., Any]) -> None:
    made = MODELS[name]()
    assert_agrees(fill(made.config, made.tensors), made.model)


@pytest.mark.parametrize("name", MODELS)
def test_the_4x_spelling_means_the_same_model(name: str) -> None:
    config = MODELS[name]().config
    new, old = ModelConfig.from_json(config), ModelConfig.from_json(tiny.hub_style(config))
    assert old.layers == new.layers
    assert (old.attention_scale, old.tied, old.head_dim) == (new.attention_scale, new.tied, new.head_dim)


LAYOUTS: dict[str, Callable[[str], str]] = {
    "plain": lambda key: key,
    "language_model.model (4.51 to 5.x image-text files)": lambda key: f"language_model.{key}",
    "model.language_model (in memory, Unsloth)": lambda key: key.replace("model.", "model.language_model.", 1),
    "base_model.model (PEFT)": lambda key: f"base_model.model.{key}",
    "module (DataParallel)": lambda key: f"module.{key}",
    "both wrappers": lambda key: f"module.base_model.model.{key}",
    "torch.compile, inside": lambda key: key.replace("model.", "model._orig_mod.", 1),
    "FSDP, outside and inside": lambda key: (
        f"_fsdp_wrapped_module.{key.replace('.mlp.', '._checkpoint_wrapped_module.mlp.')}"
    ),
    "a model in a model": lambda key: f"model.{key}",
    "PEFT, merged in place": lambda key: key.replace("_proj.", "_proj.base_layer."),
    "TRL's value head outside": lambda key: f"pretrained_model.{key}",
    "no prefix at all": lambda key: key.removeprefix("model."),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("make", [tiny.gemma3, tiny.llama], ids=["tied", "untied"])
def test_every_key_layout_fills_the_same_parameters(layout: str, make: Callable[[], tiny.Tiny]) -> None:
    made = make()
    tensors = {LAYOUTS[layout](key): tensor for key, tensor in made.tensors.items()}
    ids = torch.tensor([PROMPT])
    _, logits = greedy(filled(made.config, tensors), PROMPT, 1)
    with torch.inference_mode():
        assert float((logits - made.model(ids).logits[0]).abs().max()) < 1e-3


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def test_a_key_that_is_left_out_is_what_transformers_has_for_it() -> None:
    """Mistral's window of 4096 is there without the key, and counts for a prompt that is longer."""
    made = tiny.mistral(sliding_window=4096, max_position_embeddings=8192, num_hidden_layers=2)
    prompt = torch.randint(0, 131, (4150,), generator=torch.Generator().manual_seed(1)).tolist()
    _, logits = greedy(filled(without(made.config, "sliding_window"), made.tensors), prompt, 1)
    with torch.inference_mode():
        reference = made.model(torch.tensor([prompt]), logits_to_keep=1).logits[0]
    assert float((logits[-1:] - reference).abs().max()) < 1e-3


def test_yarn_reaches_as_far_as_it_stretches() -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    made = tiny.qwen2(max_position_embeddings=64, **tiny.rope("yarn", **without(scaling, "type")))
    config = without(made.config, "rope_parameters") | {"rope_theta": 20_000.0, "rope_scaling": scaling}
    assert ModelConfig.from_json(config).max_positions == 256
    assert ModelConfig.from_json(config | {"max_position_embeddings": 300}).max_positions == 300
    decoder, prompt = filled(config, made.tensors), (PROMPT * 20)[:200]
    _, logits = greedy(decoder, prompt, 1)
    with torch.inference_mode():
        assert float((logits - made.model(torch.tensor([prompt])).logits[0]).abs().max()) < 1e-3


def test_a_head_that_the_model_has_not_is_left_alone() -> None:
    made = tiny.gemma3()
    extra = {"v_head.summary.weight": torch.zeros(1, 48), "v_head.summary.bias": torch.zeros(1)}
    assert_agrees(filled(made.config, made.tensors | extra), made.model)
