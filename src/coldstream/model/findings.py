"""What a checkpoint's headers and config.json say about the model that it can become. No torch, no tensor bytes.

`findings` are sentences for people: what was decided where a checkpoint says two things, and what of it is not used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from coldstream.errors import UnsupportedConfig
from coldstream.model.architecture import classifier, disagreement
from coldstream.model.config import is_native
from coldstream.model.names import Head, Vision, destination, is_quantised
from coldstream.weights.checkpoint.checkpoint import Checkpoint
from coldstream.weights.checkpoint.header import TensorInfo

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_METHODS: Mapping[str, str] = {
    ".absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".quant_map": "bitsandbytes",
    ".qweight": "GPTQ or AWQ",
    ".weight_packed": "compressed-tensors",
    ".weight_scale_inv": "FP8",
    ".codebooks": "AQLM",
}
_SHOWN = 3


def findings(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Everything worth a warning, in the order in which it was found.

    Raises:
        UnsupportedConfig: the weights are quantised, or make a classifier.
        ParameterMismatch: a tensor can be loaded into no model; see `names.destination`.
    """
    tensors, config = checkpoint.tensors.values(), checkpoint.config
    _refuse_quantised(config, tensors)
    found = [*checkpoint.warnings]
    found += [sentence for sentence in (disagreement(config), _left_over(config)) if sentence]
    if is_native(config):
        found += _of_tensors(config, [info.name for info in tensors])
    return tuple(found)


def holds_vision(names: Iterable[str]) -> bool:
    """Whether any of the tensors is of a vision tower or its projector."""
    return any(isinstance(destination(name), Vision) for name in names)


def _of_tensors(config: Mapping[str, Any], names: list[str]) -> Iterable[str]:
    found = {name: destination(name) for name in names}
    heads = [name for name, to in found.items() if isinstance(to, Head)]
    trained = classifier(config)
    if heads and trained is not None:
        raise UnsupportedConfig(
            f"config.json: architectures names {trained}, and {_some(heads)} holds its head: "
            "it chooses among labels and writes no text; serve a model that was trained to write"
        )
    if heads:
        yield f"{_some(heads)}: a head beside the model's own, which text does not need; it is not used"
    if config.get("vision_config") and not any(isinstance(to, Vision) for to in found.values()):
        yield (
            "config.json: vision_config describes a vision tower, but the checkpoint has no tensors of one: text is "
            "served, images are refused; upload the whole model if it should see"
        )


def _left_over(config: Mapping[str, Any]) -> str | None:
    method = _method(config)
    if method is None:
        return None
    return (
        f"config.json: quantization_config says {method}, but the weights are plain floats: it is left over, and has "
        "no effect; remove it"
    )


def _refuse_quantised(config: Mapping[str, Any], tensors: Iterable[TensorInfo]) -> None:
    for info in tensors:
        if is_quantised(info.name) or _is_packed(info):
            method = _method(config) or _guessed(info)
            raise UnsupportedConfig(
                f"{info.file}: {info.name} ({info.dtype}): the checkpoint is quantised ({method}); upload it in "
                "bfloat16 or float32 (int8 is made while loading)"
            )


def _is_packed(info: TensorInfo) -> bool:
    """A matrix that is not of floats; counters and masks, which some models save, are small or have another name."""
    if info.dtype in _FLOATS or len(info.shape) < 2 or not info.numel:
        return False
    return info.dtype.startswith("F8") or info.name.endswith(".weight")


def _method(config: Mapping[str, Any]) -> str | None:
    for place in (config, config.get("text_config")):
        said = place.get("quantization_config") if isinstance(place, Mapping) else None
        if said:
            return str(said.get("quant_method", "quantised")) if isinstance(said, Mapping) else "quantised"
    return None


def _guessed(info: TensorInfo) -> str:
    for end, method in _METHODS.items():
        if end in info.name:
            return method
    return "FP8" if info.dtype.startswith("F8") else f"weights of {info.dtype}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
