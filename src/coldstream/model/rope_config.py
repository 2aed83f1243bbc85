"""Which rotary embedding a config.json asks for, in both spellings. Pure, no torch.

transformers 4.x writes `rope_theta`, `rope_scaling` and (Gemma 3) `rope_local_base_freq`; 5.x `rope_parameters`, one
object, or in Gemma 3 one for each kind of layer. Where both stand, what transformers 5.x makes of them counts
(`modeling_rope_utils`, `convert_rope_params_to_dict`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from coldstream.errors import UnsupportedConfig
from coldstream.model.fields import Fields

RopeKind = Literal["default", "linear", "llama3", "yarn"]

_THETA = 10_000.0
_GEMMA_THETA = {"full_attention": ("rope_theta", 1_000_000.0), "sliding_attention": ("rope_local_base_freq", _THETA)}
_ORIGINAL = "original_max_position_embeddings"


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding of one kind of layer (Su et al. 2021), with its context extension.

    `linear` divides positions by `factor`; `llama3` and `yarn` (Peng et al. 2023) stretch the low frequencies only, as
    transformers' `modeling_rope_utils` does; `attention_factor` multiplies cos and sin.
    """

    theta: float
    kind: RopeKind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_context: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0

    def context(self, declared: int) -> int:
        """How many positions it reaches, where config.json declares so many: YaRN's stretch counts if it is longer."""
        return max(declared, int(self.original_context * self.factor)) if self.kind == "yarn" else declared


def one_rope(fields: Fields) -> RopeConfig:
    """The embedding of a model that has one for all its layers.

    Raises:
        UnsupportedConfig: a kind or an option that is not implemented.
    """
    scaling, parameters = fields.inside("rope_scaling"), fields.inside("rope_parameters")
    rope = scaling if scaling is not None and scaling.data else parameters or Fields({}, "rope_parameters.")
    for name, value in rope.data.items():
        if isinstance(value, Mapping):
            raise rope.wrong(name, "would be an embedding of its own for some layers, which this family has not")
    original = fields.data.get(_ORIGINAL, rope.data.get(_ORIGINAL, fields.value("max_position_embeddings")))
    beside = {"rope_theta": fields.data.get("rope_theta", _THETA)}
    return _rope(Fields({**beside, **rope.data, _ORIGINAL: original}, rope.prefix), fields)


def layer_ropes(fields: Fields) -> dict[str, RopeConfig]:
    """Gemma 3's embeddings, by kind of layer.

    Raises:
        UnsupportedConfig: a kind or an option that is not implemented.
    """
    if not fields.is_null(_ORIGINAL):
        raise fields.wrong(_ORIGINAL, "has to stand inside of rope_parameters.full_attention")
    given = fields.inside("rope_parameters")
    objects = {kind: given.inside(kind) if given is not None else None for kind in _GEMMA_THETA}
    objects["full_attention"] = _stretched(objects["full_attention"], fields, given is None)
    return {kind: _layer_rope(kind, rope, fields) for kind, rope in objects.items()}


def _stretched(full: Fields | None, fields: Fields, plain: bool) -> Fields | None:
    """`rope_scaling` is of the full layers only, and is laid over what `rope_parameters` says of them."""
    scaling = fields.inside("rope_scaling")
    if scaling is None:
        return full
    if full is None and not plain:
        raise fields.wrong("rope_scaling", "cannot stand beside rope_parameters without full_attention")
    known = full.data if full is not None else {"rope_type": "default"}
    if "rope_type" in known and "rope_type" not in scaling.data and scaling.data.get("type", "default") != "default":
        raise scaling.wrong("type", "has no effect in Gemma 3, whose files say rope_type")
    return Fields({**known, **scaling.data}, scaling.prefix)


def _layer_rope(kind: str, rope: Fields | None, fields: Fields) -> RopeConfig:
    key, theta = _GEMMA_THETA[kind]
    rope = rope or Fields({}, f"{fields.prefix}rope_parameters.{kind}.")
    if rope.data.get("truncate", True) is not True:
        raise rope.wrong("truncate", "can only be true where embeddings differ by layer")
    original = rope.data.get(_ORIGINAL, fields.value("max_position_embeddings"))
    beside = {"rope_theta": fields.data.get(key, theta)}
    return _rope(Fields({**beside, **rope.data, _ORIGINAL: original}, rope.prefix), fields)


def _rope(rope: Fields, fields: Fields) -> RopeConfig:
    for name in ("partial_rotary_factor", "mrope_section"):
        if rope.value(name) not in (None, 1):
            raise rope.wrong(name, "is not implemented by the native decoder")
    theta = rope.number("rope_theta")
    match kind := rope.data.get("rope_type", rope.data.get("type", "default")):
        case "default":
            return RopeConfig(theta)
        case "linear":
            return RopeConfig(theta, "linear", factor=rope.number("factor"))
        case "llama3":
            return RopeConfig(
                theta,
                "llama3",
                factor=rope.number("factor"),
                low_freq_factor=rope.number("low_freq_factor"),
                high_freq_factor=rope.number("high_freq_factor"),
                original_context=rope.whole(_ORIGINAL),
            )
        case "yarn":
            return _yarn(rope, fields, theta)
    raise UnsupportedConfig(
        f"config.json: {rope.prefix}rope_type = {kind!r}; the native decoder has default, linear, llama3 and yarn"
    )


def _yarn(rope: Fields, fields: Fields, theta: float) -> RopeConfig:
    if "factor" not in rope.data:
        raise rope.wrong("factor", "must be a positive number")
    rope = rope.over({"truncate": True})
    original = rope.whole(_ORIGINAL)
    factor = rope.optional_number("factor") or fields.whole("max_position_embeddings") / original
    return RopeConfig(
        theta,
        "yarn",
        factor=factor,
        original_context=original,
        beta_fast=rope.optional_number("beta_fast") or 32.0,
        beta_slow=rope.optional_number("beta_slow") or 1.0,
        truncate=rope.flag("truncate"),
        attention_factor=_attention_factor(rope, factor),
    )


def _attention_factor(rope: Fields, factor: float) -> float:
    given = rope.optional_number("attention_factor")
    mscale, mscale_all = rope.optional_number("mscale"), rope.optional_number("mscale_all_dim")
    if given is not None:
        return given
    if mscale and mscale_all:
        return _yarn_mscale(factor, mscale) / _yarn_mscale(factor, mscale_all)
    return _yarn_mscale(factor, 1.0)


def _yarn_mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
