"""The tokenizer in a process of its own answers as the library does, and survives its process."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldstream.engine.tokenizer.added_tokens import Declared
from coldstream.engine.tokenizer.control_tokens import ControlTokens
from coldstream.engine.tokenizer.process import LONG, TokenizerProcess
from coldstream.engine.tokenizer.tokenizer import Tokenizer
from coldstream.errors import EngineError, InvalidRequest, TokenizerError, TooCostly

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


def test_a_name_is_there_while_a_long_text_is_encoded_and_short_ones_are_too(process: TokenizerProcess) -> None:
    process.build(byte_fallback_json(), NOTHING, source="gs://b/m")
    long = "a b " * 500_000
    with ThreadPoolExecutor(1) as beside:
        encoded = beside.submit(process.encode, long)
        for number in range(200):
            process.decode([number])
            process.encode("a b")
        assert not encoded.done()
        assert len(encoded.result()) > 500_000


def exploding(factor: int, times: int) -> bytes:
    """A tokenizer whose normalizer multiplies each letter by the factor, again and again."""
    backend = tokenizers.Tokenizer.from_str(byte_fallback_json().decode())
    backend.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Replace("b", "b" * factor)] * times)
    text: str = backend.to_str()
    return text.encode()


@pytest.mark.parametrize("text", ["bb", "b" * (LONG + 1)])
def test_a_normalizer_that_makes_terabytes_of_a_text_is_ended_and_others_are_answered(
    process: TokenizerProcess, text: str
) -> None:
    process.build(exploding(1000, 4), NOTHING, source="gs://b/m")
    with pytest.raises(
        TooCostly, match=r"prompt: tokenizing takes more than \d+ s of the processor or \d+ MiB"
    ) as caught:
        process.encode(text)
    assert caught.value.field == "prompt"
    assert process.decode(process.encode("안")) == "안"


def test_a_decoder_that_multiplies_a_text_is_refused_since_it_runs_here(process: TokenizerProcess) -> None:
    backend = tokenizers.Tokenizer.from_str(byte_fallback_json().decode())
    backend.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.Replace("b", "b" * 100)] * 6)
    with pytest.raises(TokenizerError, match=r"gs://b/m/tokenizer\.json .*decoder may make a text \d+ times as long"):
        process.build(backend.to_str().encode(), NOTHING, source="gs://b/m")


def test_what_the_other_files_declare_is_known_there_too(process: TokenizerProcess) -> None:
    config = b'{"added_tokens_decoder": {"9": {"content": "<x>"}}, "eos_token": "b"}'
    files = {"tokenizer.json": byte_fallback_json(), "tokenizer_config.json": config}
    process.begin(files["tokenizer.json"], Declared.from_files(files, source="gs://b/m"))
    here, there = Tokenizer.load(files), Tokenizer.load(files, build=process.build)
    for text in ("a<x>b", "안녕<pad>"):
        assert there.encode(text) == here.encode(text)
        assert there.offsets(text) == here.offsets(text)
    assert there.special_texts == here.special_texts
    assert there.longest_text(7) == here.longest_text(7) == 7 * len("<pad>")
    numbers = range(here.vocab_size + 1)
    assert [there.token_bytes(number) for number in numbers] == [here.token_bytes(number) for number in numbers]
    os.kill(process.pid, signal.SIGKILL)
    assert there.encode("a<x>b") == here.encode("a<x>b")


def test_a_control_token_that_cannot_be_text_is_the_requests_fault(process: TokenizerProcess) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "x": 1}, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.add_special_tokens(["x"])
    process.build(backend.to_str().encode(), NOTHING, source="gs://b/m")
    with pytest.raises(InvalidRequest, match="'x' is a control token"):
        process.encode(ControlTokens(["x"]).mark("x"))


def test_each_of_its_processes_may_be_killed(process: TokenizerProcess) -> None:
    process.build(byte_fallback_json(), NOTHING, source="gs://b/m")
    before = process.encode("a b"), process.encode("a b" * 6000)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    assert (process.encode("a b"), process.encode("a b" * 6000)) == before


def test_they_end_when_they_are_closed(process: TokenizerProcess) -> None:
    process.build(byte_fallback_json(), NOTHING, source="gs://b/m")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.close()
    # What is left of a killed process until its new parent has looked is a zombie.
    for child in children:
        status = Path(f"/proc/{child}/stat")
        assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] in ("Z", "X")


def test_what_is_closed_is_not_started_again(process: TokenizerProcess) -> None:
    process.build(byte_fallback_json(), NOTHING, source="gs://b/m")
    before = process.pid
    process.close()
    with pytest.raises(EngineError, match="closed"):
        process.encode("a b")
    assert process.pid == before
    process.close()
