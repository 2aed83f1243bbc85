"""Tokens that only the files beside tokenizer.json know have the ids that transformers' AutoTokenizer gives them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from coldstream.engine.tokenizer.tokenizer import Tokenizer
from coldstream.errors import TokenizerError

WORDS = ("<bos>", "<eos>", "<pad>", "<unk>", "<x>", "<y>", "<call>", "hat", "a b")
TEXTS = ("a<x>b", " <x> <y>\t<call>hat<eos>", "that hat a b", "<bos>안녕<y>", "<pad><unk>a", "")


def byte_level() -> tokenizers.Tokenizer:
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "a"), ("ha", "t"), ("t", "hat")]
    names = [*alphabet, "ha", "hat", "that", "<y>"]
    model = tokenizers.models.BPE({name: number for number, name in enumerate(names)}, merges)
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<bos>", "<eos>"])
    backend.add_tokens(["<call>"])
    return backend


def byte_fallback() -> tokenizers.Tokenizer:
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", "a", "b", "t", "h", "ha", "hat"]
    names = [*pieces, *(f"<0x{byte:02X}>" for byte in range(256)), "<x>"]
    merges = [("h", "a"), ("ha", "t")]
    vocab = {name: number for number, name in enumerate(names)}
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    backend.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    decoders = tokenizers.decoders
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>"])
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return backend


def words() -> tokenizers.Tokenizer:
    model = tokenizers.models.WordLevel({"<unk>": 0, "a": 1, "b": 2, "hat": 3, "<y>": 4}, unk_token="<unk>")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return backend


KINDS = {"byte-level": byte_level, "byte-fallback": byte_fallback, "words": words}

flags = st.fixed_dictionaries(
    {"content": st.sampled_from(WORDS)},
    optional={name: st.booleans() for name in ("special", "lstrip", "rstrip", "single_word", "normalized")},
)
texts = st.sampled_from(WORDS)
# As AddedToken writes itself into tokenizer_config.json.
typed = flags.map(lambda token: {"__type": "AddedToken", **token})
named = st.dictionaries(
    st.sampled_from(["bos_token", "eos_token", "pad_token", "unk_token", "mask_token", "image_token"]),
    texts,
    max_size=4,
)
listed = st.dictionaries(st.integers(0, 400).map(str), flags, max_size=4)
extra = st.one_of(
    st.lists(texts | typed, max_size=3), st.dictionaries(st.sampled_from(["eoi_token", "boi_token"]), texts, max_size=2)
)
config = st.builds(
    lambda *parts: {key: value for part in parts for key, value in part.items()},
    named,
    st.fixed_dictionaries({}, optional={"added_tokens_decoder": listed}),
    st.fixed_dictionaries(
        {},
        optional={
            "extra_special_tokens": extra,
            "additional_special_tokens": st.lists(texts | typed, max_size=3),
            "add_bos_token": st.booleans(),
            "add_eos_token": st.booleans(),
            "split_special_tokens": st.booleans(),
            "bos_token": st.none(),
        },
    ),
)
special_map = st.builds(
    lambda first, second: first | second,
    st.dictionaries(st.sampled_from(["bos_token", "eos_token", "pad_token"]), texts | flags, max_size=2),
    st.fixed_dictionaries({}, optional={"additional_special_tokens": st.lists(texts, max_size=2)}),
)
added = st.dictionaries(texts, st.integers(0, 400), max_size=3)


def write(folder: Path, backend: tokenizers.Tokenizer, more: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of a checkpoint, there and in hand; nothing of another one is left."""
    files = {"tokenizer.json": backend.to_str().encode(), "config.json": b'{"model_type": "llama"}'}
    files |= {name: json.dumps(content).encode() for name, content in more.items() if content is not None}
    for old in folder.iterdir():
        old.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return files


def reference(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_auto_tokenizer_wherever_tokens_are_declared(kind: str, tmp_path: Path) -> None:
    @settings(max_examples=40, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(config, st.none() | special_map, st.none() | added)
    def same(config: dict[str, Any], special_map: dict[str, Any] | None, added: dict[str, int] | None) -> None:
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
        more = {"tokenizer_config.json": config, "special_tokens_map.json": special_map, "added_tokens.json": added}
        files = write(tmp_path, KINDS[kind](), more)
        theirs, ours = reference(tmp_path), Tokenizer.load(files)
        assert ours.special_tokens == theirs.special_tokens_map
        for text in TEXTS:
            for special in (True, False):
                ids = theirs(text, add_special_tokens=special)["input_ids"]
                assert ours.encode(text, add_special_tokens=special) == ids, text
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.vocab_size == len(theirs)

    same()


def test_a_token_that_only_the_config_knows_is_one_token_after_the_last_id(tmp_path: Path) -> None:
    token = {"content": "<x>", "special": False}
    files = write(tmp_path, byte_level(), {"tokenizer_config.json": {"added_tokens_decoder": {"9": token}}})
    ours = Tokenizer.load(files)
    assert ours.encode("a<x>b")[1] == Tokenizer.load({"tokenizer.json": files["tokenizer.json"]}).vocab_size
    assert ours.decode(ours.encode("a<x>b")) == "a<x>b"


@pytest.mark.parametrize("name", ["LlamaTokenizerFast", "Qwen2Tokenizer", "GPT2TokenizerFast", "GemmaTokenizer"])
def test_a_class_that_names_its_tokens_names_them_for_templates(name: str, tmp_path: Path) -> None:
    files = write(tmp_path, byte_level(), {"tokenizer_config.json": {"tokenizer_class": name, "eos_token": "<eos>"}})
    known = getattr(transformers, name.removesuffix("Fast"))().special_tokens_map
    assert Tokenizer.load(files).special_tokens == {**known, "eos_token": "<eos>"}


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "<x>"}}}, "'x' is no token id"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"7": "<x>"}}, r"added_tokens_decoder\.7"),
        ("tokenizer_config.json", {"added_tokens_decoder": []}, "added_tokens_decoder"),
        ("tokenizer_config.json", {"eos_token": 7}, "eos_token"),
        ("tokenizer_config.json", {"extra_special_tokens": [{"special": True}]}, "special tokens has no text"),
        ("special_tokens_map.json", {"bos_token": {"content": "<x>", "lstrip": "yes"}}, "lstrip must be true or false"),
        ("added_tokens.json", {"<x>": "many"}, r"added_tokens\.json: 'many'"),
    ],
)
def test_what_is_no_token_is_named(file: str, content: dict[str, Any], said: str) -> None:
    files = {"tokenizer.json": byte_level().to_str().encode(), file: json.dumps(content).encode()}
    with pytest.raises(TokenizerError, match=said):
        Tokenizer.load(files, source="gs://b/m")
