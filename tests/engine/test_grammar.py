"""Constrained output obeys its grammar to the end, and a grammar that cannot be followed is refused by its field."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import numpy as np
import pytest

from coldstream.engine.grammar import Grammars, Matcher
from coldstream.engine.grammar_check import MAX_GRAMMAR_CHARACTERS
from coldstream.engine.request import Grammar
from coldstream.errors import InvalidRequest
from tests.support.parts import EOS, VOCAB, make_tokenizer


@pytest.fixture(scope="module")
def grammars() -> Iterator[Grammars]:
    made = Grammars(make_tokenizer(), vocab_size=len(VOCAB) + 3, stop_ids=frozenset({EOS}))
    yield made
    made.close()


def allowed_by(matcher: Matcher) -> list[int]:
    return np.flatnonzero(np.unpackbits(np.frombuffer(matcher.allowed, np.uint8), bitorder="little")).tolist()


def draw(grammars: Grammars, grammar: Grammar, seed: int) -> str:
    """Random tokens, as the mask allows them, until the output is whole."""
    matcher, chance, ids = grammars.matcher(grammar), random.Random(seed), []
    for _ in range(400):
        token = chance.choice(allowed_by(matcher))
        if token == EOS:
            break
        ids.append(token)
        matcher.consume(token)
        if matcher.is_complete:
            break
    return make_tokenizer().decode(ids)


SCHEMA = {
    "type": "object",
    "properties": {"size": {"enum": ["s", "m"]}, "sold": {"type": "boolean"}},
    "required": ["size", "sold"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(5))
def test_a_json_schema_gives_json_that_it_accepts(grammars: Grammars, seed: int) -> None:
    answer = json.loads(draw(grammars, Grammar("json_schema", json.dumps(SCHEMA)), seed))
    assert answer.keys() == {"size", "sold"}
    assert answer["size"] in ("s", "m")
    assert isinstance(answer["sold"], bool)


@pytest.mark.parametrize("seed", range(5))
def test_a_choice_is_one_of_its_texts(grammars: Grammars, seed: int) -> None:
    assert draw(grammars, Grammar("choice", ("yes", "no", "안녕", 'a"b')), seed) in ("yes", "no", "안녕", 'a"b')


def test_a_regex_and_a_lark_grammar_are_followed(grammars: Grammars) -> None:
    assert draw(grammars, Grammar("regex", "[0-9]{3}-x"), 0)[3:] == "-x"
    assert draw(grammars, Grammar("lark", 'start: "SELECT " NAME\nNAME: /[a-c]{2}/'), 0).startswith("SELECT ")


def test_two_rows_of_one_grammar_do_not_share_their_state(grammars: Grammars) -> None:
    first, second = (grammars.matcher(Grammar("regex", "ab")) for _ in range(2))
    first.consume(VOCAB["ab"])
    assert first.is_complete
    assert not second.is_complete
    assert VOCAB["<0x61>"] in allowed_by(second)


def test_the_mask_allows_nothing_that_only_the_models_vocabulary_has(grammars: Grammars) -> None:
    assert set(allowed_by(grammars.matcher(Grammar("regex", "a+")))) < set(range(len(VOCAB)))


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("json_schema", '{"type": "nonsense"}', "response_format"),
        Grammar("json_schema", "[1]", "response_format"),
        Grammar("json_schema", "{", "response_format"),
        Grammar("json_schema", '{"type": "string", "pattern": "a(?=b)"}', "response_format"),
        Grammar("json_schema", '{"const": "\\ud800"}', "response_format"),
        Grammar("json_schema", '{"maximum": 1' + "0" * 300 + "}", "response_format"),
        Grammar("json_schema", '{"maximum": NaN, "type": "number"}', "response_format"),
        Grammar("regex", "\ud800", "structured_outputs.regex"),
        Grammar("lark", 'start: "\ud800"', "structured_outputs.grammar"),
        Grammar("choice", ("\ud800",), "structured_outputs.choice"),
        Grammar("regex", "[a-", "structured_outputs.regex"),
        Grammar("lark", "start: nobody", "structured_outputs.grammar"),
        Grammar("choice", (), "structured_outputs.choice"),
        Grammar("choice", ("a", ""), "structured_outputs.choice"),
        Grammar("regex", ("a",), "structured_outputs.regex"),
        Grammar("regex", "a" * (MAX_GRAMMAR_CHARACTERS + 1), "structured_outputs.regex"),
    ],
)
def test_a_grammar_that_cannot_be_followed_is_refused_by_its_field(grammars: Grammars, grammar: Grammar) -> None:
    with pytest.raises(InvalidRequest) as caught:
        grammars.matcher(grammar)
    assert caught.value.field == grammar.field
    assert grammar.field in str(caught.value)


def test_a_tokenizer_may_know_more_ids_than_the_model_has_rows() -> None:
    """Gemma 3's text models have 262,144 rows, and their tokenizer an image token beyond them."""
    made = Grammars(make_tokenizer(), vocab_size=len(VOCAB) - 1, stop_ids=frozenset({EOS}))
    assert len(made.matcher(Grammar("regex", "[a-z]+")).allowed) == -(-(len(VOCAB) - 1) // 8)
    made.close()
