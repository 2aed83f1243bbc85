"""Other architectures, through transformers, over the same seam to keys and values as the native decoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from coldstream.backends.torch.fallback import FallbackAssembly, FallbackDecoder
from coldstream.backends.torch.layers import DenseAttention, DenseSequence
from coldstream.errors import ParameterMismatch, StoreUnavailable, UnknownArchitecture, UnsupportedConfig
from tests.support import tiny
from tools.parity import greedy

PROMPT = [5, 9, 2, 77, 31, 8, 8, 120, 64, 3, 17]
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def make(name: str, **changes: Any) -> tiny.Tiny:
    config = getattr(transformers, f"{name}Config")(**tiny.SHAPE | TOKENS | changes)
    return tiny.make(config, f"{name}ForCausalLM")


def filled(made: tiny.Tiny, tensors: dict[str, Tensor] | None = None) -> FallbackDecoder:
    tensors = made.tensors if tensors is None else tensors
    decoder = FallbackDecoder(made.config)
    assembly = FallbackAssembly(decoder, {name: tensor.shape for name, tensor in tensors.items()})
    for name, tensor in tensors.items():
        assembly.assign(name, tensor)
    assembly.finish()
    return decoder


@pytest.mark.parametrize(
    ("name", "changes"),
    [("Phi3", {}), ("Olmo2", {}), ("Starcoder2", {"sliding_window": 8}), ("Cohere", {"tie_word_embeddings": True})],
)
def test_logits_and_greedy_tokens_are_those_of_transformers(name: str, changes: dict[str, Any]) -> None:
    made = make(name, **changes)
    tokens, logits = greedy(filled(made), PROMPT, 16)  # type: ignore[arg-type]
    with torch.inference_mode():
        reference = made.model(torch.tensor([PROMPT + tokens[:-1]])).logits[0]
    assert float((logits - reference).abs().max()) < 1e-3
    assert tokens == reference[len(PROMPT) - 1 :].argmax(-1).tolist()


def test_several_sequences_share_one_flat_step() -> None:
    made = make("Phi3")
    decoder = filled(made)
    attend = DenseAttention(decoder.config)  # type: ignore[arg-type]
    prompts = [PROMPT, PROMPT[:3], [40]]
    positions = attend.begin([(DenseSequence(), len(prompt)) for prompt in prompts])
    last = torch.tensor([10, 13, 14])
    logits = decoder.forward(torch.tensor([token for prompt in prompts for token in prompt]), positions, attend, last)
    with torch.inference_mode():
        alone = torch.cat([made.model(torch.tensor([prompt])).logits[0, -1:] for prompt in prompts])
    assert torch.allclose(logits, alone, atol=1e-4)


def test_a_mixture_of_experts_is_served_from_its_files_layout(tmp_path: Any) -> None:
    from safetensors.torch import load_file

    made = make("Qwen3Moe", **MOE)
    made.model.save_pretrained(tmp_path)  # experts lie one by one in files, and are merged in memory
    tensors = load_file(tmp_path / "model.safetensors")
    assert any(".experts.0." in name for name in tensors)
    _, logits = greedy(filled(made, tensors), PROMPT, 1)  # type: ignore[arg-type]
    with torch.inference_mode():
        assert float((logits - made.model(torch.tensor([PROMPT])).logits[0]).abs().max()) < 1e-3


def test_a_missing_parameter_is_named_and_never_random() -> None:
    made = make("Phi3")
    tensors = {name: tensor for name, tensor in made.tensors.items() if "layers.2.mlp.down_proj" not in name}
    with pytest.raises(ParameterMismatch, match=r"layers\.2\.mlp\.down_proj\.weight is missing"):
        filled(made, tensors)


def test_an_unexpected_parameter_is_named() -> None:
    made = make("Phi3")
    with pytest.raises(ParameterMismatch, match=r"model\.extra\.weight is unexpected"):
        filled(made, made.tensors | {"model.extra.weight": torch.zeros(3)})


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [("Gemma2", {}, "softcapping"), ("GptOss", {"num_local_experts": 4}, "sinks")],
)
def test_what_the_seam_cannot_carry_is_refused_before_a_byte(name: str, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedConfig, match=named):
        FallbackDecoder(make(name, **changes).config)


def test_code_from_the_checkpoint_is_never_run() -> None:
    config = {"architectures": ["EvilForCausalLM"], "auto_map": {"AutoModelForCausalLM": "evil.EvilForCausalLM"}}
    with pytest.raises(UnknownArchitecture, match="never run"):
        FallbackDecoder(config)


def test_a_load_that_fails_reaches_forward() -> None:
    made = make("Phi3")
    decoder = FallbackDecoder(made.config)
    FallbackAssembly(decoder, {}).fail(StoreUnavailable("the bucket is gone"))
    with pytest.raises(StoreUnavailable, match="gone"):
        greedy(decoder, PROMPT, 1)  # type: ignore[arg-type]
