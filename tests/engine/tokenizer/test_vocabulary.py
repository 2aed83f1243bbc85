"""The bytes of tokens are those that the library decodes them to."""

from __future__ import annotations

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstream.engine.tokenizer.vocabulary import Names, vocabulary
from tests.engine.tokenizer.test_process import byte_fallback_json


def byte_level() -> tokenizers.Tokenizer:
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(sorted(alphabet))}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_tokens(["<안녕>"])
    backend.add_special_tokens(["<end>"])
    return backend


KINDS = {"byte-level": byte_level, "byte-fallback": lambda: tokenizers.Tokenizer.from_buffer(byte_fallback_json())}


@pytest.mark.parametrize("kind", KINDS)
def test_joined_bytes_are_what_the_library_decodes(kind: str) -> None:
    backend = KINDS[kind]()
    found = vocabulary(Names.of(backend), special=())

    @settings(deadline=None, max_examples=200)
    @given(st.text(st.sampled_from("abz 안녕🙂\n\x00"), max_size=20))
    def same(text: str) -> None:
        ids = backend.encode(text, add_special_tokens=False).ids
        assert b"".join(found.tokens[i] for i in ids).decode(errors="replace") == backend.decode(ids)

    same()


def test_added_tokens_are_their_text_and_special_ones_are_told_apart() -> None:
    found = vocabulary(Names.of(byte_level()), special={257})
    assert [found.tokens[i].decode() for i in (256, 257)] == ["<안녕>", "<end>"]
    assert found.special == (257,)
