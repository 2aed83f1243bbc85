"""The chat template says what ends a turn, and every id that it writes is one of the model's."""

from __future__ import annotations

import json

import pytest

from coldstream.engine.tokenizer.tokenizer import Tokenizer
from coldstream.engine.tokenizer.turns import refuse_unknown_ids, turn_ends
from coldstream.errors import TokenizerError
from tests.support.parts import EOS, VOCAB, tokenizer_files

BEHIND = "{% for m in messages %}{{ m.role }}: {{ m.content }}BEHIND{% endfor %}"


def loaded(template: str, **files: bytes) -> Tokenizer:
    return Tokenizer.load(tokenizer_files() | {"chat_template.jinja": template.encode()} | files)


@pytest.mark.parametrize(
    ("behind", "ends"),
    [
        ("<turn>\n", {VOCAB["<turn>"]}),
        (" <turn>", {VOCAB["<turn>"]}),
        ("{{ eos_token }}", {EOS}),
        ("\n", set()),
        ("", set()),
        ("\n### Next", set()),
        (" the end", set()),
    ],
)
def test_the_special_token_behind_an_answer_ends_a_turn_and_nothing_else_does(behind: str, ends: set[int]) -> None:
    tokenizer = loaded(BEHIND.replace("BEHIND", behind))
    assert turn_ends(tokenizer) == ends
    assert tokenizer.stop_ids == ends | {EOS}


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no') }}", "{{ messages[0].content }}", "{{ nothing.at.all }}"]
)
def test_a_template_that_shows_no_answer_ends_no_turn(template: str) -> None:
    assert turn_ends(loaded(template)) == frozenset()


def with_token(content: str, number: int) -> bytes:
    """The test's tokenizer.json with one more special token."""
    data = json.loads(tokenizer_files()["tokenizer.json"])
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    data["added_tokens"].append({"id": number, "content": content, "special": True, **flags})
    return json.dumps(data).encode()


def test_a_template_that_writes_an_id_beyond_the_embedding_is_refused_by_name() -> None:
    size = len(VOCAB)
    files = tokenizer_files() | {"tokenizer.json": with_token("<new>", size)}
    unused = Tokenizer.load(files)
    refuse_unknown_ids(unused, size)  # a token that no prompt has to hold is no reason
    used = Tokenizer.load(files | {"chat_template.jinja": b"{{ messages[0].content }}<new>"}, source="gs://b/m")
    refuse_unknown_ids(used, size + 1)
    with pytest.raises(TokenizerError, match=rf"gs://b/m.*'<new>' \(id {size}\).*{size} rows"):
        refuse_unknown_ids(used, size)
