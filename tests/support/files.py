"""Small checkpoints, byte by byte, without torch or safetensors: also such as no library would write."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from coldstream.weights.checkpoint.header import DTYPE_BITS

Tensors = Mapping[str, tuple[str, Sequence[int], bytes]]


def header(table: Mapping[str, Any] | str | bytes) -> bytes:
    """Length and JSON."""
    text = table if isinstance(table, bytes) else (table if isinstance(table, str) else json.dumps(table)).encode()
    return len(text).to_bytes(8, "little") + text


def safetensors(tensors: Tensors) -> bytes:
    """A valid file."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (dtype, shape, data) in tensors.items():
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + len(data)]}
        position += len(data)
    return header(table) + b"".join(data for _, _, data in tensors.values())


def tensor(draw: random.Random, dtype: str, *shape: int) -> tuple[str, Sequence[int], bytes]:
    """Random bytes of a shape."""
    count = 1
    for size in shape:
        count *= size
    return dtype, shape, draw.randbytes(count * DTYPE_BITS[dtype] // 8)


def model(seed: int = 0, *, layers: int = 3, width: int = 8) -> dict[str, tuple[str, Sequence[int], bytes]]:
    """A decoder's tensors in alphabetical order, as they lie in files, with an embedding larger than all the rest."""
    draw = random.Random(seed)
    tensors = {
        "model.embed_tokens.weight": tensor(draw, "BF16", 64, width),
        "model.norm.weight": tensor(draw, "F32", width),
    }
    for layer in range(layers):
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = tensor(draw, "F32", width)
        tensors[f"model.layers.{layer}.mlp.up_proj.weight"] = tensor(draw, "BF16", 2 * width, width)
        tensors[f"model.layers.{layer}.self_attn.empty"] = tensor(draw, "BF16", 0, width)
        tensors[f"model.layers.{layer}.self_attn.q_proj.weight"] = tensor(draw, "I8", width, width)
    return dict(sorted(tensors.items()))


def checkpoint(tensors: Tensors, *, shards: int = 1) -> dict[str, bytes]:
    """A folder: config.json and the weights, with an index when there are several shards."""
    files = {"config.json": json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}).encode()}
    if shards == 1:
        return {**files, "model.safetensors": safetensors(tensors)}
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for number in range(shards):
        part = names[len(names) * number // shards : len(names) * (number + 1) // shards]
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        files[file] = safetensors({name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    return {**files, "model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode()}
