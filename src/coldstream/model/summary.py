"""Checkpoint -> what a person wants to know before loading it, as plain data. No torch, no tensor bytes."""

from __future__ import annotations

from collections import Counter
from typing import Any

from coldstream.errors import ModelError
from coldstream.model.architecture import listed
from coldstream.model.config import ModelConfig
from coldstream.model.findings import findings
from coldstream.weights.checkpoint.checkpoint import Checkpoint

_RUN_BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.05}
"""Bytes a parameter by precision; int8 has a scale a row beside the weights, and the norms stay float32."""
_TEMPLATES = ("chat_template.jinja", "chat_template.json")


def summarize(checkpoint: Checkpoint, *, tensors: bool = False) -> dict[str, Any]:
    """Plain data for JSON; sizes in bytes. `tensors` adds a row for each."""
    decoder = _decoder(checkpoint)
    dtypes = Counter[str]()
    for info in checkpoint.tensors.values():
        dtypes[info.dtype] += info.numel
    report: dict[str, Any] = {
        "uri": str(checkpoint.location),
        "revision": checkpoint.revision,
        "architecture": decoder.pop("architecture"),
        "decoder": decoder,
        "warnings": decoder.pop("warnings"),
        "parameters": checkpoint.total_parameters,
        "dtypes": dict(dtypes),
        "tensors": len(checkpoint.tensors),
        "shards": [_shard(checkpoint, shard.name) for shard in checkpoint.shards],
        "bytes_to_read": checkpoint.total_bytes,
        "memory": {name: round(checkpoint.total_parameters * size) for name, size in _RUN_BYTES.items()},
        "tokenizer": _tokenizer(checkpoint),
        "chat_template": _template(checkpoint),
        "files_left_alone": _left_alone(checkpoint),
    }
    if tensors:
        report["tensor_list"] = [
            {
                "name": info.name,
                "dtype": info.dtype,
                "shape": list(info.shape),
                "bytes": info.nbytes,
                "shard": info.file,
            }
            for info in checkpoint.tensors.values()
        ]
    return report


def _decoder(checkpoint: Checkpoint) -> dict[str, Any]:
    """Which decoder would serve it, with what is odd about it; `native` false comes with the reason."""
    said = next(iter(listed(checkpoint.config)), checkpoint.config.get("model_type", "unknown"))
    warnings = checkpoint.warnings
    try:
        warnings = findings(checkpoint)
        config = ModelConfig.from_json(checkpoint.config)
    except ModelError as exc:
        return {"architecture": said, "warnings": list(warnings), "native": False, "why": str(exc)}
    windows = Counter("full" if layer.window is None else f"window {layer.window}" for layer in config.layers)
    return {
        "architecture": config.architecture,
        "warnings": list(warnings),
        "native": True,
        "layers": len(config.layers),
        "attention": dict(windows),
        "hidden_size": config.hidden_size,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_positions": config.max_positions,
        "cache_bytes_per_token": 2 * len(config.layers) * config.kv_heads * config.head_dim * 4,
    }


def _shard(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    pin = checkpoint.files[name]
    held = [info for info in checkpoint.tensors.values() if info.file == name]
    return {
        "name": name,
        "bytes": pin.size,
        "tensors": len(held),
        "version": pin.version,
        "crc32c": pin.crc32c is not None,
    }


def _tokenizer(checkpoint: Checkpoint) -> dict[str, Any] | None:
    pin = checkpoint.files.get("tokenizer.json")
    return None if pin is None else {"file": pin.name, "bytes": pin.size}


def _template(checkpoint: Checkpoint) -> str | None:
    """The file that holds it; tokenizer_config.json is only named, its content is not read here."""
    return next((name for name in _TEMPLATES if name in checkpoint.files), None)


def _left_alone(checkpoint: Checkpoint) -> list[str]:
    """Large files of the folder that are not part of the model: they are never fetched."""
    read = {shard.name for shard in checkpoint.shards}
    endings = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx")
    return sorted(name for name in checkpoint.files if name.endswith(endings) and name not in read)
