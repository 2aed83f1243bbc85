"""The tokenizer in a process of its own answers as the library does, and survives its process."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldstream.engine.added_tokens import Declared
from coldstream.engine.tokenizer import Tokenizer
from coldstream.engine.tokenizer_process import TokenizerProcess
from coldstream.errors import TokenizerError

NOTHING = Declared({})
WORDS = ["<unk>", "<bos>", "hello", "world", "안녕", "🙂"]


def byte_fallback_json() -> bytes:
    """A tokenizer as Gemma's: pieces with ▁ for spaces, bytes for what is not in the vocabulary."""
    vocab = {word: number for number, word in enumerate(["<pad>", "<bos>", "▁a", "b", "안", "녕", "▁"])}
    vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}
    decoders = tokenizers.decoders
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [], byte_fallback=True))
    backend.add_special_tokens(["<pad>", "<bos>"])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    text: str = backend.to_str()
    return text.encode()


def tokenizer_json() -> bytes:
    model = tokenizers.models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<bos>"])
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    text: str = backend.to_str()
    return text.encode()


@pytest.fixture
def process() -> Iterator[TokenizerProcess]:
    started = TokenizerProcess()
    yield started
    started.close()


def test_it_answers_as_the_library_in_our_own_process_does(process: TokenizerProcess) -> None:
    files = {"tokenizer.json": tokenizer_json()}
    here, there = Tokenizer.load(files), Tokenizer.load(files, build=process.build)
    for text in ("hello world", "안녕 hello", "", "nothing known 🙂"):
        for special in (True, False):
            ids = here.encode(text, add_special_tokens=special)
            assert there.encode(text, add_special_tokens=special) == ids
            assert there.decode(ids, skip_special_tokens=special) == here.decode(ids, skip_special_tokens=special)
    assert there.vocab_size == here.vocab_size


def test_a_broken_file_is_an_error_that_names_it(process: TokenizerProcess) -> None:
    with pytest.raises(TokenizerError, match=r"gs://b/m/tokenizer.json"):
        process.build(b"{}", NOTHING, source="gs://b/m")


def test_a_killed_process_is_started_again_from_the_same_file(process: TokenizerProcess) -> None:
    process.build(tokenizer_json(), NOTHING, source="gs://b/m")
    os.kill(process.pid, signal.SIGKILL)
    assert process.encode("hello", add_special_tokens=False) == [2]


def test_a_call_that_fails_leaves_the_process_usable(process: TokenizerProcess) -> None:
    process.build(tokenizer_json(), NOTHING, source="gs://b/m")
    with pytest.raises(TokenizerError):
        process.encode("\ud800")
    assert process.decode([2, 3]) == "hello world"


def test_decoding_is_the_librarys_whatever_the_tokens(process: TokenizerProcess) -> None:
    library = tokenizers.Tokenizer.from_buffer(byte_fallback_json())
    process.build(byte_fallback_json(), NOTHING, source="gs://b/m")

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(st.lists(st.integers(0, 300), max_size=12), st.booleans())
    def same(ids: list[int], skip: bool) -> None:
        assert process.decode(ids, skip_special_tokens=skip) == library.decode(ids, skip_special_tokens=skip)

    same()


def test_the_vocabulary_is_the_same_as_in_our_own_process(process: TokenizerProcess) -> None:
    files = {"tokenizer.json": byte_fallback_json()}
    assert Tokenizer.load(files, build=process.build).vocabulary() == Tokenizer.load(files).vocabulary()


def test_tokens_without_bytes_of_their_own_are_named(process: TokenizerProcess) -> None:
    with pytest.raises(TokenizerError, match="byte-level or byte-fallback"):
        Tokenizer.load({"tokenizer.json": tokenizer_json()}, build=process.build).vocabulary()
