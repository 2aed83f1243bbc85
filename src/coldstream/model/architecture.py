"""Which model a config.json describes. Pure, no torch.

`model_type` decides, as it does for transformers' AutoModel; `architectures` counts only where there is none, since
trainers write their wrappers' names there (FSDPGemma3ForCausalLM, PeftModelForCausalLM), or the class that was trained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from coldstream.errors import UnknownArchitecture

BY_MODEL_TYPE: Mapping[str, str] = {
    "gemma3_text": "Gemma3ForCausalLM",
    "gemma3": "Gemma3ForConditionalGeneration",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_HEADLESS: Mapping[str, str] = {
    "Gemma3TextModel": "Gemma3ForCausalLM",
    "Gemma3Model": "Gemma3ForConditionalGeneration",
    "LlamaModel": "LlamaForCausalLM",
    "MistralModel": "MistralForCausalLM",
    "Qwen2Model": "Qwen2ForCausalLM",
    "Qwen3Model": "Qwen3ForCausalLM",
}
_WRAPPER = re.compile(
    r"^(FSDP\w*Module|Peft\w*|\w*ForCausalLMWithValueHead|OptimizedModule|DistributedDataParallel|DataParallel"
    r"|FullyShardedDataParallel|DeepSpeedEngine|PipelineModule)$"
)
_CLASSIFIER = re.compile(r"For(Sequence|Token|Image)Classification$|ForQuestionAnswering$|RewardModel$")


def architecture(config: Mapping[str, Any]) -> str:
    """The name of a decoder in `BY_MODEL_TYPE`.

    Raises:
        UnknownArchitecture: the native decoder has none for it.
    """
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in BY_MODEL_TYPE:
        return BY_MODEL_TYPE[model_type]
    names = listed(config)
    found = next((name for name in names if name in BY_MODEL_TYPE.values()), None)
    if found is not None and not model_type:
        return found
    what = ", ".join([*names, *([f"model_type {model_type!r}"] if model_type else [])]) or "a config without model_type"
    raise UnknownArchitecture(
        f"config.json: the native decoder does not know {what} (it knows {', '.join(sorted(BY_MODEL_TYPE))}); "
        "install coldstream[transformers] to serve it through transformers"
    )


def listed(config: Mapping[str, Any]) -> list[str]:
    """What `architectures` names, without the names of wrappers, headless models by the name of the whole."""
    value = config.get("architectures")
    texts = [name for name in value if isinstance(name, str)] if isinstance(value, Sequence) else []
    plain = (name.removeprefix("FSDP") for name in texts if not _WRAPPER.match(name))
    return [_HEADLESS.get(name, name) for name in plain]


def classifier(config: Mapping[str, Any]) -> str | None:
    """The name of a class in `architectures` whose head chooses among labels instead of tokens."""
    return next((name for name in listed(config) if _CLASSIFIER.search(name)), None)


def disagreement(config: Mapping[str, Any]) -> str | None:
    """A sentence for people, where `architectures` and the model that is served differ."""
    try:
        served = architecture(config)
    except UnknownArchitecture:
        return None
    others = [name for name in listed(config) if name != served]
    if not others or served in listed(config):
        return None
    return (
        f"config.json: architectures names {', '.join(others)}, but model_type is {config.get('model_type')!r}, which "
        f"decides: served as {served}"
    )
