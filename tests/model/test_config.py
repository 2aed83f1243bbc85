"""config.json -> ModelConfig: what it means, and what is refused by name."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldstream.errors import ModelError, UnknownArchitecture, UnsupportedConfig
from coldstream.model.config import ModelConfig, is_native
from coldstream.model.rope_config import RopeConfig

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 100,
}
GEMMA: dict[str, Any] = {"architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": 12}
GEMMA_4B: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152},
}


def test_the_hubs_sparse_4b_config_gets_gemmas_defaults() -> None:
    config = ModelConfig.from_json(GEMMA_4B)
    assert (config.vocab_size, config.heads, config.kv_heads, config.head_dim) == (262_208, 8, 4, 256)
    assert [layer.window for layer in config.layers[:7]] == [1024] * 5 + [None, 1024]
    assert config.layers[5].rope == RopeConfig(1e6, "linear", factor=8.0)
    assert config.layers[0].rope == RopeConfig(1e4)
    assert config.tied
    assert config.embedding_scale == 2560**0.5


def test_a_text_config_inside_does_not_hide_an_outer_untied_head() -> None:
    assert not ModelConfig.from_json(GEMMA_4B | {"tie_word_embeddings": False}).tied


def test_what_stands_inside_of_text_config_ties_nothing_but_has_to_be_sound() -> None:
    inner = GEMMA_4B["text_config"]
    assert ModelConfig.from_json(GEMMA_4B | {"text_config": inner | {"tie_word_embeddings": False}}).tied
    with pytest.raises(UnsupportedConfig, match="tie_word_embeddings"):
        ModelConfig.from_json(GEMMA_4B | {"text_config": inner | {"tie_word_embeddings": None}})


def test_both_spellings_of_gemma_s_layers_agree() -> None:
    pattern = ModelConfig.from_json(GEMMA | {"sliding_window_pattern": 3})
    types = (["sliding_attention"] * 2 + ["full_attention"]) * 4
    assert pattern.layers == ModelConfig.from_json(GEMMA | {"layer_types": types}).layers


def test_a_config_without_architectures_is_known_by_its_model_type() -> None:
    config = {key: value for key, value in LLAMA.items() if key != "architectures"} | {"model_type": "llama"}
    assert ModelConfig.from_json(config).architecture == "LlamaForCausalLM"


def test_an_unknown_architecture_is_named_with_the_extra_that_serves_it() -> None:
    with pytest.raises(UnknownArchitecture, match=r"FalconForCausalLM.*coldstream\[transformers\]"):
        ModelConfig.from_json({"architectures": ["FalconForCausalLM"]})
    assert not is_native({"architectures": ["FalconForCausalLM"]})
    assert is_native(LLAMA)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"rope_theta": None}, "rope_theta"),
        ({"rms_norm_eps": None}, "rms_norm_eps"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"hidden_act": "swiglu_oai"}, "hidden_act"),
        ({"rms_norm_eps": -1}, "rms_norm_eps"),
        ({"attention_bias": 1}, "attention_bias"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"is_causal": False}, "is_causal"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"sliding_window": 64}, "sliding_window"),
        ({"layer_types": ["sliding_attention"] * 3}, "layer_types"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 5e5}}}, "full_attention"),
        ({"hidden_size": 66}, "hidden_size"),
    ],
)
def test_a_value_that_is_not_implemented_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedConfig, match=named):
        ModelConfig.from_json(LLAMA | changes)


HUB: dict[str, dict[str, Any]] = {
    "SmolLM2": {"model_type": "llama", "rope_interleaved": False, "mlp_bias": False, "is_llama_config": True},
    "Llama 3.1": {
        "model_type": "llama",
        "pretraining_tp": 1,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
    },
    "Mistral v0.3": {"model_type": "mistral", "sliding_window": None, "num_key_value_heads": 2},
    "Qwen2.5": {"model_type": "qwen2", "use_sliding_window": False, "use_mrope": False, "num_key_value_heads": 2},
    "Qwen3": {"model_type": "qwen3", "sliding_window": None, "rope_scaling": None, "num_key_value_heads": 2},
    "Gemma 3": {
        "model_type": "gemma3_text",
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window_pattern": 6,
        "use_bidirectional_attention": False,
        "cache_implementation": "hybrid",
    },
}


@pytest.mark.parametrize("name", HUB)
def test_what_lies_on_the_hub_is_read(name: str) -> None:
    assert ModelConfig.from_json(LLAMA | HUB[name]).max_positions >= 2048


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"sliding_window": None}, "sliding_window"),
        ({"hidden_act": "silu"}, "hidden_act"),
        ({"layer_types": ["chunked_attention"] * 12}, "layer_types"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ],
)
def test_gemma_s_own_values_are_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedConfig, match=named):
        ModelConfig.from_json(GEMMA | changes)


_HUGE = st.sampled_from([10**12, 10**400])
_SCALARS = st.none() | st.booleans() | st.integers(-3, 300) | _HUGE | st.floats() | st.text(max_size=4)
_JSON = _SCALARS | st.lists(_SCALARS, max_size=3) | st.dictionaries(st.sampled_from(["rope_type", "factor"]), _SCALARS)
_FIELDS = sorted(
    {
        *LLAMA,
        *("rope_parameters", "rope_scaling", "layer_types", "sliding_window", "head_dim", "text_config", "model_type"),
        *("rope_theta", "use_sliding_window", "max_window_layers", "query_pre_attn_scalar", "max_position_embeddings"),
    }
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    architecture=st.sampled_from(["LlamaForCausalLM", "Qwen3ForCausalLM", "Gemma3ForConditionalGeneration"]),
    values=st.dictionaries(st.sampled_from(_FIELDS), _JSON),
)
def test_any_json_is_a_config_or_an_error_of_ours(architecture: str, values: dict[str, Any]) -> None:
    try:
        config = ModelConfig.from_json(LLAMA | values | {"architectures": [architecture]})
    except ModelError:
        return
    assert config.layers


def test_reading_a_config_needs_no_torch() -> None:
    code = "import sys, coldstream.model.config, coldstream.model.names; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
