"""What clients send to /v1/chat/completions beside a message: what they return, hints, and fields of vLLM's."""

from __future__ import annotations

import json

import pytest

from coldstream.engine.request import SamplingParams
from tests.serve.openai.test_openai import CALL, HI, TOOLS, asked
from tests.support.scripted import LetterTokenizer, ScriptedModel

PATH = "/v1/chat/completions"
CALLED = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
USER = {"role": "user", "content": "hi"}


def answered(**fields) -> list[dict]:
    return [USER, {"role": "assistant", "content": "yo", **fields}, {"role": "user", "content": "ok"}]


def called(call=CALLED, **result) -> list[dict]:
    made = {"role": "assistant", "content": None, "tool_calls": [call]}
    return [USER, made, {"role": "tool", "tool_call_id": "c1", "content": "1", **result}]


PLAIN = "user\nhi\nassistant\nyo\nuser\nok\nmodel\n"


@pytest.mark.parametrize(
    "messages",
    [
        answered(id="m"),
        answered(parsed=None),
        answered(parsed={"a": 1}),
        answered(refusal=None),
        answered(annotations=[{"type": "url_citation"}]),
        answered(audio=None),
        answered(function_call=None, tool_calls=None),
        answered(tool_calls=[]),
        answered(provider_specific_fields={"x": 1}),
        answered(reasoning_content=None),
        answered(reasoning_content=""),
        answered(thinking_blocks=[]),
        answered(content=[{"type": "text", "text": "yo", "cache_control": {"type": "ephemeral"}}]),
        answered(content=None, refusal="yo"),
        answered(content=[{"type": "refusal", "refusal": "yo"}]),
    ],
)
async def test_an_answer_that_comes_back_with_notes_on_it_is_that_answer(serve, engine, messages) -> None:
    used = engine()
    served = await serve(ScriptedModel(used))
    reply = await served.client.post(PATH, json={"model": "default", "messages": messages})
    assert reply.status_code == 200, reply.text
    assert asked(used) == PLAIN


class Seen(LetterTokenizer):
    """Keeps what a template would have got."""

    def __init__(self) -> None:
        super().__init__(tools=True)
        self.turns, self.told, self.variables = [], None, {}

    def apply_chat_template(self, messages, *, add_generation_prompt=True, tools=None, variables=None) -> str:
        self.turns, self.told, self.variables = list(messages), tools, variables
        return super().apply_chat_template(messages, add_generation_prompt=add_generation_prompt)


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        (CALLED, {"a": 1}),
        (CALLED | {"index": 0}, {"a": 1}),
        ({"id": "c1", "function": CALLED["function"] | {"parsed_arguments": {}}}, {"a": 1}),
        (CALLED | {"function": {"name": "f", "arguments": None}}, {}),
        (CALLED | {"function": {"name": "f", "arguments": ""}}, {}),
        (CALLED | {"function": {"name": "f", "arguments": {"a": 1}}}, {"a": 1}),
        (CALLED | {"function": {"name": "f", "arguments": '{"city": "Par'}}, '{"city": "Par'),
        (CALLED | {"function": {"name": "f", "arguments": "[1]"}}, "[1]"),
        (CALLED | {"function": {"name": "f", "arguments": "[" * 5000}}, "[" * 5000),
    ],
)
async def test_a_call_that_comes_back_is_the_call_that_was_made_whatever_the_model_wrote(
    serve, engine, call, arguments
) -> None:
    seen = Seen()
    served = await serve(ScriptedModel(engine(), tokenizer=seen))
    for result in ({}, {"name": "f"}, {"content": [{"type": "text", "text": "1"}]}, {"status": "done"}):
        reply = await served.client.post(PATH, json={"model": "default", "messages": called(call, **result)})
        assert reply.status_code == 200, reply.text
        assert seen.turns[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": arguments}
        assert seen.turns[2] == {"role": "tool", "content": "1", "tool_call_id": "c1", "name": "f"}


async def test_the_older_form_of_calls_is_the_newer_one(serve, engine) -> None:
    seen = Seen()
    served = await serve(ScriptedModel(engine(), tokenizer=seen))
    made = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    messages = [USER, made, {"role": "function", "name": "f", "content": "1"}]
    assert (await served.client.post(PATH, json={"model": "default", "messages": messages})).status_code == 200
    (call,) = seen.turns[1]["tool_calls"]
    assert (call["function"]["name"], call["id"]) == ("f", seen.turns[2]["tool_call_id"])
    assert (seen.turns[2]["role"], seen.turns[2]["name"]) == ("tool", "f")


async def test_thoughts_and_names_go_to_the_template(serve, engine) -> None:
    seen = Seen()
    served = await serve(ScriptedModel(engine(), tokenizer=seen))
    messages = answered(reasoning_content="hm", name="bot")
    assert (await served.client.post(PATH, json={"model": "default", "messages": messages})).status_code == 200
    assert seen.turns[1] == {"role": "assistant", "content": "yo", "reasoning_content": "hm", "name": "bot"}


@pytest.mark.parametrize(
    ("fields", "variables"),
    [
        ({}, {}),
        ({"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "none", "enable_thinking": False}),
        ({"chat_template_kwargs": {"enable_thinking": False, "x": [1]}}, {"enable_thinking": False, "x": [1]}),
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
            {"reasoning_effort": "none", "enable_thinking": True},
        ),
    ],
)
async def test_what_a_template_may_read_is_a_variable_of_it(serve, engine, fields, variables) -> None:
    seen = Seen()
    served = await serve(ScriptedModel(engine(), tokenizer=seen))
    assert (await served.client.post(PATH, json={"model": "default", "messages": HI, **fields})).status_code == 200
    assert seen.variables == variables


async def test_a_function_without_parameters_takes_none_and_hints_are_not_told(serve, engine) -> None:
    seen = Seen()
    served = await serve(ScriptedModel(engine(), tokenizer=seen))
    function = {"name": "now", "parameters": None, "strict": None, "cache_control": {"type": "ephemeral"}}
    body = {"model": "default", "messages": HI, "tools": [{"type": "function", "function": function}]}
    assert (await served.client.post(PATH, json=body)).status_code == 200
    told = {"name": "now", "parameters": {"type": "object", "properties": {}}}
    assert seen.told == [{"type": "function", "function": told}]


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []},
        {"tools": [], "tool_choice": "auto"},
        {"metadata": {"a": "b"}},
        {"store": True},
        {"user": "u", "service_tier": "auto", "prediction": None, "safety_identifier": "s"},
        {"max_tokens": 16.0, "n": 1.0, "seed": 5.0, "top_k": 40.0},
        {"top_p": 0},
        {"min_tokens": 0, "use_beam_search": False, "skip_special_tokens": True, "length_penalty": 1.0},
        {"guided_decoding_backend": "auto"},
        {"logit_bias": {}, "stop": []},
    ],
)
async def test_what_asks_for_nothing_or_little_is_taken(serve, engine, fields) -> None:
    used = engine()
    served = await serve(ScriptedModel(used))
    reply = await served.client.post(PATH, json={"model": "default", "messages": HI, **fields})
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["message"]["content"] == "hello"


async def test_stop_ids_and_whole_numbers_reach_the_engine(serve, engine) -> None:
    used = engine()
    served = await serve(ScriptedModel(used, defaults=SamplingParams(stop_token_ids=frozenset({9}))))
    fields = {"stop_token_ids": [2, 7.0], "max_tokens": 16.0, "top_p": 0, "top_k": -1.0}
    for path, prompt in ((PATH, {"messages": HI}), ("/v1/completions", {"prompt": "hi"})):
        assert (await served.client.post(path, json={"model": "default", **prompt, **fields})).status_code == 200
        sampling = used.submitted[-1].sampling
        assert (sampling.stop_token_ids, sampling.max_tokens, sampling.top_p, sampling.top_k) == ({2, 7, 9}, 16, 0, 0)
    assert (await served.client.post(PATH, json={"model": "default", "messages": HI, "n": 1.5})).status_code == 400


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions", "/v1/completions"])
async def test_one_rule_for_temperature_everywhere(serve, engine, path) -> None:
    served = await serve(ScriptedModel(engine()))
    body = {
        "/generate": {"prompt": "x"},
        PATH: {"model": "default", "messages": HI},
        "/v1/completions": {"model": "default", "prompt": "x"},
    }[path]
    statuses = [
        (await served.client.post(path, json=body | {"temperature": value})).status_code for value in (0, 2, 2.1, -0.1)
    ]
    assert [status < 300 for status in statuses] == [True, True, False, False]


@pytest.mark.parametrize("path", [PATH, "/v1/completions"])
async def test_a_streams_usage_can_come_with_every_chunk(serve, engine, path) -> None:
    served = await serve(ScriptedModel(engine("abc")))
    prompt = {"messages": HI} if path == PATH else {"prompt": "hi"}
    options = {"include_usage": True, "continuous_usage_stats": True}
    reply = await served.client.post(
        path, json={"model": "default", **prompt, "stream": True, "stream_options": options}
    )
    chunks = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
    counted = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counted == sorted(counted)
    assert (counted[-1], chunks[-1]["choices"]) == (3, [])
    assert all(chunk["usage"]["total_tokens"] >= chunk["usage"]["prompt_tokens"] > 0 for chunk in chunks)


def nested(depth: int, key: str = "properties") -> dict:
    value: dict = {"type": "string"}
    for _ in range(depth):
        value = {"type": "object", key: {"a": value}}
    return value


@pytest.mark.parametrize("depth", [60, 400])
@pytest.mark.parametrize(
    ("path", "field", "wrap"),
    [
        (
            PATH,
            "tools.0.function.parameters",
            lambda schema: {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]},
        ),
        (
            PATH,
            "response_format.json_schema.schema",
            lambda schema: {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}},
        ),
        (PATH, "guided_json", lambda schema: {"guided_json": json.dumps(schema)}),
        (PATH, "chat_template_kwargs", lambda schema: {"chat_template_kwargs": schema}),
        (
            "/v1/responses",
            "tools.0.parameters",
            lambda schema: {"tools": [{"type": "function", "name": "f", "parameters": schema}]},
        ),
    ],
)
async def test_what_is_nested_too_deep_is_refused_by_name(serve, engine, path, field, wrap, depth) -> None:
    served = await serve(ScriptedModel(engine()))
    prompt = {"messages": HI} if path == PATH else {"input": "hi"}
    reply = await served.client.post(path, json={"model": "default", **prompt, **wrap(nested(depth))})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, field)
    assert (
        "100 levels" in reply.json()["error"]["message"]
        or "not JSON that can be read" in reply.json()["error"]["message"]
    )
    fine = await served.client.post(path, json={"model": "default", **prompt, **wrap(nested(40))})
    assert fine.status_code == 200, fine.text


# -- continuing --------------------------------------------------------------------------------------------------------

PREFILLED = [USER, {"role": "assistant", "content": '{"a": '}]
BEGUN = 'user\nhi\nassistant\n{"a": '


@pytest.mark.parametrize(
    ("messages", "fields", "prompt"),
    [
        (PREFILLED, {}, BEGUN),
        (PREFILLED, {"continue_final_message": True, "add_generation_prompt": False}, BEGUN),
        (PREFILLED, {"continue_final_message": False}, BEGUN + "\nmodel\n"),
        (PREFILLED, {"add_generation_prompt": True}, BEGUN + "\nmodel\n"),
        (PREFILLED, {"add_generation_prompt": False}, BEGUN),
        ([USER], {"continue_final_message": True}, "user\nhi"),
        ([USER], {"add_generation_prompt": False}, "user\nhi\n"),
        ([USER, {"role": "assistant", "content": ""}], {}, "user\nhi\nmodel\n"),
        ([USER, {"role": "assistant", "content": None}], {}, "user\nhi\nmodel\n"),
    ],
)
async def test_an_answer_that_was_begun_is_continued_where_it_ends(serve, engine, messages, fields, prompt) -> None:
    used = engine("1}")
    served = await serve(ScriptedModel(used))
    reply = await served.client.post(PATH, json={"model": "default", "messages": messages, **fields})
    assert reply.status_code == 200, reply.text
    assert asked(used) == prompt
    assert reply.json()["choices"][0]["message"]["content"] == "1}"


@pytest.mark.parametrize(
    ("messages", "fields"),
    [
        (PREFILLED, {"continue_final_message": True, "add_generation_prompt": True}),
        ([USER, {"role": "assistant", "content": ""}], {"continue_final_message": True}),
        ([USER, {"role": "assistant", "content": "x", "tool_calls": [CALLED]}], {"continue_final_message": True}),
    ],
)
async def test_what_cannot_be_continued_is_refused_by_name(serve, engine, messages, fields) -> None:
    served = await serve(ScriptedModel(engine()))
    reply = await served.client.post(PATH, json={"model": "default", "messages": messages, **fields})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "continue_final_message")


class Quoting(LetterTokenizer):
    """Its template writes JSON."""

    def apply_chat_template(self, messages, **options) -> str:
        return json.dumps(list(messages))


async def test_a_template_that_does_not_write_the_text_as_it_stands_cannot_continue_it(serve, engine) -> None:
    served = await serve(ScriptedModel(engine(), tokenizer=Quoting()))
    reply = await served.client.post(PATH, json={"model": "default", "messages": PREFILLED})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "continue_final_message")


# -- tools -------------------------------------------------------------------------------------------------------------

STRICT = [{"type": "function", "function": TOOLS[0]["function"] | {"strict": True}}]


@pytest.mark.parametrize("knows_tools", [True, False])
async def test_strict_functions_are_held_to_their_schema_where_the_model_calls_them(serve, engine, knows_tools) -> None:
    used = engine(CALL)
    served = await serve(ScriptedModel(used, tokenizer=LetterTokenizer(tools=knows_tools)))
    for choice in ({}, {"tool_choice": "auto"}):
        reply = await served.client.post(PATH, json={"model": "default", "messages": HI, "tools": STRICT, **choice})
        assert reply.json()["choices"][0]["finish_reason"] == "tool_calls"
        grammar = used.submitted[-1].sampling.grammar
        assert (grammar.kind, grammar.field) == ("lark", "tools")
        assert '"city"' in grammar.value


@pytest.mark.parametrize("template", ["[TOOL_CALLS]", "<tool_call>\n<function={{ name }}>"])
async def test_a_model_that_calls_in_another_form_is_not_held_to_ours(serve, engine, template) -> None:
    used = engine('{"p": 1}')
    tokenizer = LetterTokenizer(tools=True)
    tokenizer.chat_template = template
    served = await serve(ScriptedModel(used, tokenizer=tokenizer))
    body = {"model": "default", "messages": HI, "tools": STRICT}
    assert (await served.client.post(PATH, json=body)).status_code == 200
    assert used.submitted[0].sampling.grammar is None
    body |= {"response_format": {"type": "json_object"}}
    assert (await served.client.post(PATH, json=body)).status_code == 200
    assert "anyOf" in used.submitted[1].sampling.grammar.value


async def test_without_strict_a_call_is_the_models_own(serve, engine) -> None:
    used = engine(CALL)
    served = await serve(ScriptedModel(used))
    await served.client.post(PATH, json={"model": "default", "messages": HI, "tools": TOOLS})
    assert used.submitted[0].sampling.grammar is None


async def test_a_format_with_tools_leaves_room_for_a_call(serve, engine) -> None:
    used = engine(CALL)
    served = await serve(ScriptedModel(used, tokenizer=LetterTokenizer(tools=True)))
    body = {"model": "default", "messages": HI, "tools": TOOLS, "response_format": {"type": "json_object"}}
    reply = await served.client.post(PATH, json=body)
    assert reply.json()["choices"][0]["finish_reason"] == "tool_calls"
    grammar = used.submitted[0].sampling.grammar
    assert (grammar.field, "answer | tagged" in grammar.value) == ("response_format", True)


OTHER = [*TOOLS, {"type": "function", "function": {"name": "now"}}]


@pytest.mark.parametrize("mode", ["auto", "required"])
async def test_a_part_of_the_tools_can_be_allowed(serve, engine, mode) -> None:
    seen = Seen()
    used = engine(CALL if mode == "auto" else '{"name": "weather", "arguments": {"city": "서울"}}')
    served = await serve(ScriptedModel(used, tokenizer=seen))
    allowed = {"mode": mode, "tools": [{"type": "function", "function": {"name": "weather"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    body = {"model": "default", "messages": HI, "tools": OTHER, "tool_choice": choice}
    reply = await served.client.post(PATH, json=body)
    assert reply.json()["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "weather"
    assert [tool["function"]["name"] for tool in seen.told] == ["weather"]
    allowed["tools"][0]["function"]["name"] = "missing"
    reply = await served.client.post(PATH, json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "tool_choice")
