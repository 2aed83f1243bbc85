"""Checkpoint keys: every layout is mapped, what must not be loaded is refused, nothing is guessed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstream.errors import ParameterMismatch
from coldstream.model.names import Head, Ignored, Text, Unknown, Vision, destination

NAMES = ["embed_tokens.weight", "norm.weight", "lm_head.weight", "layers.11.self_attn.q_norm.weight"]
PREFIXES = [
    "",
    "model.",
    "language_model.",
    "language_model.model.",
    "model.language_model.",
    "model.language_model.model.",
]


@given(
    name=st.sampled_from(NAMES),
    prefix=st.sampled_from(PREFIXES),
    wrappers=st.lists(st.sampled_from(["base_model.model.", "module.", "_orig_mod."]), max_size=3),
)
def test_prefixes_and_wrappers_are_taken_off(name: str, prefix: str, wrappers: list[str]) -> None:
    assert destination("".join(wrappers) + prefix + name) == Text(name)


PARTS = ["_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_orig_mod", "base_layer", "module", "pretrained_model"]


@given(
    name=st.sampled_from([f"model.{name}" for name in NAMES]),
    inserted=st.lists(st.tuples(st.integers(0, 6), st.sampled_from(PARTS)), max_size=3),
)
def test_a_wrapper_is_taken_off_wherever_it_stands(name: str, inserted: list[tuple[int, str]]) -> None:
    parts = name.split(".")
    for place, wrapper in inserted:
        parts.insert(min(place, len(parts) - 1), wrapper)
    assert destination(".".join(parts)) == Text(name.removeprefix("model."))


@pytest.mark.parametrize("key", ["v_head.summary.weight", "pretrained_model.v_head.0.bias", "score.weight"])
def test_a_head_beside_the_model_is_known_as_one(key: str) -> None:
    assert isinstance(destination(key), Head)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("vision_tower.vision_model.embeddings.patch_embedding.weight", None),
        ("vision_tower.encoder.layers.0.mlp.fc1.bias", None),
        ("model.vision_tower.encoder.layers.0.mlp.fc1.bias", "vision_tower.encoder.layers.0.mlp.fc1.bias"),
        ("model.multi_modal_projector.mm_soft_emb_norm.weight", "multi_modal_projector.mm_soft_emb_norm.weight"),
        ("base_model.model.model.vision_tower.post_layernorm.bias", "vision_tower.post_layernorm.bias"),
    ],
)
def test_vision_tensors_are_recognised_in_every_layout(key: str, name: str | None) -> None:
    assert destination(key) == Vision(name or key)


@pytest.mark.parametrize("key", ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"])
def test_buffers_of_older_versions_are_ignored_with_a_reason(key: str) -> None:
    found = destination(key)
    assert isinstance(found, Ignored)
    assert "computed" in found.reason


@pytest.mark.parametrize(
    "key",
    [
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",
        "base_model.model.lm_head.original_module.weight",
        "base_model.model.model.embed_tokens.modules_to_save.default.weight",
        "model.layers.0.mlp.up_proj.lora_magnitude_vector",
        "model.embed_tokens.lora_embedding_A.default",
    ],
)
def test_an_unmerged_adapter_is_refused_with_the_next_step(key: str) -> None:
    with pytest.raises(ParameterMismatch, match="merge_and_unload") as caught:
        destination(key)
    assert key in str(caught.value)


@pytest.mark.parametrize("end", ["qweight", "qzeros", "weight.absmax", "weight.quant_map", "weight_scale_inv", "SCB"])
def test_quantised_weights_are_refused_by_name(end: str) -> None:
    with pytest.raises(ParameterMismatch, match="quantised"):
        destination(f"model.layers.0.mlp.up_proj.{end}")


@pytest.mark.parametrize(
    "key", ["", "weight", "model.layers.x.mlp.up_proj.weight", "transformer.h.0.attn.weight", "actor.layers.0.x"]
)
def test_an_unknown_key_is_not_guessed(key: str) -> None:
    assert destination(key) == Unknown()


@given(key=st.text(max_size=60))
def test_any_key_has_a_destination_or_a_named_refusal(key: str) -> None:
    try:
        found = destination(key)
    except ParameterMismatch:
        return
    assert isinstance(found, Text | Vision | Head | Ignored | Unknown)
