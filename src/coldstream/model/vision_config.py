"""config.json of an image-text checkpoint -> VisionConfig: what the SigLIP tower and projector need. Pure, no torch.

`vision_config` is SigLIP's own config (Zhai et al. 2023); how many tokens an image becomes, and which ids mark it,
stand beside it. Both spellings of the ids are read (`image_token_index`, and `image_token_id` as newer code writes it).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from coldstream.errors import UnknownArchitecture, UnsupportedConfig
from coldstream.model.architecture import architecture
from coldstream.model.config import GEMMA3_DEFAULTS, MOST_LAYERS
from coldstream.model.fields import Fields

_ARCHITECTURE = "Gemma3ForConditionalGeneration"
_ACTIVATIONS: Mapping[str, Literal["gelu", "gelu_tanh"]] = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
_TOWERS = ("siglip_vision_model", "siglip")
_IMAGE_DEFAULTS: Mapping[str, Any] = {
    "mm_tokens_per_image": 256,
    "boi_token_index": 255_999,
    "eoi_token_index": 256_000,
    "image_token_index": 262_144,
}
SIGLIP_DEFAULTS: Mapping[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
"""Of SiglipVisionConfig."""


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
        outer = Fields(config, "", _IMAGE_DEFAULTS)
        if _described(config) != _ARCHITECTURE or outer.is_null("vision_config"):
            return None
        vision = (outer.inside("vision_config") or Fields({})).over(SIGLIP_DEFAULTS)
        text = (outer.inside("text_config") or Fields({})).over(GEMMA3_DEFAULTS)
        if vision.text("model_type") not in _TOWERS:
            raise vision.wrong("model_type", f"must be {_TOWERS[0]} for the native tower")
        activation = vision.text("hidden_act")
        if activation not in _ACTIVATIONS:
            raise vision.wrong("hidden_act", f"must be one of {', '.join(_ACTIVATIONS)} for the native tower")
        return _fitting(
            cls(
                image_size=vision.whole("image_size"),
                patch_size=vision.whole("patch_size"),
                channels=vision.whole("num_channels"),
                hidden_size=vision.whole("hidden_size"),
                intermediate_size=vision.whole("intermediate_size"),
                layers=vision.whole("num_hidden_layers", most=MOST_LAYERS),
                heads=vision.whole("num_attention_heads"),
                norm_eps=_epsilon(vision),
                activation=_ACTIVATIONS[activation],
                text_hidden_size=text.whole("hidden_size"),
                tokens_per_image=outer.whole("mm_tokens_per_image"),
                begin_id=_token(outer, "boi_token"),
                image_id=_token(outer, "image_token"),
                end_id=_token(outer, "eoi_token"),
            ),
            text.whole("vocab_size"),
        )


def _described(config: Mapping[str, Any]) -> str | None:
    try:
        return architecture(config)
    except UnknownArchitecture:
        return None


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


def _epsilon(vision: Fields) -> float:
    value = vision.number("layer_norm_eps")
    if value >= 1:
        raise vision.wrong("layer_norm_eps", "must be a small number")
    return value


def _token(config: Fields, name: str) -> int:
    """`..._index`, as Gemma3Config has it; `..._id` is an alias of it there, and is obeyed where both are given."""
    return config.whole(f"{name}_id" if f"{name}_id" in config.data else f"{name}_index")
