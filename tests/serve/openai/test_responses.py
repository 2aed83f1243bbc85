"""POST /v1/responses, asked by OpenAI's own package."""

from __future__ import annotations

import json

import openai
import pydantic
import pytest

from tests.serve.openai.test_openai import asked, product
from tests.support.scripted import LetterTokenizer, ScriptedModel

WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "The weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "서울"}}</tool_call>'


def with_tools(engine, script: str) -> ScriptedModel:
    return ScriptedModel(engine(script), tokenizer=LetterTokenizer(tools=True))


async def test_a_text_is_answered_with_a_message_and_its_usage(serve, engine, client) -> None:
    used = engine("hello")
    served = await serve(ScriptedModel(used))
    answer = await client(served).responses.create(
        model="default", input="hi", instructions="Be brief.", metadata={"a": "b"}, store=True, max_output_tokens=9
    )
    assert (answer.output_text, answer.status, answer.object) == ("hello", "completed", "response")
    assert asked(used) == "system\nBe brief.\nuser\nhi\nmodel\n"
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (31, 5, 36)
    assert (answer.metadata, answer.instructions, answer.max_output_tokens) == ({"a": "b"}, "Be brief.", 9)
    assert answer.store is False
    assert used.submitted[0].sampling.max_tokens == 9


async def test_an_answer_that_was_cut_off_is_incomplete(serve, engine, client) -> None:
    served = await serve(ScriptedModel(engine("hello")))
    answer = await client(served).responses.create(model="default", input="hi", max_output_tokens=2)
    assert (answer.status, answer.incomplete_details.reason, answer.output[0].status) == (
        "incomplete",
        "max_output_tokens",
        "incomplete",
    )


async def test_a_stream_tells_every_item_from_its_beginning_to_its_end(serve, engine, client) -> None:
    served = await serve(ScriptedModel(engine("안녕 😀")))
    stream = await client(served).responses.create(model="default", input="hi", stream=True)
    events = [event async for event in stream]
    kinds = [event.type.removeprefix("response.") for event in events]
    assert list(dict.fromkeys(kinds)) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "안녕 😀"
    last = events[-1].response
    assert (last.output_text, last.status, last.usage.output_tokens) == ("안녕 😀", "completed", 4)
    assert events[2].item.id == last.output[0].id


@pytest.mark.parametrize("script", ["", "hello", f"Let me see. {CALL}", CALL, CALL + CALL])
async def test_a_stream_ends_in_the_items_of_the_whole_answer(serve, engine, client, script) -> None:
    served = await serve(with_tools(engine, script))
    wanted = {"model": "default", "input": "hi", "tools": [WEATHER]}
    whole = await client(served).responses.create(**wanted)
    async with client(served).responses.stream(**wanted) as stream:
        told = [event async for event in stream]
        final = await stream.get_final_response()

    def items(response) -> list:
        hidden = {"id", "call_id", "parsed_arguments"}
        return [item.model_dump(exclude=hidden, exclude_none=True) for item in response.output]

    assert _shown(items(final)) == _shown(items(whole))
    added = [event.item.id for event in told if event.type == "response.output_item.added"]
    done = [event.item.id for event in told if event.type == "response.output_item.done"]
    assert added == done == [item.id for item in final.output]


def _shown(items: list) -> list:
    """Without what the client's own helpers add."""
    for item in items:
        for part in item.get("content", ()):
            part.pop("parsed", None)
    return items


async def test_a_call_and_its_result_go_round(serve, engine, client) -> None:
    model = with_tools(engine, CALL)
    served = await serve(model)
    first = await client(served).responses.create(model="default", input="hi", tools=[WEATHER])
    (call,) = first.output
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "weather", {"city": "서울"})
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    history = [{"role": "user", "content": "hi"}, *(item.model_dump() for item in first.output), result]
    await client(served).responses.create(model="default", input=history, tools=[WEATHER])
    assert asked(model.engine, 1).endswith("user\nhi\nassistant\n\ntool\nsunny\nmodel\n")


async def test_an_answers_text_and_its_calls_are_one_turn_again(serve, engine, client) -> None:
    model = ScriptedModel(engine(f"Let me see. {CALL}"))
    served = await serve(model)
    first = await client(served).responses.create(model="default", input="hi", tools=[WEATHER])
    assert [item.type for item in first.output] == ["message", "function_call"]
    result = {
        "type": "function_call_output",
        "call_id": first.output[1].call_id,
        "output": [{"type": "input_text", "text": "sunny"}],
    }
    history = [{"role": "user", "content": "hi"}, *first.output, result]
    await client(served).responses.create(model="default", input=history)
    assert asked(model.engine, 1) == (
        "user\nhi\nassistant\nLet me see. \n<tool_call>\n"
        '{"name": "weather", "arguments": {"city": "서울"}}\n</tool_call>\n'
        'user\n<tool_response>\n{"name": "weather", "content": "sunny"}\n</tool_response>\nmodel\n'
    )


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "name": "weather"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]},
    ],
)
async def test_a_call_can_be_forced(serve, engine, client, choice) -> None:
    named = isinstance(choice, dict) and choice["type"] == "function"
    used = engine('{"city": "Oslo"}' if named else '{"name": "weather", "arguments": {"city": "Oslo"}}')
    served = await serve(ScriptedModel(used))
    wanted = {"model": "default", "input": "hi", "tools": [WEATHER], "tool_choice": choice}
    whole = await client(served).responses.create(**wanted)
    stream = await client(served).responses.create(**wanted, stream=True)
    events = [event async for event in stream]
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert json.loads("".join(deltas)) == json.loads(whole.output[0].arguments) == {"city": "Oslo"}
    assert used.submitted[0].sampling.grammar.field == "tool_choice"
    assert whole.tool_choice == choice if isinstance(choice, str) else whole.tool_choice.type == choice["type"]


@pytest.mark.parametrize(("choice", "status"), [("auto", 200), ("none", 200), ("required", 400)])
async def test_a_choice_that_no_tool_can_meet_is_refused(serve, engine, choice, status) -> None:
    served = await serve(ScriptedModel(engine()))
    body = {"model": "default", "input": "hi", "tool_choice": choice, "parallel_tool_calls": True}
    reply = await served.client.post("/v1/responses", json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error and error["param"]) == (status, "tool_choice" if status == 400 else None)


async def test_a_parsed_answer_is_forced_by_its_schema(serve, engine, client) -> None:
    class City(pydantic.BaseModel):
        """As a user of the package declares what it wants."""

        name: str

    used = engine('{"name": "서울"}')
    served = await serve(ScriptedModel(used))
    answer = await client(served).responses.parse(model="default", input="hi", text_format=City)
    assert answer.output_parsed == City(name="서울")
    assert json.loads(used.submitted[0].sampling.grammar.value)["required"] == ["name"]


async def test_logprobs_come_where_they_are_included(serve, engine, client) -> None:
    served = await serve(ScriptedModel(engine("ab")))
    wanted = {"model": "default", "input": "hi", "top_logprobs": 2, "include": ["message.output_text.logprobs"]}
    whole = await client(served).responses.create(**wanted)
    scored = whole.output[0].content[0].logprobs
    assert [(item.token, len(item.top_logprobs)) for item in scored] == [("a", 2), ("b", 2)]
    stream = await client(served).responses.create(**wanted, stream=True)
    last = [event async for event in stream][-1]
    assert last.response.output[0].content[0].logprobs == scored


async def test_an_image_reaches_the_users_turn_and_is_refused_with_its_place(serve, engine, client) -> None:
    served = await serve(ScriptedModel(engine()))
    image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "high"}
    turn = {"role": "user", "content": [{"type": "input_text", "text": "what?"}, image]}
    with pytest.raises(openai.BadRequestError, match="takes text only") as caught:
        await client(served).responses.create(model="default", instructions="x", input=[turn])
    assert caught.value.param == "input.0.content.1.image_url"
    assert "messages" not in caught.value.message
    with pytest.raises(openai.BadRequestError, match="user's turn only") as caught:
        await client(served).responses.create(model="default", input=[turn | {"role": "system"}])
    assert caught.value.param == "input.0.content.1"


async def test_a_task_named_as_model_brings_its_template(serve, engine, client) -> None:
    used = engine("hello")
    served = await serve(ScriptedModel(used), product())
    answer = await client(served).responses.create(
        model="product", input="a chair", extra_body={"inputs": {"style": "verse"}}
    )
    assert (asked(used), answer.output_text) == ("system\nYou sell.\nuser\nDescribe a chair in verse.\nmodel\n", "he")


async def test_what_a_model_thought_goes_back_with_its_turn(serve, engine) -> None:
    used = engine()
    served = await serve(ScriptedModel(used))
    thought = {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    items = [{"role": "user", "content": "a"}, thought, {"role": "assistant", "content": "b"}]
    body = {"model": "default", "input": [*items, {"role": "user", "content": "c"}]}
    assert (await served.client.post("/v1/responses", json=body)).status_code == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("previous_response_id", "resp_1"),
        ("conversation", "conv_1"),
        ("background", True),
        ("prompt", {"id": "p"}),
        ("context_management", [{"type": "compaction"}]),
        ("truncation", "auto"),
        ("service_tier", "flex"),
        ("include", ["file_search_call.results"]),
        ("tools", [{"type": "web_search"}]),
        ("tools", [{"type": "function", "name": "a b"}]),
        ("input", []),
        ("input", [{"type": "item_reference", "id": "msg_1"}]),
        ("input", [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]),
        ("input", [{"role": "user", "content": [{"type": "input_image", "image_url": "data:x", "file_id": "f"}]}]),
        ("input", [{"role": "robot", "content": "x"}]),
        ("text", {"format": {"type": "json_schema", "name": "a b"}}),
        ("top_logprobs", 21),
        ("unknown", 1),
    ],
)
async def test_what_needs_memory_or_other_tools_is_refused_by_name(serve, engine, client, field, value) -> None:
    used = engine()
    served = await serve(ScriptedModel(used))
    with pytest.raises(openai.BadRequestError) as caught:
        await client(served).post("/responses", body={"model": "default", "input": "hi", field: value}, cast_to=object)
    assert (caught.value.param or "").split(".")[0] == field
    assert field in caught.value.message
    assert not used.submitted


async def test_nothing_can_be_read_later(serve, engine, client) -> None:
    served = await serve(ScriptedModel(engine()))
    ours = client(served).responses
    for later in (
        ours.retrieve("resp_1"),
        ours.cancel("resp_1"),
        ours.input_items.list("resp_1"),
        ours.delete("resp_1"),
    ):
        with pytest.raises(openai.NotFoundError, match="keeps no answers"):
            await later
    with pytest.raises(openai.NotFoundError, match="keeps no answers"):
        await client(served).chat.completions.retrieve("chatcmpl-1")
    with pytest.raises(openai.NotFoundError, match="keeps no answers"):
        await client(served).chat.completions.list()


async def test_an_error_in_mid_stream_ends_it_as_failed(serve, engine, client) -> None:
    served = await serve(ScriptedModel(engine(lambda request: ["a", "<error>"])))
    stream = await client(served).responses.create(model="default", input="hi", stream=True)
    last = [event async for event in stream][-1]
    assert (last.type, last.response.status) == ("response.failed", "failed")
    assert "the script says so" in last.response.error.message


async def test_errors_before_the_first_event_are_a_status(serve, engine, client) -> None:
    served = await serve(ScriptedModel(engine(), max_context=10))
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            await client(served).responses.create(model="default", input="hi" * 9, stream=stream)
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")
