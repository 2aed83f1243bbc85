"""A request to /v1/responses as the chat that asks the same."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from coldstream.errors import InvalidRequest, PromptTooLong, TooManyRequests
from coldstream.serve.openai.messages import turns
from coldstream.serve.openai.responses_input import converted
from coldstream.serve.openai.responses_schema import ResponsesRequest

TEXT = st.text("abc", min_size=1, max_size=4)
ITEM = st.one_of(
    st.builds(
        lambda role, text: {"role": role, "content": text}, st.sampled_from(["user", "system", "assistant"]), TEXT
    ),
    st.builds(lambda text: {"type": "function_call", "call_id": text, "name": "f", "arguments": "{}"}, TEXT),
    st.builds(lambda text: {"type": "function_call_output", "call_id": "c", "output": text}, TEXT),
)


def told(items: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Who says what, calls by their ids."""
    made = []
    for item in items:
        kind = item.get("type", "message")
        if kind == "message":
            made.append((item["role"], item["content"]))
        else:
            made.append(("call", item["call_id"]) if kind == "function_call" else ("tool", item["output"]))
    return made


@settings(deadline=None)
@given(st.lists(ITEM, min_size=1, max_size=9), st.none() | TEXT)
def test_everything_is_said_by_the_same_speaker_in_the_same_order(items, instructions) -> None:
    body = ResponsesRequest.model_validate({"model": "m", "input": items, "instructions": instructions})
    made = converted(body)
    heard: list[tuple[str, str]] = []
    for turn in turns(made.body.messages, knows_tools=True):
        if turn["content"]:
            heard.append((turn["role"], turn["content"]))
        heard += [("call", call["id"]) for call in turn.get("tool_calls", ())]
    opening = [("system", instructions)] if instructions else []
    assert heard == [*opening, *told(items)]


@settings(deadline=None)
@given(st.lists(ITEM, min_size=1, max_size=9), st.data())
def test_an_error_about_a_message_names_the_item_that_it_came_from(items, data) -> None:
    made = converted(ResponsesRequest.model_validate({"model": "m", "input": items, "instructions": "x"}))
    place = data.draw(st.integers(0, len(made.places) - 1))
    field = f"messages.{place}.content.0.image_url.url"
    error = made.in_its_words(InvalidRequest(f"{field} is wrong", field=field))
    assert isinstance(error, InvalidRequest)
    assert error.field == f"{made.places[place]}.content.0.image_url"
    assert str(error) == f"{error.field} is wrong"


def test_errors_about_other_fields_name_those_that_were_sent() -> None:
    made = converted(ResponsesRequest.model_validate({"model": "m", "input": "x"}))
    for named, meant in (("response_format", "text.format"), ("prompt", "input"), ("messages", "input"), ("n", "n")):
        assert made.in_its_words(PromptTooLong(f"{named}: no", field=named)).field == meant  # type: ignore[attr-defined]
    busy = TooManyRequests("later", retry_after=1.0)
    assert made.in_its_words(busy) is busy
