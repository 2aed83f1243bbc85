"""What an output may be where tools are offered: calls, answers, and text with calls in it."""

from __future__ import annotations

import json

import pytest

from coldstream.engine.grammar import Grammars, Matcher
from coldstream.engine.request import Grammar
from coldstream.errors import InvalidRequest
from coldstream.serve.openai.tool_grammar import (
    answer_or_calls,
    one_call,
    only_arguments,
    opening,
    parameters,
    text_with_calls,
)
from tests.support.parts import EOS, VOCAB, make_tokenizer

TREE = {
    "type": "object",
    "properties": {"root": {"$ref": "#/$defs/Node"}},
    "required": ["root"],
    "additionalProperties": False,
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {"n": {"type": "integer"}, "next": {"$ref": "#/$defs/Node"}},
            "required": ["n"],
            "additionalProperties": False,
        }
    },
}
SELF = {"type": "object", "properties": {"again": {"$ref": "#"}}, "additionalProperties": False}
FUNCTIONS = [
    {"name": "tree", "parameters": TREE, "strict": True},
    {"name": "self", "parameters": SELF},
    {"name": "now"},
]
ANSWER = Grammar(
    "json_schema",
    '{"type": "object", "properties": {"p": {"$ref": "#/$defs/P"}}, "required": ["p"], '
    '"additionalProperties": false, "$defs": {"P": {"type": "integer"}}}',
)
TREE_CALL = '{"name": "tree", "arguments": {"root": {"n": 1, "next": {"n": 2}}}}'
SELF_CALL = '{"name": "self", "arguments": {"again": {"again": {}}}}'
NOW_CALL = '{"name": "now", "arguments": {}}'
SPELLED = {  # a byte's tokens: the byte itself, and pieces of one character
    byte: [
        VOCAB[f"<0x{byte:02X}>"],
        *(VOCAB[piece] for piece in ("▁", "b", "c") if piece.replace("▁", " ") == chr(byte)),
    ]
    for byte in range(256)
}
TAG = opening(is_special=False)


@pytest.fixture(scope="module")
def grammars():
    made = Grammars(make_tokenizer(), vocab_size=len(VOCAB), stop_ids=frozenset({EOS}))
    yield made
    made.close()


def allows(matcher: Matcher, token: int) -> bool:
    """Whether the token may come next; none behind the mask's end may."""
    mask = matcher.allowed
    return token // 8 < len(mask) and bool(mask[token // 8] >> token % 8 & 1)


def follows(grammars: Grammars, grammar: Grammar, text: str, *, whole: bool = True) -> bool:
    """Whether the grammar lets the text be written, and, where it is `whole`, end there."""
    matcher = grammars.matcher(grammar)
    for byte in text.encode():
        token = next((token for token in SPELLED[byte] if allows(matcher, token)), None)
        if token is None:
            return False
        matcher.consume(token)
    return not whole or matcher.is_complete or allows(matcher, EOS)


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        (TREE_CALL, True),
        (SELF_CALL, True),
        (NOW_CALL, True),
        ('{"name": "tree", "arguments": {"root": {"m": 1}}}', False),
        ('{"name": "self", "arguments": {"other": {}}}', False),
        ('{"name": "no", "arguments": {}}', False),
        ("hello", False),
    ],
)
def test_a_forced_call_names_a_function_and_obeys_its_own_schema_with_references(grammars, text, fits) -> None:
    assert follows(grammars, one_call(FUNCTIONS), text) is fits


@pytest.mark.parametrize("tagged", [TAG, None])
@pytest.mark.parametrize("parallel", [True, False])
def test_a_format_leaves_room_for_calls(grammars, tagged, parallel) -> None:
    made = answer_or_calls(FUNCTIONS, ANSWER, tagged=tagged, parallel=parallel)
    call = f"<tool_call>\n{TREE_CALL}\n</tool_call>" if tagged else TREE_CALL
    assert follows(grammars, made, '{"p": 3}')
    assert follows(grammars, made, call)
    assert not follows(grammars, made, '{"p": "x"}')
    assert not follows(grammars, made, "hello")
    assert follows(grammars, made, f"{call}\n{call}") is bool(tagged and parallel)
    assert made.field == "response_format"


def test_a_choice_leaves_room_for_calls_and_what_cannot_is_refused(grammars) -> None:
    made = answer_or_calls(FUNCTIONS, Grammar("choice", ("yes", "no"), "guided_choice"), tagged=TAG, parallel=True)
    assert follows(grammars, made, "yes")
    assert follows(grammars, made, f"<tool_call>{NOW_CALL}</tool_call>")
    with pytest.raises(InvalidRequest, match="guided_regex: a regex cannot be joined with tools"):
        answer_or_calls(FUNCTIONS, Grammar("regex", "a", "guided_regex"), tagged=TAG, parallel=True)


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("any text, a < b, <tool", True),
        (f"Let me see. <tool_call>\n{TREE_CALL}\n</tool_call> and <tool_call>{NOW_CALL}</tool_call>.", True),
        ('<tool_call>{"name": "self", "arguments": {"it is": "not strict"}}</tool_call>', True),
        ('<tool_call>{"name": "tree", "arguments": {"x": 1}}</tool_call>', False),
        ('<tool_call>{"name": "unknown", "arguments": {}}</tool_call>', False),
        (f"<tool_call>{TREE_CALL}", False),
    ],
)
def test_strict_functions_are_held_to_their_schema_wherever_the_text_calls_them(grammars, text, fits) -> None:
    assert follows(grammars, text_with_calls(FUNCTIONS, tagged=TAG), text) is fits


def test_the_tag_may_be_a_special_token(grammars) -> None:
    assert (opening(is_special=True), json.loads(TAG)) == ("<tool_call>", "<tool_call>")
    made = text_with_calls(FUNCTIONS, tagged="<turn>")  # the one that this tokenizer has
    matcher = grammars.matcher(made)
    for token in (VOCAB["<0x61>"], VOCAB["<turn>"]):
        assert allows(matcher, token)
        matcher.consume(token)
    allowed = {token for token in range(len(VOCAB)) if allows(matcher, token)}
    assert allowed == {VOCAB["▁"], *(VOCAB[f"<0x{byte:02X}>"] for byte in (0x20, 0x0A, 0x7B))}


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "string", "pattern": "^(?!a)b$"}, "look-around"),
        ({"type": "string", "format": "binary"}, "binary"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ],
)
def test_what_cannot_be_followed_is_said_whole_and_without_the_grammar(grammars, schema, says) -> None:
    tools = [{"name": "f", "parameters": {"properties": {"p": schema}}}]
    for made in (Grammar("json_schema", json.dumps(schema)), one_call(tools)):
        with pytest.raises(InvalidRequest, match=rf"{made.field}: .*{says}") as caught:
            grammars.matcher(made)
        assert "x-guidance" not in str(caught.value)
        assert "start:" not in str(caught.value)


@pytest.mark.parametrize(
    ("schema", "text", "fits"),
    [
        (None, "{}", True),
        (None, '{"a": 1}', False),
        ({"properties": {"a": {"type": "integer"}}}, '{"a": 1}', True),
        ({"properties": {"a": {"type": "integer"}}}, '{"a": 1, "b": 2}', False),
        ({"properties": {"a": {"type": "integer"}}}, '{"a":  1}', False),
        ({"properties": {"a": {"type": "integer"}}, "additionalProperties": True}, '{"a": 1, "b": 2}', True),
        ({"type": "object"}, '{"b": 2}', True),
        ({"properties": {"a": {"items": {"properties": {"b": {"type": "null"}}}}}}, '{"a": [{"c": 1}]}', False),
    ],
)
def test_a_named_functions_arguments_are_written_plainly_and_hold_nothing_that_it_does_not_name(
    grammars, schema, text, fits
) -> None:
    assert follows(grammars, only_arguments({"name": "f", "parameters": schema}), text) is fits


def test_a_deep_schema_takes_no_longer_than_its_size() -> None:
    deep: dict = {"type": "string"}
    for _ in range(150):
        deep = {"type": "object", "properties": {"a": deep}}
    made = parameters({"name": "f", "parameters": deep})
    assert json.dumps(made).count("additionalProperties") == 150


def test_objects_that_a_combination_completes_stay_open() -> None:
    both = {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}
    assert parameters({"name": "f", "parameters": both}) == {"type": "object", **both}
    base = {"properties": {"a": {}}, "anyOf": [{"required": ["a"]}, {"properties": {"b": {}}}]}
    assert parameters({"name": "f", "parameters": base}) == {"type": "object", **base}
