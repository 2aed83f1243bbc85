"""Checkpoints with the shapes of Gemma 3 and random weights, for benchmarks that only bytes and sizes matter to."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SHARD_BYTES = 2_000_000_000
_PERIOD = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class GemmaShape:
    """As the config.json of google/gemma-3-*-it says."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    head_dim: int = 256
    window: int = 512
    context: int = 32_768
    vocab: int = 262_144

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes, as transformers writes them."""
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        for index in range(self.layers):
            yield from self._layer(f"model.layers.{index}.")
        yield "model.norm.weight", (self.hidden,)

    def _layer(self, prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        around = (
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        )
        for name in around:
            yield f"{prefix}{name}.weight", (self.hidden,)
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        for name, rows in (("q", queries), ("k", keys), ("v", keys)):
            yield f"{prefix}self_attn.{name}_proj.weight", (rows, self.hidden)
        for name in ("q", "k"):
            yield f"{prefix}self_attn.{name}_norm.weight", (self.head_dim,)
        yield f"{prefix}self_attn.o_proj.weight", (self.hidden, queries)
        for name in ("gate", "up"):
            yield f"{prefix}mlp.{name}_proj.weight", (self.intermediate, self.hidden)
        yield f"{prefix}mlp.down_proj.weight", (self.hidden, self.intermediate)

    def config(self, like: dict[str, Any]) -> dict[str, Any]:
        """The configuration of another size, with these sizes."""
        kinds = ["full_attention" if (index + 1) % 6 == 0 else "sliding_attention" for index in range(self.layers)]
        return like | {
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.intermediate,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab,
            "layer_types": kinds,
            "sliding_window": self.window,
            "query_pre_attn_scalar": self.head_dim,
            "max_position_embeddings": self.context,
        }


SHAPES: Mapping[str, GemmaShape] = {
    "270m": GemmaShape(640, 18, 4, 1, 2048),
    "1b": GemmaShape(1152, 26, 4, 1, 6912),
    "4b": GemmaShape(2560, 34, 8, 4, 10_240, window=1024),
}


def write(shape: GemmaShape, folder: Path, tokenizer: Path) -> int:
    """A checkpoint; the bytes of its tensors. Weights repeat every 16 MiB, which no part of a load notices."""
    noise = random.Random(0)  # noqa: S311  bytes to fill files with
    # bfloat16 of about 0.02 in size: sign and a few exponents at random, as trained weights have.
    block = b"".join(
        bytes((noise.getrandbits(8), 0x3C + noise.getrandbits(1) - noise.getrandbits(1) | noise.getrandbits(1) << 7))
        for _ in range(1 << 16)
    )
    block *= _PERIOD // len(block)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, sizes in shape.tensors():
        if shards[-1] and _bytes(shards[-1]) + _bytes({name: sizes}) > _SHARD_BYTES:
            shards.append({})
        shards[-1][name] = sizes
    files = {f"model-{n:05d}-of-{len(shards):05d}.safetensors": shard for n, shard in enumerate(shards, 1)}
    for file, shard in files.items():
        _write_shard(folder / file, shard, block)
    index = {"metadata": {}, "weight_map": {name: file for file, shard in files.items() for name in shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((tokenizer / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(shape.config(config)))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, folder / name)
    return sum(map(_bytes, shards))


def _bytes(tensors: dict[str, tuple[int, ...]]) -> int:
    total = 0
    for sizes in tensors.values():
        product = 2
        for size in sizes:
            product *= size
        total += product
    return total


def _write_shard(path: Path, tensors: dict[str, tuple[int, ...]], block: bytes) -> None:
    header: dict[str, Any] = {}
    end = 0
    for name, sizes in tensors.items():
        start, end = end, end + _bytes({name: sizes})
        header[name] = {"dtype": "BF16", "shape": sizes, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for at in range(0, end, len(block)):
            file.write(block[: end - at])
