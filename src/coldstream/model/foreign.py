"""Keys of config.json that other decoders compute with, and the native one does not. Pure, no torch.

A config class of transformers keeps such a key and does nothing with it, or does something in the cache or the mask
only; a checkpoint with it is a model that this is not. So it is refused by name unless its value changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from coldstream.model.fields import Fields

_OFF: tuple[Any, ...] = (None, False, 0, "")
_ONE: tuple[Any, ...] = (None, 1)

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    # positions and masks
    "alibi": _OFF,
    "attention_chunk_size": _OFF,
    "is_causal": (True,),
    "is_encoder_decoder": _OFF,
    "add_cross_attention": _OFF,
    "cross_attention_layers": _OFF,
    "no_rope_layers": _OFF,
    "no_rope_layer_interval": _OFF,
    "nope_layer_interval": _OFF,
    "partial_rotary_factor": _ONE,
    "rotary_pct": _ONE,
    "rope_interleaved": _OFF,
    "sliding_window_pattern": _OFF,
    "use_bidirectional_attention": _OFF,
    # scores, norms and sums
    "attention_multiplier": _OFF,
    "attn_logit_softcapping": _OFF,
    "attn_output_gate": _OFF,
    "attn_temperature_tuning": _OFF,
    "clip_qkv": _OFF,
    "embedding_multiplier": _ONE,
    "final_logit_softcapping": _OFF,
    "logit_scale": _ONE,
    "logits_scaling": _ONE,
    "parallel_attn": _OFF,
    "qk_layernorm": _OFF,
    "qk_norm": _OFF,
    "query_pre_attn_scalar": _OFF,
    "residual_multiplier": _ONE,
    "scale_depth": _OFF,
    "scale_emb": _ONE,
    "use_parallel_residual": _OFF,
    "use_qk_norm": _OFF,
    # layers of another make
    "altup_num_inputs": _OFF,
    "hidden_size_per_layer_input": _OFF,
    "kv_lora_rank": _OFF,
    "n_routed_experts": _OFF,
    "num_experts": _OFF,
    "num_kv_shared_layers": _OFF,
    "num_local_experts": _OFF,
    "per_layer_config": _OFF,
    "pruned_heads": _OFF,
    "q_lora_rank": _OFF,
}


def refuse_foreign(fields: Fields, *, own: Collection[str] = ()) -> None:
    """Raise UnsupportedConfig for a key with an effect that only other models have; `own` are the model's after all."""
    for name in fields.data.keys() & _NEUTRAL.keys() - set(own):
        value = fields.data[name]
        empty = isinstance(value, list | tuple | dict) and not value
        if not empty and not any(value is neutral or value == neutral for neutral in _NEUTRAL[name]):
            raise fields.wrong(name, "is not implemented by the native decoder")
