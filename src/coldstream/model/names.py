"""Checkpoint key -> parameter of the decoder: every key layout that lies in buckets. Pure, no torch.

    model.layers.0.mlp.up_proj.weight                        text checkpoints, all versions
    language_model.model.layers.0...                         Gemma3ForConditionalGeneration, transformers 4.5x and 5.x
    model.language_model.layers.0...                         the same in memory; Unsloth merges and raw state dicts
    base_model.model.<any of them>, module.<any of them>     PEFT and DataParallel wrappers

Parameter names here are the text model's own, without a prefix: `embed_tokens.weight`, `layers.N. ...`, `norm.weight`,
`lm_head.weight`. A key that is not known is neither guessed nor dropped: `Unknown` makes the assembly fail by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from coldstream.errors import ParameterMismatch

_WRAPPERS = ("base_model.model.", "module.", "_orig_mod.")
_TEXT_PREFIXES = (
    "model.language_model.model.",
    "model.language_model.",
    "language_model.model.",
    "language_model.",
    "model.",
    "",
)
_VISION = re.compile(r"^(model\.)?(vision_tower|vision_model|multi_modal_projector)\.")
_TEXT = re.compile(r"^(embed_tokens|norm|lm_head|layers\.\d+)\.")
_ADAPTER = re.compile(
    r"\.(lora_[A-Za-z_]+|base_layer|original_module|modules_to_save|ia3_[a-z]+|hada_w\d_[ab]|lokr_\w+)(\.|$)"
)
_QUANTISED = re.compile(
    r"\.(qweight|qzeros|g_idx|weight_packed|weight_scale|weight_scale_inv|absmax|quant_map|SCB)(\.|$)"
)
_BUFFERS = re.compile(r"(^|\.)(rotary_emb(_local)?\.inv_freq|embed_tokens\.embed_scale)$")


@dataclass(frozen=True, slots=True)
class Text:
    """A parameter of the text decoder, by its own name."""

    name: str


@dataclass(frozen=True, slots=True)
class Vision:
    """A parameter of the vision tower or the projector; the text decoder leaves it alone. `name` has no wrapper."""

    name: str


@dataclass(frozen=True, slots=True)
class Ignored:
    """A tensor that is known to carry nothing, with the reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """A key of no known layout."""


def destination(key: str) -> Text | Vision | Ignored | Unknown:
    """Where a checkpoint's tensor belongs.

    Raises ParameterMismatch for what must not be loaded as it lies: unmerged adapters and quantised weights.
    """
    plain = _unwrapped(key)
    if _ADAPTER.search(plain):
        raise ParameterMismatch(
            f"{key}: the checkpoint holds an unmerged adapter; merge it "
            "(model.merge_and_unload(), then save_pretrained) and upload the merged checkpoint"
        )
    if _QUANTISED.search(plain):
        raise ParameterMismatch(
            f"{key}: the checkpoint is quantised; upload it in bfloat16 or float32 (int8 is packed while loading)"
        )
    if _BUFFERS.search(plain):
        return Ignored("a buffer that older versions saved; it is computed from config.json")
    if _VISION.match(plain):
        return Vision(plain.removeprefix("model."))
    for prefix in _TEXT_PREFIXES:
        rest = plain.removeprefix(prefix)
        if plain.startswith(prefix) and _TEXT.match(rest):
            return Text(rest)
    return Unknown()


def _unwrapped(key: str) -> str:
    """The key without the wrappers' prefixes, however often they were put around it."""
    stripped = True
    while stripped:
        stripped = False
        for prefix in _WRAPPERS:
            if key.startswith(prefix):
                key, stripped = key.removeprefix(prefix), True
    return key
