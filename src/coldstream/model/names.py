"""Checkpoint key -> parameter of the decoder: every key layout that lies in buckets. Pure, no torch.

    model.layers.0.mlp.up_proj.weight                        text checkpoints, all versions
    language_model.model.layers.0...                         Gemma3ForConditionalGeneration, transformers 4.5x and 5.x
    model.language_model.layers.0...                         the same in memory; Unsloth merges and raw state dicts
    base_model.model.<any of them>, module.<any of them>     PEFT, DataParallel, FSDP, torch.compile, anywhere in it

Parameter names here are the text model's own, without a prefix: `embed_tokens.weight`, `layers.N. ...`, `norm.weight`,
`lm_head.weight`. A key that is not known is neither guessed nor dropped: `Unknown` makes the assembly fail by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from coldstream.errors import ParameterMismatch

_WRAPPERS = frozenset(
    {
        "_checkpoint_wrapped_module",
        "_forward_module",
        "_fpw_module",
        "_fsdp_wrapped_module",
        "_orig_mod",
        "base_layer",
        "base_model",
        "module",
        "pretrained_model",
    }
)
"""Parts of a name that trainers put around a module; `base_layer` is PEFT's, around what an adapter was merged into."""
_MODELS = frozenset({"model", "language_model"})
"""Parts before the decoder's own names, in whatever order."""
_VISION = re.compile(r"^(vision_tower|vision_model|multi_modal_projector)\.")
_TEXT = re.compile(r"^(embed_tokens|norm|lm_head|layers\.\d+)\.")
_HEADS = re.compile(r"^(v_head|value_head|score|classifier|reward_head|regression_head|medusa_heads?|mtp)\.")
_ADAPTER = re.compile(
    r"\.(lora_[A-Za-z_]+|original_module|modules_to_save|ia3_[a-z]+|hada_w\d_[ab]|lokr_\w+|vera_lambda_[bd]"
    r"|oft_[rs]|prompt_encoder|prompt_embeddings)(\.|$)"
)
_QUANTISED = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|weight_packed|weight_shape|weight_zero_point|weight(_global)?_scale(_inv)?"
    r"|input(_global)?_scale|(nested_)?absmax|(nested_)?quant_map|quant_state|SCB|codes|codebooks|Qidxs)(\.|$)"
)
_UNRUN = re.compile(r"^(head\.|embeddings\.position_ids$)")
"""Parts of a saved tower that Gemma 3 never runs: SigLIP's own pooling head, and a buffer of counted positions."""
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
class Head:
    """A tensor of a head that trainers put beside the model's own (a value head, a classifier); text needs none."""

    name: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """A key of no known layout."""


def destination(key: str) -> Text | Vision | Head | Ignored | Unknown:
    """Where a checkpoint's tensor belongs.

    Raises ParameterMismatch for what must not be loaded as it lies: unmerged adapters and quantised weights.
    """
    if _ADAPTER.search(key):
        raise ParameterMismatch(
            f"{key}: the checkpoint holds an unmerged adapter; merge it "
            "(model.merge_and_unload(), then save_pretrained) and upload the merged checkpoint"
        )
    if is_quantised(key):
        raise ParameterMismatch(
            f"{key}: the checkpoint is quantised; upload it in bfloat16 or float32 (int8 is packed while loading)"
        )
    if _BUFFERS.search(key):
        return Ignored("a buffer that older versions saved; it is computed from config.json")
    name = _own_name(key)
    if _VISION.match(name):
        return Vision(name)
    if _TEXT.match(name):
        return Text(name)
    return Head(name) if _HEADS.match(name) else Unknown()


def is_quantised(key: str) -> bool:
    """Whether the name is one that only quantised weights have."""
    return _QUANTISED.search(key) is not None


def tower_parameter(name: str) -> str | None:
    """A vision tensor's name without what differs between versions of transformers: `encoder.layers.0. ...`.

    4.5x writes `vision_tower.vision_model. ...`, 5.x leaves out the second part. None for what Gemma 3 never runs.
    """
    plain = name.removeprefix("vision_tower.").removeprefix("vision_model.")
    return None if _UNRUN.match(plain) else plain


def _own_name(key: str) -> str:
    """The key without the wrappers' parts, wherever they stand, and without the models' before it."""
    parts = [part for part in key.split(".") if part not in _WRAPPERS]
    first = next((index for index, part in enumerate(parts) if part not in _MODELS), len(parts))
    return ".".join(parts[first:])
