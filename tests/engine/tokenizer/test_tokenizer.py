"""Tokenizer and chat template come from the checkpoint's files; what is missing, broken or hostile is named."""

from __future__ import annotations

import json

import pytest

from coldstream.engine.tokenizer.template import ChatTemplate
from coldstream.engine.tokenizer.tokenizer import Tokenizer
from coldstream.errors import InvalidRequest, TokenizerError
from tests.engine.tokenizer.test_added_tokens import byte_fallback, byte_level
from tests.support.parts import EOS, VOCAB, make_tokenizer, tokenizer_files

MESSAGES = [{"role": "user", "content": " hi <there> "}]


def render(text: str, **more: object) -> str:
    return ChatTemplate(text, source="test").render(
        MESSAGES, add_generation_prompt=True, tools=None, variables={"bos_token": "<bos>", **more}
    )


def test_the_prompt_is_what_the_template_writes_special_tokens_included() -> None:
    tokenizer = make_tokenizer()
    text = tokenizer.apply_chat_template(MESSAGES)
    assert text == "<bos><turn>user\nhi <there>\n<turn>model\n"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids[:2] == [VOCAB["<bos>"], VOCAB["<turn>"]]
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=False).endswith("hi <there>\n")


def test_special_tokens_are_texts_or_objects_and_stop_ids_come_from_every_place() -> None:
    files = tokenizer_files() | {"generation_config.json": b'{"eos_token_id": [7, 9]}'}
    tokenizer = Tokenizer.load(files)
    assert (tokenizer.bos, tokenizer.eos) == ("<bos>", "<eos>")
    assert tokenizer.stop_ids == {7, 9, EOS}
    del files["generation_config.json"]
    assert Tokenizer.load(files | {"config.json": b'{"text_config": {"eos_token_id": 5}}'}).stop_ids == {5, EOS}


PLACES = [
    {"generation_config.json": b'{"eos_token_id": [1, 6]}'},
    {"generation_config.json": b'{"eos_token_id": 1}', "config.json": b'{"eos_token_id": [1, 6]}'},
    {"generation_config.json": b'{"eos_token_id": 1}', "config.json": b'{"text_config": {"eos_token_id": 6}}'},
]


@pytest.mark.parametrize("place", PLACES)
def test_a_turns_end_counts_wherever_it_is_named(place: dict[str, bytes]) -> None:
    assert Tokenizer.load(tokenizer_files() | place).stop_ids == {1, 6, EOS}


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer_config.json": json.dumps({"chat_template": "X{{ messages[0].content }}"}).encode()},
        {"tokenizer_config.json": b'{"chat_template": [{"name": "default", "template": "X{{ messages[0].content}}"}]}'},
        {"chat_template.json": b'{"chat_template": "X{{ messages[0].content }}"}'},
    ],
)
def test_the_template_may_lie_in_any_of_its_places(change: dict[str, bytes]) -> None:
    files = {name: data for name, data in tokenizer_files().items() if name != "chat_template.jinja"}
    assert Tokenizer.load(files | change).apply_chat_template(MESSAGES).startswith("X")


def test_without_a_template_messages_are_refused_and_prompts_are_not() -> None:
    files = {name: data for name, data in tokenizer_files().items() if name != "chat_template.jinja"}
    tokenizer = Tokenizer.load(files)
    assert not tokenizer.has_chat_template
    assert tokenizer.encode("ab")
    with pytest.raises(InvalidRequest, match="no chat template"):
        tokenizer.apply_chat_template(MESSAGES)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tokenizer.json": b"{}"}, "tokenizer.json"),
        ({"tokenizer_config.json": b"{"}, "tokenizer_config.json"),
        ({"generation_config.json": b"[]"}, "generation_config.json"),
        ({"chat_template.jinja": b"{% if %}"}, "chat template"),
        ({"chat_template.jinja": b"\xff"}, "chat_template.jinja"),
    ],
)
def test_a_broken_file_is_named(change: dict[str, bytes], named: str) -> None:
    with pytest.raises(TokenizerError, match=named):
        Tokenizer.load(tokenizer_files() | change, source="gs://b/m")


def test_a_missing_tokenizer_is_named() -> None:
    with pytest.raises(TokenizerError, match=r"gs://b/m.*tokenizer\.json"):
        Tokenizer.load({}, source="gs://b/m")


def test_a_template_finds_what_transformers_offers() -> None:
    assert render("{{ messages | tojson }}") == '[{"role": "user", "content": " hi <there> "}]'
    assert len(render("{{ strftime_now('%Y') }}")) == 4
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert render("{% generation %}a{% endgeneration %}b") == "ab"
    assert render("{% set ns = namespace(n=1) %}{% set ns.n = 2 %}{{ ns.n }}") == "2"


def test_a_templates_own_words_reach_the_caller() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate") as caught:
        render("{{ raise_exception('roles must alternate') }}")
    assert caught.value.field == "messages"


@pytest.mark.parametrize(
    "text",
    [
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 1000000000 }}",
        "{{ (2 ** 99999999) }}",
        "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ ''.__class__.__mro__ }}{{ messages.append(1) }}",
        "{{ messages[0].content.nothing.at.all }}",
        "{{ 1 + 'a' }}",
    ],
)
def test_a_template_that_would_not_end_or_escape_is_stopped(text: str) -> None:
    with pytest.raises(InvalidRequest):
        render(text)


def test_tokens_of_a_text_begin_where_its_characters_are() -> None:
    tokenizer = Tokenizer.load({"tokenizer.json": byte_fallback().to_str().encode()})
    assert len(tokenizer.encode("a 안b")) == 7
    assert tokenizer.offsets("a 안b") == [0, 0, 1, 2, 2, 2, 3]  # <bos> is not in the text
    assert tokenizer.offsets("") == [0]
    level = Tokenizer.load({"tokenizer.json": byte_level().to_str().encode()})
    assert level.offsets("é!<bos>x") == [0, 0, 1, 2, 7]
