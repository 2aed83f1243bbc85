"""What a checkpoint says twice, or says of something that is not there: decided as transformers does, and told."""

from __future__ import annotations

from typing import Any

import pytest

from coldstream.errors import ParameterMismatch, UnsupportedConfig
from coldstream.model.config import ModelConfig
from coldstream.model.findings import findings
from coldstream.model.summary import summarize
from coldstream.weights.checkpoint.checkpoint import Checkpoint
from coldstream.weights.checkpoint.header import TensorInfo
from tests.support.fault_stores import MemoryStore

LLAMA: dict[str, Any] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
UP = "model.layers.0.mlp.up_proj"


def checkpoint(config: dict[str, Any], *more: tuple[str, str, tuple[int, ...]], warnings: tuple[str, ...] = ()) -> Any:
    """Headers alone: a plain embedding, and what a test adds."""
    store = MemoryStore({})
    rows = (("model.embed_tokens.weight", "BF16", (8, 4)), *more)
    infos = [TensorInfo(name, dtype, shape, "model.safetensors", 0, 0) for name, dtype, shape in rows]
    return Checkpoint(store.location, store, {}, config, None, (), {info.name: info for info in infos}, warnings)


def test_a_plain_checkpoint_is_worth_no_word() -> None:
    assert findings(checkpoint(LLAMA, ("position_ids", "I64", (1, 8)))) == ()


@pytest.mark.parametrize(
    ("model_type", "architectures", "served", "told"),
    [
        ("gemma3_text", ["FSDPGemma3ForCausalLM"], "Gemma3ForCausalLM", None),
        ("qwen2", ["Qwen2Model"], "Qwen2ForCausalLM", None),
        ("qwen2", ["PeftModelForCausalLM"], "Qwen2ForCausalLM", None),
        ("qwen3", ["AutoModelForCausalLMWithValueHead"], "Qwen3ForCausalLM", None),
        ("llama", [], "LlamaForCausalLM", None),
        ("llama", None, "LlamaForCausalLM", None),
        ("mistral", ["LlamaForCausalLM"], "MistralForCausalLM", "LlamaForCausalLM"),
        ("llama", ["MyOwnForCausalLM"], "LlamaForCausalLM", "MyOwnForCausalLM"),
        ("gemma3", ["Gemma3ForCausalLM"], "Gemma3ForConditionalGeneration", "Gemma3ForCausalLM"),
        (None, ["FSDPLlamaForCausalLM"], "LlamaForCausalLM", None),
        (None, ["Gemma3TextModel"], "Gemma3ForCausalLM", None),
    ],
)
def test_model_type_decides_and_what_disagrees_is_told(
    model_type: str | None, architectures: list[str] | None, served: str, told: str | None
) -> None:
    config = {"model_type": model_type, "architectures": architectures}
    assert ModelConfig.from_json(config).architecture == served
    found = findings(checkpoint(config))
    assert len(found) == (told is not None)
    assert all(told in sentence and served in sentence for sentence in found if told)


def test_a_left_over_quantization_config_is_told_and_has_no_effect() -> None:
    config = LLAMA | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (said,) = findings(checkpoint(config))
    assert "bitsandbytes" in said
    assert "left over" in said
    assert ModelConfig.from_json(config) == ModelConfig.from_json(LLAMA)


@pytest.mark.parametrize(
    ("method", "name", "dtype", "shape", "named"),
    [
        ("bitsandbytes", f"{UP}.weight", "U8", (1920, 1), "bitsandbytes"),
        (None, f"{UP}.weight.absmax", "F32", (60,), "bitsandbytes"),
        (None, f"{UP}.weight.quant_state.bitsandbytes__nf4", "U8", (90,), "quantised"),
        ("gptq", f"{UP}.qweight", "I32", (6, 80), "gptq"),
        (None, f"{UP}.qweight", "I32", (6, 80), "GPTQ or AWQ"),
        ("fp8", f"{UP}.weight", "F8_E4M3", (80, 48), "fp8"),
        (None, f"{UP}.weight", "F8_E4M3", (80, 48), "FP8"),
        (None, f"{UP}.weight_packed", "I32", (80, 6), "compressed-tensors"),
    ],
)
def test_quantised_weights_are_refused_with_their_method(
    method: str | None, name: str, dtype: str, shape: tuple[int, ...], named: str
) -> None:
    config = LLAMA | ({"quantization_config": {"quant_method": method}} if method else {})
    with pytest.raises(UnsupportedConfig, match=named):
        findings(checkpoint(config, (name, dtype, shape)))


def test_a_value_head_is_named_and_a_classifier_is_refused() -> None:
    head = ("v_head.summary.weight", "F32", (1, 4))
    (said,) = findings(checkpoint(LLAMA, head))
    assert "v_head.summary.weight" in said
    classifier = LLAMA | {"architectures": ["LlamaForSequenceClassification"]}
    with pytest.raises(UnsupportedConfig, match=r"LlamaForSequenceClassification.*score\.weight"):
        findings(checkpoint(classifier, ("score.weight", "F32", (2, 4))))


def test_a_tower_that_only_the_config_has_is_told() -> None:
    config = {"model_type": "gemma3", "text_config": {}, "vision_config": {"image_size": 56}}
    (said,) = findings(checkpoint(config))
    assert "images are refused" in said
    tower = ("vision_tower.vision_model.post_layernorm.bias", "F32", (4,))
    assert findings(checkpoint(config, tower)) == ()


def test_an_unmerged_adapter_is_refused() -> None:
    with pytest.raises(ParameterMismatch, match="merge_and_unload"):
        findings(checkpoint(LLAMA, ("model.layers.0.mlp.up_proj.lora_A.weight", "F32", (2, 4))))


def test_inspect_shows_every_warning_and_the_architecture_that_is_served() -> None:
    config = {"model_type": "mistral", "architectures": ["LlamaForCausalLM"]}
    report = summarize(checkpoint(config, warnings=("something lies beside it",)))
    assert report["architecture"] == "MistralForCausalLM"
    assert report["warnings"][0] == "something lies beside it"
    assert "MistralForCausalLM" in report["warnings"][1]
    unknown = summarize(checkpoint({"model_type": "other"}, warnings=("something lies beside it",)))
    assert unknown["warnings"] == ["something lies beside it"]
