"""Generated config.json files are read as transformers reads them: the same model, or a refusal by name.

Keys are left out, set to null, added, and spelt in both ways. What transformers computes is asked of its modules, made
without weights, and of nothing that reads the config once more.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from transformers.initialization import no_init_weights

from coldstream.backends.rope import inverse_frequencies
from coldstream.backends.torch.decoder import Decoder
from coldstream.backends.torch.layers import activation
from coldstream.errors import ModelError
from coldstream.model.config import GEMMA3_DEFAULTS, LLAMA_FAMILY, ModelConfig
from coldstream.model.matrices import HEAD
from coldstream.model.names import Text, destination
from coldstream.model.rope_config import RopeConfig

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
FAMILIES = ("gemma3_text", "gemma3", "llama", "mistral", "qwen2", "qwen3")
_KINDS = ("full_attention", "sliding_attention")

_ROPE = st.fixed_dictionaries(
    {},
    optional={
        "rope_type": st.sampled_from(["default", "linear", "llama3", "yarn", "dynamic", None]),
        "type": st.sampled_from(["default", "linear", "yarn"]),
        "rope_theta": st.sampled_from([10_000.0, 5e5, 1_000_000, None]),
        "factor": st.sampled_from([2.0, 8, 0.5, None]),
        "low_freq_factor": st.just(1.0),
        "high_freq_factor": st.just(4.0),
        "original_max_position_embeddings": st.sampled_from([64, 32, None]),
        "attention_factor": st.sampled_from([0.7, None]),
        "beta_fast": st.sampled_from([16, None]),
        "mscale": st.just(0.7),
        "mscale_all_dim": st.just(1.2),
        "truncate": st.booleans(),
        "partial_rotary_factor": st.sampled_from([1.0, 0.5]),
    },
)
_WHOLE_ROPE = st.sampled_from(
    [
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 20_000.0},
        {"rope_type": "linear", "factor": 4.0},
        {"type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 64, "rope_theta": 1e5},
        {"type": "yarn", "factor": 4.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {"rope_type": "default", "rope_theta": 500.0},
    ]
)
_ROPES = st.none() | st.just({}) | _WHOLE_ROPE | _ROPE
_LAYERED = st.fixed_dictionaries({}, optional=dict.fromkeys(_KINDS, _ROPES))
_TYPES = st.lists(st.sampled_from(_KINDS), min_size=3, max_size=3) | st.just(["full_attention"] * 3)

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "vocab_size": st.sampled_from([64, 50, None]),
    "hidden_size": st.sampled_from([32, 48, 36, None]),
    "intermediate_size": st.sampled_from([48, 20, None]),
    "num_hidden_layers": st.sampled_from([3, 3, 3, 2, None]),
    "num_attention_heads": st.sampled_from([4, 2, 8, None]),
    "num_key_value_heads": st.sampled_from([1, 2, 4, 8, 3, None]),
    "head_dim": st.sampled_from([8, 16, 7, None]),
    "max_position_embeddings": st.sampled_from([256, 128, None]),
    "hidden_act": st.sampled_from(["silu", "gelu", "gelu_pytorch_tanh", "gelu_new", "relu", "quick_gelu", None]),
    "hidden_activation": st.sampled_from(["silu", "gelu", "gelu_pytorch_tanh", None]),
    "rms_norm_eps": st.sampled_from([1e-5, 1e-6, None]),
    "attention_bias": st.sampled_from([True, False, None]),
    "mlp_bias": st.sampled_from([True, False, None]),
    "tie_word_embeddings": st.sampled_from([True, False, None]),
    "query_pre_attn_scalar": st.sampled_from([16, 256, None]),
    "sliding_window": st.sampled_from([4, 16, None]),
    "use_sliding_window": st.sampled_from([True, False, None]),
    "max_window_layers": st.sampled_from([0, 1, 2, 28, None]),
    "layer_types": st.none() | _TYPES,
    "sliding_window_pattern": st.sampled_from([2, 3, 6, None]),
    "_sliding_window_pattern": st.sampled_from([2, 6]),
    "final_logit_softcapping": st.sampled_from([30.0, None]),
    "attn_logit_softcapping": st.sampled_from([50.0, None]),
    "use_bidirectional_attention": st.sampled_from([True, False, None]),
    "is_causal": st.sampled_from([True, False]),
    "rope_theta": st.sampled_from([10_000.0, 1e6, None]),
    "rope_local_base_freq": st.sampled_from([10_000.0, 500.0, None]),
    "rope_scaling": _ROPES,
    "rope_parameters": _ROPES | _LAYERED,
    "partial_rotary_factor": st.sampled_from([1.0, 0.5, None]),
    "original_max_position_embeddings": st.sampled_from([64, None]),
    "per_layer_config": st.sampled_from([None, {"1": {"intermediate_size": 16}}]),
}


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """A config.json of one of the families: most of the small shape, some keys gone, some changed, some added."""
    family = draw(st.sampled_from(FAMILIES))
    gone = draw(st.sets(st.sampled_from(sorted(SMALL.keys() - {"num_hidden_layers"})), max_size=3))
    changed = draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=4, unique=True))
    text = {key: value for key, value in SMALL.items() if key not in gone}
    text |= {key: draw(VALUES[key]) for key in changed}
    if family != "gemma3":
        return text | {"model_type": family}
    outer = draw(st.fixed_dictionaries({}, optional={"tie_word_embeddings": st.sampled_from([True, False, None])}))
    return outer | {"model_type": family, "text_config": text, "vision_config": {"num_hidden_layers": 1}}


def _theirs(config: dict[str, Any]) -> tuple[Any, Any]:
    """(text config, model on meta) of transformers, or what it raises."""
    read = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(_copied(config))
    read._attn_implementation = "eager"
    with torch.device("meta"), no_init_weights():
        model = transformers.AutoModelForCausalLM.from_config(read)
    return read.get_text_config(), model


def _copied(value: Any) -> Any:
    """transformers writes into the objects of a config that it reads."""
    return {key: _copied(item) for key, item in value.items()} if isinstance(value, dict) else value


def _assert_same(ours: ModelConfig, text: Any, model: Any) -> None:
    decoder = Decoder(ours, device="meta")
    named = {destination(name): tuple(item.shape) for name, item in model.state_dict().items()}
    theirs = {to.name: shape for to, shape in named.items() if isinstance(to, Text)}
    assert {item.name: item.shape for item in decoder.parameters()} == {HEAD: theirs["embed_tokens.weight"]} | theirs
    base = model.model.language_model if hasattr(model.model, "language_model") else model.model
    for index, (layer, module) in enumerate(zip(ours.layers, base.layers, strict=True)):
        kind = text.layer_types[index] if text.model_type == "gemma3_text" else None
        assert layer.window == _window(text, module.self_attn)
        assert ours.attention_scale == pytest.approx(module.self_attn.scaling)
        _assert_same_rope(layer.rope, ours.head_dim, type(base.rotary_emb)(text), kind)
    norm = base.norm
    assert ours.norm_eps == getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    values = torch.linspace(-3, 3, 31)
    assert torch.allclose(activation(ours.activation)(values), base.layers[0].mlp.act_fn(values), atol=1e-5)
    assert ours.tied == bool(model.config.tie_word_embeddings)
    assert ours.embedding_scale == getattr(base.embed_tokens, "scalar_embed_scale", 1.0)
    assert ours.logit_softcap == (text.final_logit_softcapping if model.config.model_type == "gemma3_text" else None)


def _window(text: Any, attention: Any) -> int | None:
    if text.model_type == "llama":
        return None
    return text.sliding_window if text.model_type == "mistral" else attention.sliding_window


def _assert_same_rope(rope: RopeConfig, head_dim: int, rotary: Any, kind: str | None) -> None:
    prefix = f"{kind}_" if kind else ""
    frequencies = getattr(rotary, f"{prefix}inv_freq")
    ours = torch.from_numpy(inverse_frequencies(rope, head_dim))
    assert torch.allclose(ours, frequencies, rtol=1e-5, atol=0)
    assert rope.attention_factor == pytest.approx(getattr(rotary, f"{prefix}attention_scaling"))


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(config=configs())
def test_a_generated_config_is_transformers_own_model_or_is_refused_by_name(config: dict[str, Any]) -> None:
    refusal = ""
    try:
        ours = ModelConfig.from_json(config)
    except ModelError as exc:
        refusal = str(exc)
    event("refused" if refusal else "read")
    if refusal:
        assert any(key in refusal for key in VALUES), refusal
    else:
        _assert_same(ours, *_theirs(config))


@pytest.mark.parametrize("family", [*LLAMA_FAMILY, "gemma3_text"])
def test_the_default_of_every_key_is_that_of_transformers_config_class(family: str) -> None:
    defaults = GEMMA3_DEFAULTS if family == "gemma3_text" else LLAMA_FAMILY[family].defaults
    theirs = transformers.CONFIG_MAPPING[family].default_config_fields()
    assert {key: theirs[key] for key in defaults} == dict(defaults)


@pytest.mark.parametrize("family", [item for item in FAMILIES if item != "gemma3"])
def test_the_small_shape_itself_is_read(family: str) -> None:
    config = SMALL | {"model_type": family}
    _assert_same(ModelConfig.from_json(config), *_theirs(config))
