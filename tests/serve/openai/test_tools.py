"""Finding function calls in what a model wrote."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstream.serve.openai.calls import Call, CallReader
from coldstream.serve.openai.tools import forced_call

F = '{"name": "f", "arguments": {"a": 1}}'
G = '{"name": "g", "parameters": {}}'
CALL_F, CALL_G = Call("f", '{"a": 1}'), Call("g", "{}")

FG = [CALL_F, CALL_G]
XML = """<function=f>
<parameter=a>
1
</parameter>
<parameter=text>
12
and more
</parameter>
<parameter=zip>
0123
</parameter>
</function>"""
CALL_XML = Call("f", '{"a": 1, "text": "12\\nand more", "zip": "0123"}')

WRITTEN = [
    ("just text", "just text", []),
    ("a < b and <tool", "a < b and <tool", []),
    (f"<tool_call>{F}</tool_call>", "", [CALL_F]),
    (f"\n<tool_call>\n{F}\n</tool_call>\n", "", [CALL_F]),
    (f"First. <tool_call>{F}</tool_call><tool_call>{G}</tool_call>", "First. ", [CALL_F, CALL_G]),
    (f"<tool_call>[{F}, {G}]</tool_call>", "", [CALL_F, CALL_G]),
    (f"<tool_call>{F}", "", [CALL_F]),
    (f"[{F}, {G}]", "", [CALL_F, CALL_G]),
    (f" {G} ", "", [CALL_G]),
    ('{"name": "unknown", "arguments": {}}', '{"name": "unknown", "arguments": {}}', []),
    ('{"answer": 42}', '{"answer": 42}', []),
    (f"[{F}, 3]", f"[{F}, 3]", []),
    ("<tool_call>no json</tool_call> then", "<tool_call>no json</tool_call> then", []),
    (f"<tool_call>x</tool_call><tool_call>{F}</tool_call>", "<tool_call>x</tool_call>", [CALL_F]),
    ('{"name": ["f"], "arguments": {}}', '{"name": ["f"], "arguments": {}}', []),
    # Several, with prose and separators
    (f"I will. <tool_call>{F}</tool_call> and then <tool_call>{G}</tool_call> done", "I will.  and then  done", FG),
    (f"<tool_call>{F}; {G}</tool_call>", "", FG),
    (f"<tool_call>{F}\n{G}</tool_call>", "", FG),
    (f"<tool_call>{F}</tool_call>; <tool_call>{G}</tool_call>", "", FG),
    (f"{F}; {G}", "", FG),
    (f"Let me look.\n{F}\n{G}", "Let me look.\n", FG),
    (f"{F} is how to call it", f"{F} is how to call it", []),
    (f"Say {F}", f"Say {F}", []),
    (
        '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>',
        "",
        [Call("f", '{"a": "</tool_call>"}')],
    ),
    ('{"type": "function", "function": {"name": "g", "arguments": "{}"}}', "", [CALL_G]),
    ('{"name": "g", "arguments": null}', "", [CALL_G]),
    # Fenced
    (f"```json\n{F}\n```", "", [CALL_F]),
    (f"```\n[{F}, {G}]\n```\nThere.", "\nThere.", FG),
    (f"Now:\n```json\n{F}\n```", "Now:\n", [CALL_F]),
    (f"<tool_call>\n```json\n{F}\n```\n</tool_call>", "", [CALL_F]),
    ("```python\nprint(1)\n```\nThat is it.", "```python\nprint(1)\n```\nThat is it.", []),
    # Qwen3-Coder
    (f"<tool_call>\n{XML}\n</tool_call>", "", [CALL_XML]),
    (f"Well. <tool_call>\n{XML}\n</tool_call>\n<tool_call>\n{XML}\n</tool_call>", "Well. ", [CALL_XML, CALL_XML]),
    (XML, "", [CALL_XML]),
    ('<function=f>{"a": 1}</function>', "", [CALL_F]),
    ("<function=unknown></function>", "<function=unknown></function>", []),
    # Mistral
    (f"[TOOL_CALLS][{F}, {G}]", "", FG),
    (f"[TOOL_CALLS] [{F}] ", "", [CALL_F]),
    ('Sure.[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[CALL_ID]x1[ARGS]{}', "Sure.", FG),
    ('[TOOL_CALLS]f{"a": 1}', "", [CALL_F]),
    ("[TOOL_CALLS]nonsense", "[TOOL_CALLS]nonsense", []),
    # Llama 3
    (f"<|python_tag|>{F}; {G}", "", FG),
    (f"<|python_tag|>{G}", "", [CALL_G]),
    ("<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
    ("", "", []),
    ("[1, 2", "[1, 2", []),
    ("[" * 50_000, "[" * 50_000, []),
]


def read(pieces) -> tuple[str, list[Call]]:
    reader = CallReader(["f", "g"])
    text = "".join(reader.push(piece) for piece in pieces)
    rest, calls = reader.end()
    return text + rest, calls


@pytest.mark.parametrize(("written", "text", "calls"), WRITTEN)
def test_text_and_calls_are_told_apart(written, text, calls) -> None:
    assert read([written]) == (text, calls)


@given(st.sampled_from([written for written, _, _ in WRITTEN[:-1]]), st.data())
def test_how_the_answer_is_cut_into_pieces_changes_nothing(written, data) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(written)), max_size=12)))
    edges = [0, *cuts, len(written)]
    assert read([written[a:b] for a, b in pairwise(edges)]) == read([written])


@given(st.text(alphabet='<>tool_call/{}[]"f:, argumentsname1', max_size=80), st.integers(0, 80))
def test_whatever_is_written_no_character_of_a_plain_text_is_lost(written, cut) -> None:
    text, calls = read([written[:cut], written[cut:]])
    assert calls or text == written


def test_a_parameter_in_xml_is_text_where_its_schema_says_so() -> None:
    written = "<function=f><parameter=zip>12345</parameter><parameter=n>7</parameter></function>"
    reader = CallReader(["f"], {"f": {"properties": {"zip": {"type": "string"}, "n": {"type": "integer"}}}})
    assert (reader.push(written), *reader.end()) == ("", "", [Call("f", '{"zip": "12345", "n": 7}')])


def test_a_block_of_code_is_released_as_it_comes() -> None:
    reader = CallReader(["f"])
    pieces = ("```", "python\n", "print(1)\n", "[x for x in y]\n", "```")
    assert [reader.push(piece) for piece in pieces] == ["", "", "```python\nprint(1)\n", "[x for x in y]\n", ""]
    assert reader.end() == ("```", [])


def test_text_is_released_as_soon_as_it_cannot_be_a_call() -> None:
    reader = CallReader(["f"])
    assert [reader.push(piece) for piece in ("So", " a <", "b", " <tool_", "call>{")] == ["So", " a ", "<b", " ", ""]


def test_a_forced_call_that_was_cut_off_keeps_what_there_is() -> None:
    assert forced_call(F) == CALL_F
    assert forced_call('{"name": "f", "arguments": {"a": "unfini') == Call("f", '{"a": "unfini')
    assert forced_call('{"name": "f"') == Call("f", "")
    assert forced_call('{"na') is None
