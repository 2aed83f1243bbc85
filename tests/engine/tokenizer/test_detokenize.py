"""Text leaves as soon as it is certain, never half a character and never a part of a stop string."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstream.engine.tokenizer.detokenize import Detokenizer, StopStrings
from coldstream.engine.tokenizer.tokenizer import Tokenizer
from tests.support.parts import BYTES, SPECIAL, VOCAB, make_tokenizer

TOKENIZER = make_tokenizer()


@pytest.fixture
def tokenizer() -> Tokenizer:
    return TOKENIZER


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer, tokenizer.encode("the prompt"))
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@settings(deadline=None, max_examples=50)
@given(
    st.text(alphabet=st.characters(blacklist_categories=["Cs"], blacklist_characters="▁�")).filter(
        lambda text: not any(name in text for name in SPECIAL)
    )
)
def test_any_text_comes_back_whole_and_without_half_characters(text: str) -> None:
    tokenizer = TOKENIZER
    got = pieces(tokenizer, tokenizer.encode(text))
    assert "".join(got) == text
    assert not any("�" in piece for piece in got)


def test_a_korean_character_of_three_byte_tokens_leaves_with_its_last_byte(tokenizer: Tokenizer) -> None:
    ids = [VOCAB[f"<0x{byte:02X}>"] for byte in "한😀".encode()]
    assert pieces(tokenizer, ids) == ["", "", "한", "", "", "", "😀", ""]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(sorted(VOCAB.values())), max_size=40))
def test_any_tokens_give_text_in_the_end(ids: list[int]) -> None:
    tokenizer = TOKENIZER
    got = pieces(tokenizer, ids)
    if tokenizer.decode(ids):
        assert "".join(got)


def test_endless_broken_bytes_are_not_held_back_for_ever(tokenizer: Tokenizer) -> None:
    got = pieces(tokenizer, [VOCAB["<0xFF>"]] * 100)
    assert sum(map(bool, got)) >= 20
    assert "".join(got).count("�") == 100


def test_half_a_character_at_the_end_becomes_a_replacement(tokenizer: Tokenizer) -> None:
    assert pieces(tokenizer, [VOCAB["b"], VOCAB[BYTES[0xED]]]) == ["b", "", "�"]


def test_special_tokens_have_no_text(tokenizer: Tokenizer) -> None:
    assert "".join(pieces(tokenizer, [VOCAB["b"], *(VOCAB[name] for name in SPECIAL), VOCAB["c"]])) == "bc"


def test_a_space_after_the_prompt_is_kept(tokenizer: Tokenizer) -> None:
    assert "".join(pieces(tokenizer, [VOCAB["▁the"]])) == " the"


class Counting:
    """A tokenizer that counts how many ids it is asked to decode."""

    def __init__(self) -> None:
        self.decoded = 0

    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        self.decoded += len(ids)
        return "".join(chr(97 + token % 26) for token in ids)


def test_a_token_costs_the_same_however_long_the_text_is() -> None:
    counting = Counting()
    detokenizer = Detokenizer(counting, [1, 2, 3])
    for token in range(2000):
        detokenizer.push(token)
    assert counting.decoded < 2000 * 8


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_a_text_is_cut_at_its_first_stop_string_however_it_arrives(data: st.DataObject) -> None:
    text = data.draw(st.text(alphabet="ab\n", max_size=40))
    stops = data.draw(st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), max_size=3))
    matcher = StopStrings(stops)
    out, stop, rest = "", None, text
    while rest and stop is None:
        size = data.draw(st.integers(1, len(rest)))
        matched = matcher.push(rest[:size])
        out, stop, rest = out + matched.text, matched.stop, rest[size:]
        assert not any(item in out for item in stops), "a stop string was let through"
    if stop is None:
        out += matcher.flush()
        assert out == text
        assert not any(item in text for item in stops)
    else:
        assert text.startswith(out + stop)
        ends = [text.find(item) + len(item) for item in stops if item in text]
        assert len(out) <= min(ends)


def test_the_beginning_of_a_stop_string_is_held_back_until_it_is_none() -> None:
    matcher = StopStrings(["<end>"])
    assert matcher.push("a<e").text == "a"
    assert matcher.push("n").text == ""
    assert matcher.push("x").text == "<enx"
    assert matcher.push("<end>b").stop == "<end>"


def test_without_stop_strings_nothing_is_held_back() -> None:
    assert StopStrings([]).push("abc").text == "abc"
