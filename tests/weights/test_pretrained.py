"""from_pretrained: which parameters are the bytes that landed, by their addresses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

import coldstream
from coldstream.weights.checkpoint.checkpoint import open_checkpoint_async
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores.open_store import open_store
from coldstream.weights.stores.store import Pin
from coldstream.weights.transfer.checksum import pinned
from coldstream.weights.transfer.stream import StreamOptions

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "tie_word_embeddings": False,
}


class LandingStore:
    """A folder, and where in memory every byte of it landed. The buffers are kept, so that no address is used twice."""

    def __init__(self, folder: Path) -> None:
        self._inner = open_store(Location.parse(str(folder)))
        self.location = self._inner.location
        self._kept: list[memoryview] = []
        self._landed: list[tuple[int, int]] = []

    async def list(self) -> Mapping[str, Pin]:
        return await self._inner.list()

    async def pin(self, name: str) -> Pin | None:
        return await self._inner.pin(name)

    async def read_range(
        self, pin: Pin, start: int, end: int, *, piecewise: bool = False
    ) -> AsyncGenerator[memoryview, None]:
        async for piece in self._inner.read_range(pin, start, end, piecewise=piecewise):
            with pinned(piece) as address:
                self._landed.append((address, piece.nbytes))
            self._kept.append(piece)
            yield piece

    def close_idle(self) -> None:
        self._inner.close_idle()

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether every byte of the tensor is where it landed."""
        begin = tensor.data_ptr()
        return any(at <= begin and begin + tensor.nbytes <= at + size for at, size in self._landed)


def saved(folder: Path, config: Any, architecture: str) -> Any:
    """A random model of that kind, and its files."""
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(config).eval()
    model.save_pretrained(folder)
    return model


def copied(folder: Path, model: Any, **options: Any) -> set[str]:
    """Load it, hold its parameters against `model`'s; those that are not where they landed."""
    store = LandingStore(folder)
    checkpoint = asyncio.run(open_checkpoint_async(store.location, store=store))
    loaded = coldstream.from_pretrained(checkpoint, **options)
    assert not any(item.is_meta for item in [*loaded.parameters(), *loaded.buffers()])
    wanted = dict(model.named_parameters())
    found = dict(loaded.named_parameters())
    assert found.keys() == wanted.keys()
    assert all(torch.equal(item, wanted[name].to(item.dtype)) for name, item in found.items())
    return {name for name, item in found.items() if not store.holds(item)}


def test_every_parameter_of_a_dense_model_is_what_landed(tmp_path: Path) -> None:
    model = saved(tmp_path, transformers.LlamaConfig(**SIZES), "LlamaForCausalLM")
    assert copied(tmp_path, model) == set()


def test_tied_parameters_share_what_landed(tmp_path: Path) -> None:
    model = saved(tmp_path, transformers.LlamaConfig(**SIZES | {"tie_word_embeddings": True}), "LlamaForCausalLM")
    assert copied(tmp_path, model) == set()


def test_a_tensor_larger_than_a_read_is_assembled_and_not_copied_again(tmp_path: Path) -> None:
    model = saved(tmp_path, transformers.LlamaConfig(**SIZES | {"vocab_size": 4096}), "LlamaForCausalLM")
    names = copied(tmp_path, model, options=StreamOptions(part_size=100_000))
    assert names == {"model.embed_tokens.weight", "lm_head.weight"}


def test_only_the_experts_of_a_mixture_are_copied(tmp_path: Path) -> None:
    config = transformers.MixtralConfig(**SIZES, num_local_experts=4)
    model = saved(tmp_path, config, "MixtralForCausalLM")
    names = copied(tmp_path, model)
    assert names == {name for name, _ in model.named_parameters() if ".mlp.experts." in name}
    assert len(names) == 2 * config.num_hidden_layers


def test_parameters_under_other_names_are_what_landed(tmp_path: Path) -> None:
    """Gemma 3 as transformers 4.57 and the hub have it."""
    text = transformers.Gemma3TextConfig(**{**SIZES, "tie_word_embeddings": True}, head_dim=8)
    tower = transformers.SiglipVisionConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    config = transformers.Gemma3Config(text_config=text, vision_config=tower, mm_tokens_per_image=4)
    model = saved(tmp_path, config, "Gemma3ForConditionalGeneration")
    state = coldstream.load_state_dict(str(tmp_path))
    old = {_old(name): tensor.clone() for name, tensor in state.items()}
    assert old.keys().isdisjoint(name for name, _ in model.named_parameters())
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert copied(tmp_path, model) == set()


def _old(name: str) -> str:
    name = name.removeprefix("model.").replace("vision_tower.", "vision_tower.vision_model.")
    return name if "language_model.model." in name else name.replace("language_model.", "language_model.model.")


def test_another_dtype_is_converted_and_so_copied(tmp_path: Path) -> None:
    model = saved(tmp_path, transformers.LlamaConfig(**SIZES), "LlamaForCausalLM")
    names = copied(tmp_path, model, dtype=torch.bfloat16)
    assert names == {name for name, _ in model.named_parameters()}


def test_the_dtype_of_most_bytes_is_kept_whatever_the_config_says(tmp_path: Path) -> None:
    model = saved(tmp_path, transformers.LlamaConfig(**SIZES), "LlamaForCausalLM")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16", "torch_dtype": "bfloat16"}))
    assert copied(tmp_path, model) == set()


@pytest.mark.parametrize("architectures", [["FSDPMistralForCausalLM"], ["LlamaForCausalLM"], ["PeftModel"]])
def test_model_type_chooses_the_class_and_a_left_over_quantization_config_does_nothing(
    tmp_path: Path, architectures: list[str]
) -> None:
    model = saved(tmp_path, transformers.MistralConfig(**SIZES), "MistralForCausalLM")
    config = json.loads((tmp_path / "config.json").read_text()) | {"architectures": architectures}
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert copied(tmp_path, model) == set()
    assert isinstance(coldstream.from_pretrained(str(tmp_path)), transformers.MistralForCausalLM)
