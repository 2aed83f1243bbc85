"""A tiny random Gemma 3 with eyes, made by transformers, and the files that it would lie as in a bucket."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from PIL import Image

from tests.support.tiny import SHAPE, Tiny, make

SIZE, TOKENS = 56, 4
BEGIN, IMAGE, END = 120, 121, 122


def gemma3_vision(**vision: Any) -> Tiny:
    """Eight layers with a window smaller than two images, so that sliding layers cut through them."""
    text = transformers.Gemma3TextConfig(
        **SHAPE
        | {
            "num_hidden_layers": 7,
            "sliding_window": 6,
            "query_pre_attn_scalar": 24,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 50_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 3_000.0},
            },
        }
    )
    tower = {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIZE,
        "patch_size": 14,
        "vision_use_head": False,
    }
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=transformers.SiglipVisionConfig(**tower | vision),
        mm_tokens_per_image=TOKENS,
        boi_token_index=BEGIN,
        image_token_index=IMAGE,
        eoi_token_index=END,
    )
    config.text_config._attn_implementation = config.vision_config._attn_implementation = "eager"
    return make(config, "Gemma3ForConditionalGeneration")


def file_names(tensors: dict[str, torch.Tensor], version: str) -> dict[str, torch.Tensor]:
    """The state dict's names as each version of transformers writes them to a file."""

    def renamed(name: str) -> str:
        name = name.replace("model.language_model.", "language_model.model.")
        name = name.removeprefix("model.")
        if version != "5.23":
            name = name.replace("vision_tower.", "vision_tower.vision_model.")
        return name

    return {name if version == "raw" else renamed(name): tensor for name, tensor in tensors.items()}


def photo(seed: int, width: int = 90, height: int = 70) -> Image.Image:
    """Noise and a gradient, RGB; no two seeds are alike."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 160, (height, width, 3), generator=generator, dtype=torch.uint8)
    slope = torch.linspace(0, 90, width).to(torch.uint8)[None, :, None]
    return Image.fromarray((noise + slope).numpy())
