"""Tiny random models of every architecture, made by transformers, and their configs in the 4.x spelling."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

SHAPE: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}


@dataclass(frozen=True)
class Tiny:
    """A random transformers model with its config.json (5.x spelling) and its state dict as a file would have it."""

    model: nn.Module
    config: dict[str, Any]
    tensors: dict[str, Tensor]


def randomise(model: nn.Module, seed: int) -> None:
    """Give every parameter, norms and biases too, values of which no two are alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = torch.randn(parameter.shape, generator=generator) * 0.15
            parameter.copy_(spread + 1 if parameter.ndim == 1 and "norm" in name else spread)


def make(config: Any, architecture: str, seed: int = 0) -> Tiny:
    """Build `architecture` from a transformers config; tied heads have no tensor of their own, as in files."""
    config._attn_implementation = "eager"
    model = getattr(transformers, architecture)(config).eval()
    randomise(model, seed)
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("lm_head.weight")}
    return Tiny(model, config.to_dict() | {"architectures": [architecture]}, tensors)


def gemma3(**changes: Any) -> Tiny:
    defaults = {
        "num_hidden_layers": 7,
        "sliding_window": 8,
        "query_pre_attn_scalar": 24,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 50_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 3_000.0},
        },
    }
    return make(transformers.Gemma3TextConfig(**SHAPE | defaults | changes), "Gemma3ForCausalLM")


def llama(**changes: Any) -> Tiny:
    return make(transformers.LlamaConfig(**SHAPE | changes), "LlamaForCausalLM")


def mistral(**changes: Any) -> Tiny:
    return make(transformers.MistralConfig(**SHAPE | {"sliding_window": 8} | changes), "MistralForCausalLM")


def qwen2(**changes: Any) -> Tiny:
    return make(transformers.Qwen2Config(**SHAPE | changes), "Qwen2ForCausalLM")


def qwen3(**changes: Any) -> Tiny:
    return make(transformers.Qwen3Config(**SHAPE | changes), "Qwen3ForCausalLM")


def rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 20_000.0, **values}}


def hub_style(config: dict[str, Any]) -> dict[str, Any]:
    """The same config as transformers 4.5x would have written it."""
    config = copy.deepcopy(config)
    ropes = config.pop("rope_parameters")
    config["torch_dtype"] = config.pop("dtype", None) or "bfloat16"
    full = ropes.get("full_attention", ropes)
    config["rope_theta"] = full["rope_theta"]
    scaling = {key: value for key, value in full.items() if key != "rope_theta"}
    config["rope_scaling"] = None if scaling["rope_type"] == "default" else scaling
    if "sliding_attention" in ropes:
        config["rope_local_base_freq"] = ropes["sliding_attention"]["rope_theta"]
        config["sliding_window_pattern"] = config.pop("_sliding_window_pattern", 6)
        del config["layer_types"]
    return config
