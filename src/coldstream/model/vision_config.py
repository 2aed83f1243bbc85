"""config.json of an image-text checkpoint -> VisionConfig: what the SigLIP tower and projector need. Pure, no torch.

`vision_config` is SigLIP's own config (Zhai et al. 2023); how many tokens an image becomes, and which ids mark it,
stand beside it. Both spellings of the ids are read (`image_token_index`, and `image_token_id` as newer code writes it).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from coldstream.errors import UnsupportedConfig

_ARCHITECTURE = "Gemma3ForConditionalGeneration"
_ACTIVATIONS: Mapping[str, Literal["gelu", "gelu_tanh"]] = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """A SigLIP tower with Gemma 3's projector. Sizes of the image and its patches in pixels; both are squares.

    `begin_id`, `image_id`, `end_id` are the tokens before, of, and behind an image in the prompt.
    """

    image_size: int
    patch_size: int
    channels: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    norm_eps: float
    activation: Literal["gelu", "gelu_tanh"]
    text_hidden_size: int
    tokens_per_image: int
    begin_id: int
    image_id: int
    end_id: int

    @property
    def patches_per_side(self) -> int:
        """Patches along one edge of an image."""
        return self.image_size // self.patch_size

    @property
    def tokens_per_side(self) -> int:
        """Tokens along one edge of an image, after pooling."""
        return math.isqrt(self.tokens_per_image)

    @property
    def pool(self) -> int:
        """Patches along one edge of the square that becomes one token."""
        return self.patches_per_side // self.tokens_per_side

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> VisionConfig | None:
        """Read a parsed config.json; None where the model takes no images.

        Raises:
            UnsupportedConfig: a value that is missing, or that the native tower does not implement.
        """
        vision = config.get("vision_config")
        if vision is None or _ARCHITECTURE not in (config.get("architectures") or [_ARCHITECTURE]):
            return None
        text = config.get("text_config") or {}
        if not isinstance(vision, Mapping) or not isinstance(text, Mapping):
            raise UnsupportedConfig("config.json: vision_config and text_config must be objects")
        activation = vision.get("hidden_act") or "gelu_pytorch_tanh"
        if activation not in _ACTIVATIONS:
            known = ", ".join(_ACTIVATIONS)
            raise UnsupportedConfig(f"config.json: vision_config.hidden_act = {activation!r}; the tower has {known}")
        return _fitting(
            cls(
                image_size=_whole(vision, "image_size", 224),
                patch_size=_whole(vision, "patch_size", 16),
                channels=_whole(vision, "num_channels", 3),
                hidden_size=_whole(vision, "hidden_size", 768),
                intermediate_size=_whole(vision, "intermediate_size", 3072),
                layers=_whole(vision, "num_hidden_layers", 12),
                heads=_whole(vision, "num_attention_heads", 12),
                norm_eps=_epsilon(vision),
                activation=_ACTIVATIONS[activation],
                text_hidden_size=_whole(text, "hidden_size", 2304, where="text_config"),
                tokens_per_image=_whole(config, "mm_tokens_per_image", 256, where=""),
                begin_id=_token(config, "boi_token", 255_999),
                image_id=_token(config, "image_token", 262_144),
                end_id=_token(config, "eoi_token", 256_000),
            ),
            _whole(text, "vocab_size", 262_208, where="text_config"),
        )


def _fitting(vision: VisionConfig, vocab_size: int) -> VisionConfig:
    """The same, once its numbers fit together."""
    if vision.image_id >= vocab_size:
        raise UnsupportedConfig(
            f"config.json: image_token_index = {vision.image_id} is outside of text_config.vocab_size = {vocab_size}"
        )
    side, tokens = vision.patches_per_side, vision.tokens_per_side
    if vision.channels != 3:
        raise UnsupportedConfig(f"config.json: vision_config.num_channels = {vision.channels}; the tower sees RGB, 3")
    if vision.hidden_size % vision.heads:
        raise UnsupportedConfig(
            f"config.json: vision_config.hidden_size = {vision.hidden_size} does not divide by "
            f"num_attention_heads = {vision.heads}"
        )
    if tokens * tokens != vision.tokens_per_image or not side or side // max(tokens, 1) * tokens != side:
        raise UnsupportedConfig(
            f"config.json: mm_tokens_per_image = {vision.tokens_per_image} must be a square whose side divides the "
            f"{side} patches along an edge of the image"
        )
    return vision


def _whole(data: Mapping[str, Any], name: str, default: int, *, where: str = "vision_config") -> int:
    value = data.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        place = f"{where}.{name}" if where else name
        raise UnsupportedConfig(f"config.json: {place} must be a positive whole number, not {value!r}")
    return value


def _epsilon(vision: Mapping[str, Any]) -> float:
    value = vision.get("layer_norm_eps")
    value = 1e-6 if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise UnsupportedConfig(f"config.json: vision_config.layer_norm_eps must be a small number, not {value!r}")
    return float(value)


def _token(config: Mapping[str, Any], name: str, default: int) -> int:
    spelled = next((key for key in (f"{name}_index", f"{name}_id") if config.get(key) is not None), f"{name}_index")
    return _whole(config, spelled, default, where="")
