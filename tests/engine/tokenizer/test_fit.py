"""Conversations in the form that a chat template takes, through templates of the kinds that there are."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstream.engine.tokenizer.fit import fitted
from coldstream.engine.tokenizer.template import ChatTemplate
from coldstream.errors import InvalidRequest

ANY_ORDER = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
IN_TURNS = (  # Gemma: a system turn at the beginning opens the user's, and who speaks must alternate
    "{% set first = messages[0].content ~ '\\n\\n' if messages[0].role == 'system' else '' %}"
    "{% for m in (messages[1:] if first else messages) %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('take turns') }}{% endif %}"
    "<{{ m.role }}>{{ first if loop.first }}{{ m.content | trim }}{% endfor %}"
)
NO_SYSTEM = IN_TURNS.replace("messages[0].role == 'system'", "false")
ONE_CALL = (  # Llama 3: one call a turn; Mistral: ids of nine characters
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one call') }}{% endif %}"
    "{% set call = m.tool_calls[0] %}"
    "{% if call.id | length != 9 %}{{ raise_exception('nine characters') }}{% endif %}"
    "{% for key, value in call.function.arguments | items %}{{ call.id }}.{{ key }}={{ value }};{% endfor %}{% endif %}"
    "{% if m.role == 'tool' %}for {{ m.tool_call_id }}{% endif %}{% endfor %}"
)


def render(template: str, turns: list[dict[str, Any]]) -> str:
    made = ChatTemplate(template, source="t")
    return fitted(turns, lambda form: made.render(form, add_generation_prompt=False, tools=None, variables={}))


def said(*turns: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": text} for role, text in turns]


S, U, A = "system", "user", "assistant"


@pytest.mark.parametrize(
    ("turns", "prompt"),
    [
        ([(U, "a"), (U, "b")], "<user>a\n\nb"),
        ([(S, "s"), (U, "a")], "<user>s\n\na"),
        ([(S, "s"), (S, "t"), (U, "a")], "<user>s\n\nt\n\na"),
        ([(U, "a"), (S, "s"), (U, "b")], "<user>s\n\na\n\nb"),
        ([(S, "s"), (U, "a"), (A, "b"), (S, "t"), (U, "c")], "<user>s\n\nt\n\na<assistant>b<user>c"),
        ([(S, "s")], "<user>s"),
        ([(S, "s"), (A, "a"), (U, "b")], "<user>s<assistant>a<user>b"),
        ([(A, "a"), (U, "b")], "<user><assistant>a<user>b"),
        ([(U, "a"), (A, "b"), (A, "c"), (U, "d")], "<user>a<assistant>b\n\nc<user>d"),
    ],
)
@pytest.mark.parametrize("template", [IN_TURNS, NO_SYSTEM])
def test_a_template_that_wants_turns_gets_them_and_system_texts_come_first_in_their_order(
    template, turns, prompt
) -> None:
    assert render(template, said(*turns)) == prompt


def test_a_template_that_takes_any_order_gets_the_turns_as_they_are() -> None:
    turns = [(U, "a"), (U, "b"), (S, "s"), (A, "c"), (A, "d"), (S, "t")]
    assert render(ANY_ORDER, said(*turns)) == "".join(f"<{role}>{text}" for role, text in turns)


WORD = st.from_regex(re.compile(r"[a-z]{6}"), fullmatch=True)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([S, U, A]), WORD), min_size=1, max_size=7, unique_by=lambda turn: turn[1]),
    st.sampled_from([ANY_ORDER, IN_TURNS, NO_SYSTEM]),
)
def test_no_text_is_lost_and_each_speakers_stay_in_their_order(turns, template) -> None:
    prompt = render(template, said(*turns))
    for speakers in ({S}, {U, A}):
        places = [prompt.index(text) for role, text in turns if role in speakers]
        assert places == sorted(places)


def test_images_are_kept_where_turns_are_joined() -> None:
    image = [{"type": "image"}, {"type": "text", "text": "b"}]
    turns = [*said((S, "s"), (U, "a")), {"role": U, "content": image}]
    seen: list[Any] = []

    def take(form: list[dict[str, Any]]) -> str:
        if len(form) > 1:
            raise InvalidRequest("one turn", field="messages")
        seen.extend(form[0]["content"])
        return "".join(part.get("text", "") for part in form[0]["content"])

    assert fitted(turns, take) == "s\n\na\n\nb"
    assert [part["type"] for part in seen].count("image") == 1


def test_calls_and_results_take_the_form_that_the_template_wants() -> None:
    calls = [
        {"id": f"call_{n}", "function": {"name": "f", "arguments": arguments}}
        for n, arguments in enumerate(({"x": 1}, "{no"))
    ]
    results = [{"role": "tool", "content": f"r{n}", "tool_call_id": f"call_{n}"} for n in (1, 0)]
    prompt = render(ONE_CALL, [*said((U, "a")), {"role": A, "content": "", "tool_calls": calls}, *results])
    found = re.fullmatch(
        r"<user>a<assistant>(\w{9})\.x=1;<tool>r0for (\w{9})<assistant>(\w{9})\.arguments=\{no;<tool>r1for (\w{9})",
        prompt,
    )
    assert found is not None
    assert (found[1], found[3]) == (found[2], found[4])
    assert found[1] != found[3]


@pytest.mark.parametrize("turns", [[(U, "hello")], [(S, "hello"), (U, "a")]])
def test_a_text_that_the_template_leaves_out_is_an_error_and_never_forgotten(turns) -> None:
    with pytest.raises(InvalidRequest, match=r"leaves the text of the (user|system)'s turn out"):
        render("{% for m in messages %}<{{ m.role }}>{% endfor %}", said(*turns))


def test_the_templates_own_words_are_those_for_the_turns_as_they_were_sent() -> None:
    with pytest.raises(InvalidRequest, match="never 2"):
        render("{{ raise_exception('never ' ~ messages | length) }}", said((U, "a"), (U, "b")))


def test_a_conversation_of_many_turns_is_fitted_in_the_time_that_it_takes_to_read_it() -> None:
    """In a row, with one blank line between two: were they joined one by one, this would copy 40 GB."""
    many = said(*((U, "x" * 80) for _ in range(30_000)))
    seen: list[int] = []

    def take(form: list[dict[str, Any]]) -> str:
        seen.append(len(form))
        if len(form) > 1:
            raise InvalidRequest("take turns", field="messages")
        return str(form[0]["content"])

    assert len(fitted(many, take)) == 30_000 * 82 - 2
    assert seen == [30_000, 1]
    calls = [{"id": f"c{n}", "function": {"name": "f", "arguments": {}}} for n in range(2_000)]
    results = [{"role": "tool", "content": "r", "tool_call_id": f"c{n}"} for n in reversed(range(2_000))]
    seen.clear()
    with pytest.raises(InvalidRequest, match="take turns"):
        fitted([{"role": A, "content": "", "tool_calls": calls}, *results], take)
    assert seen == [2_001, 2_001, 4_000, 4_001]


def test_marks_that_a_tokenizer_sets_in_a_text_are_no_part_of_it() -> None:
    assert fitted(said((U, "a <end> b")), lambda form: "<user>a \udc00<end>\udc01 b").startswith("<user>a")


def test_a_template_may_change_blanks_and_write_a_text_elsewhere() -> None:
    template = (
        "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content.split() | join(' ') }}"
        "{% if loop.last %} ({{ messages[0].content }}){% endif %}{% endfor %}"
    )
    turns = said((S, "be  brief"), (U, "one\n\ntwo"), (A, "three"), (U, "four   five"))
    assert render(template, turns) == "<user>one two<assistant>three<user>four five (be  brief)"
