"""OpenAI's API, asked by OpenAI's own Python package."""

from __future__ import annotations

import asyncio
import json

import openai
import pydantic
import pytest

from coldstream.engine.request import Grammar, SamplingParams
from coldstream.serve.middleware.auth import ApiKeys
from coldstream.settings import InputSettings, ModelSettings, SamplingSettings, Settings, TaskSettings
from tests.support.scripted import LetterTokenizer, ScriptedModel

HI = [{"role": "user", "content": "hi"}]


def asked(engine, place: int = 0) -> str:
    return "".join(map(chr, engine.submitted[place].prompt_ids))


async def test_a_chat_is_answered_with_its_usage(serve, engine, client) -> None:
    served = await serve(ScriptedModel(engine("hello")))
    answer = await client(served).chat.completions.create(model="default", messages=HI)
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "hello", "stop")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (14, 5, 19)
    assert (answer.model, answer.object, answer.id[:9]) == ("default", "chat.completion", "chatcmpl-")


async def test_a_streamed_chat_brings_the_same_text_and_at_the_end_its_usage(serve, engine, client) -> None:
    served = await serve(ScriptedModel(engine("안녕 😀")))
    stream = await client(served).chat.completions.create(
        model="default", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    *body, last = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in body) == "안녕 😀"
    assert (body[0].choices[0].delta.role, body[-1].choices[0].finish_reason) == ("assistant", "stop")
    assert (last.choices, last.usage.completion_tokens) == ([], 4)
    assert {chunk.usage for chunk in body} == {None}
    assert len({chunk.id for chunk in chunks}) == 1


async def test_several_choices_come_from_one_prompt_with_their_own_seeds(serve, engine, client) -> None:
    used = engine(lambda request: [str(request.sampling.seed)])
    served = await serve(ScriptedModel(used))
    answer = await client(served).chat.completions.create(model="default", messages=HI, n=3, seed=2**63 - 1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.message.content for choice in answer.choices] == [str(2**63 - 1), str(-(2**63)), str(-(2**63) + 1)]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (14, 3)


async def test_streamed_choices_are_told_apart_by_their_index(serve, engine, client) -> None:
    served = await serve(ScriptedModel(engine(lambda request: list("ab" + request.id[-1]))))
    stream = await client(served).chat.completions.create(model="default", messages=HI, n=2, stream=True)
    texts = {0: "", 1: ""}
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == {0: "ab0", 1: "ab1"}


async def test_every_sampling_field_reaches_the_engine(serve, engine, client) -> None:
    used = engine()
    served = await serve(ScriptedModel(used, defaults=SamplingParams(temperature=1.0, top_k=64)))
    await client(served).chat.completions.create(
        model="default",
        messages=HI,
        temperature=0.3,
        top_p=0.9,
        frequency_penalty=0.1,
        presence_penalty=-0.2,
        seed=7,
        stop=["a", "b"],
        max_completion_tokens=4,
        logit_bias={"65": 5, "66": -100},
        logprobs=True,
        top_logprobs=2,
        extra_body={"min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True, "top_k": -1},
    )
    assert used.submitted[0].sampling == SamplingParams(
        max_tokens=4,
        temperature=0.3,
        top_p=0.9,
        top_k=0,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-0.2,
        frequency_penalty=0.1,
        seed=7,
        stop=("a", "b"),
        ignore_eos=True,
        logprobs=2,
        logit_bias=((65, 5.0), (66, -100.0)),
    )


async def test_a_chat_without_max_tokens_may_fill_the_context(serve, engine, client) -> None:
    used = engine()
    served = await serve(ScriptedModel(used, max_context=100))
    await client(served).chat.completions.create(model="default", messages=HI)
    assert used.submitted[0].sampling.max_tokens == 86


async def test_content_parts_and_the_developer_role_become_what_a_template_knows(serve, engine, client) -> None:
    used = engine()
    served = await serve(ScriptedModel(used))
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    await client(served).chat.completions.create(model="default", messages=messages)
    assert asked(used) == "system\nBe brief.\nuser\none two\nmodel\n"


async def test_chat_logprobs_come_with_their_alternatives_and_bytes(serve, engine, client) -> None:
    served = await serve(ScriptedModel(engine("é")))
    answer = await client(served).chat.completions.create(model="default", messages=HI, logprobs=True, top_logprobs=2)
    (token,) = answer.choices[0].logprobs.content
    assert (token.token, token.logprob, token.bytes) == ("é", -0.5, [0xC3, 0xA9])
    assert [(item.token, item.logprob) for item in token.top_logprobs] == [("é", -0.5), ("ê", -1.5)]


async def test_streamed_logprobs_are_those_of_the_whole_answer(serve, engine, client) -> None:
    served = await serve(ScriptedModel(engine("abc")))
    stream = await client(served).chat.completions.create(model="default", messages=HI, logprobs=True, stream=True)
    tokens = [
        token.token async for chunk in stream for c in chunk.choices if c.logprobs for token in c.logprobs.content
    ]
    assert tokens == ["a", "b", "c"]


async def test_a_completion_continues_text_and_may_echo_it(serve, engine, client) -> None:
    used = engine(" world, and so on and on")
    served = await serve(ScriptedModel(used))
    answer = await client(served).completions.create(model="default", prompt="Hello", echo=True)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("Hello world, and so o", "length")
    assert asked(used) == "Hello"


async def test_several_prompts_and_samples_are_numbered_as_openai_does(serve, engine, client) -> None:
    served = await serve(ScriptedModel(engine(lambda request: [chr(request.prompt_ids[0]), request.id[-1]])))
    answer = await client(served).completions.create(model="default", prompt=["x", "y"], n=2)
    assert [(choice.index, choice.text) for choice in answer.choices] == [(0, "x0"), (1, "x1"), (2, "y2"), (3, "y3")]
    assert answer.usage.prompt_tokens == 2


async def test_a_streamed_completion_echoes_its_prompt_first(serve, engine, client) -> None:
    served = await serve(ScriptedModel(engine("cd")))
    stream = await client(served).completions.create(model="default", prompt="ab", echo=True, logprobs=0, stream=True)
    chunks = [chunk.choices[0] async for chunk in stream]
    assert "".join(choice.text for choice in chunks) == "abcd"
    assert [token for choice in chunks if choice.logprobs for token in choice.logprobs.tokens] == ["a", "b", "c", "d"]
    assert [place for choice in chunks if choice.logprobs for place in choice.logprobs.text_offset] == [0, 1, 2, 3]


@pytest.mark.parametrize("max_tokens", [0, 1])
async def test_lm_evals_loglikelihood_finds_each_prompt_tokens_probability(serve, engine, client, max_tokens) -> None:
    """As lm-eval's local-completions sends it, and as it reads the answer (models/openai_completions.py)."""
    used = engine("!")
    served = await serve(ScriptedModel(used))
    answer = await client(served).completions.create(
        model="default",
        prompt=[[104, 105], [111, 107, 33]],
        max_tokens=max_tokens,
        echo=True,
        logprobs=1,
        temperature=0,
        seed=1,
    )
    drawn = 1 if max_tokens else 0
    for choice, length in zip(answer.choices, (2, 3), strict=True):
        scores = choice.logprobs.token_logprobs
        assert scores[0] is None
        assert scores[1:length] == [-1.0] * (length - 1)
        assert len(scores) == len(choice.logprobs.tokens) == len(choice.logprobs.top_logprobs) == length + drawn
        for score, top in zip(scores[1:], choice.logprobs.top_logprobs[1:], strict=True):
            assert score == max(top.values())
    assert used.submitted[0].sampling.ignore_eos
    assert answer.usage.completion_tokens == 2 * drawn
    assert answer.choices[0].text == ("hi!" if drawn else "hi")


def product() -> Settings:
    task = TaskSettings(
        "product",
        "default",
        prompt="Describe {name} in {style}.",
        system="You sell.",
        prompt_input="name",
        inputs={"style": InputSettings(default="prose")},
        sampling=SamplingSettings(max_tokens=2),
    )
    return Settings({"default": ModelSettings("default", "gs://b/m")}, {"product": task})


async def test_a_task_named_as_model_brings_its_template_and_sampling(serve, engine, client) -> None:
    used = engine("hello")
    served = await serve(ScriptedModel(used), product())
    earlier = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}]
    answer = await client(served).chat.completions.create(
        model="product",
        messages=[*earlier, {"role": "user", "content": "a {chair}"}],
        extra_body={"inputs": {"style": "verse"}},
    )
    assert asked(used) == "system\nYou sell.\nuser\nhi\nassistant\nyes?\nuser\nDescribe a {chair} in verse.\nmodel\n"
    assert answer.choices[0].message.content == "he"
    text = await client(served).completions.create(model="product", prompt="a table")
    assert (asked(used, 1), text.choices[0].text) == (
        "system\nYou sell.\nuser\nDescribe a table in prose.\nmodel\n",
        "he",
    )


async def test_models_and_tasks_are_listed_and_found(serve, engine, client) -> None:
    served = await serve(ScriptedModel(engine()), product())
    listed = await client(served).models.list()
    assert [model.id for model in listed.data] == ["default", "product"]
    assert (await client(served).models.retrieve("product")).id == "product"
    with pytest.raises(openai.NotFoundError, match="there are: default, product"):
        await client(served).models.retrieve("gpt-4")


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "서울"}}</tool_call>'


def with_tools(engine, script: str) -> ScriptedModel:
    return ScriptedModel(engine(script), tokenizer=LetterTokenizer(tools=True))


async def test_a_call_that_the_model_makes_is_found(serve, engine, client) -> None:
    served = await serve(with_tools(engine, f"Let me see. {CALL}"))
    answer = await client(served).chat.completions.create(model="default", messages=HI, tools=TOOLS)
    message = answer.choices[0].message
    (call,) = message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "서울"})
    assert (message.content, answer.choices[0].finish_reason) == ("Let me see. ", "tool_calls")


async def test_a_streamed_call_is_the_same_and_never_shown_as_text(serve, engine, client) -> None:
    served = await serve(with_tools(engine, f"Let me see. {CALL}"))
    async with client(served).chat.completions.stream(model="default", messages=HI, tools=TOOLS) as stream:
        final = await stream.get_final_completion()
    message = final.choices[0].message
    (call,) = message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "서울"})
    assert (message.content, final.choices[0].finish_reason) == ("Let me see. ", "tool_calls")


async def test_a_tools_result_goes_back_to_the_model(serve, engine, client) -> None:
    model = with_tools(engine, CALL)
    served = await serve(model)
    first = await client(served).chat.completions.create(model="default", messages=HI, tools=TOOLS)
    message = first.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}
    await client(served).chat.completions.create(model="default", messages=[*HI, message, result], tools=TOOLS)
    assert asked(model.engine, 1).endswith("tool\nsunny\nmodel\n")


async def test_a_template_that_knows_no_tools_gets_them_and_all_that_came_of_them_as_text(
    serve, engine, client
) -> None:
    model = ScriptedModel(engine(CALL))
    served = await serve(model)
    first = await client(served).chat.completions.create(model="default", messages=HI, tools=TOOLS)
    message = first.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}
    await client(served).chat.completions.create(model="default", messages=[*HI, message, result], tools=TOOLS)
    told, said = asked(model.engine, 1).split("\nuser\nhi\n")
    assert told.startswith("system\n")
    assert '"name": "weather"' in told
    assert said == (
        'assistant\n<tool_call>\n{"name": "weather", "arguments": {"city": "서울"}}\n</tool_call>\n'
        'user\n<tool_response>\n{"name": "weather", "content": "sunny"}\n</tool_response>\nmodel\n'
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("functions", [{"name": "f"}]),
        ("function_call", "auto"),
        ("modalities", ["audio"]),
        ("moderation", {"model": "m"}),
        ("prediction", {"type": "content", "content": "x"}),
        ("prompt_cache_options", {"mode": "explicit"}),
        ("prompt_cache_retention", "24h"),
        ("reasoning_effort", "very"),
        ("service_tier", "flex"),
        ("min_tokens", 3),
        ("chat_template_kwargs", {"messages": []}),
        ("continue_final_message", "yes"),
        ("stop_token_ids", [-1]),
        ("verbosity", "low"),
        ("web_search_options", {}),
        ("temperature", 3),
        ("n", 0),
        ("n", 1000),
        ("top_logprobs", 5),
        ("max_tokens", 0),
        ("stop", ""),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"5": 101}),
        ("stream_options", {"include_usage": True}),
        ("tool_choice", "auto"),
        ("guided_whitespace_pattern", " "),
        ("guided_regex", 5),
        ("inputs", {"a": "b"}),
        ("messages", []),
        ("messages", [{"role": "robot", "content": "x"}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        ("structured_outputs", {}),
        ("structured_outputs", {"regex": "a", "choice": ["b"]}),
    ],
)
async def test_what_is_not_honoured_is_refused_by_name_with_400(serve, engine, client, field, value) -> None:
    used = engine()
    served = await serve(ScriptedModel(used))
    body = {"model": "default", "messages": HI, field: value}
    with pytest.raises(openai.BadRequestError) as caught:
        await client(served).post("/chat/completions", body=body, cast_to=object)
    assert caught.value.type == "invalid_request_error"
    assert (caught.value.param or "").split(".")[0] == field
    assert field in caught.value.message
    assert not used.submitted


@pytest.mark.parametrize(
    ("field", "value"),
    [("best_of", 2), ("suffix", "x"), ("logprobs", 101), ("prompt", []), ("prompt", [[]]), ("prompt", [-1]), ("n", 0)],
)
async def test_completions_refuse_by_name_too(serve, engine, client, field, value) -> None:
    served = await serve(ScriptedModel(engine()))
    with pytest.raises(openai.BadRequestError) as caught:
        await client(served).post(
            "/completions", body={"model": "default", "prompt": "x", field: value}, cast_to=object
        )
    assert (caught.value.param or "").split(".")[0] == field


async def test_neutral_values_of_fields_that_are_not_honoured_are_accepted(serve, engine, client) -> None:
    served = await serve(ScriptedModel(engine()))
    answer = await client(served).chat.completions.create(
        model="default",
        messages=HI,
        store=False,
        metadata={"run": "7"},
        service_tier="auto",
        modalities=["text"],
        verbosity="medium",
        user="u-1",
        safety_identifier="s",
        prompt_cache_key="k",
        response_format={"type": "text"},
        tool_choice="none",
        n=1,
    )
    assert answer.choices[0].message.content == "hello"


async def test_errors_are_the_clients_own_classes(serve, engine, client) -> None:
    served = await serve(ScriptedModel(engine(), max_context=100), keys=ApiKeys.of("secret"))
    with pytest.raises(openai.AuthenticationError) as unauthorized:
        await client(served, "wrong").chat.completions.create(model="default", messages=HI)
    assert (unauthorized.value.code, "wrong" in unauthorized.value.message) == ("invalid_api_key", False)
    good = client(served, "secret")
    with pytest.raises(openai.NotFoundError) as missing:
        await good.chat.completions.create(model="gpt-4", messages=HI)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as long:
        await good.completions.create(model="default", prompt="x" * 100)
    assert long.value.code == "context_length_exceeded"


async def test_an_error_in_mid_stream_reaches_the_client_as_an_error(serve, engine, client) -> None:
    served = await serve(ScriptedModel(engine(lambda request: ["a", "<error>"])))
    stream = await client(served).chat.completions.create(model="default", messages=HI, stream=True)
    chunks = aiter(stream)
    assert (await anext(chunks)).choices[0].delta.role == "assistant"
    with pytest.raises(openai.APIError, match="the script says so"):
        [chunk async for chunk in chunks]


async def test_the_synchronous_client_streams_too(serve, engine) -> None:
    served = await serve(ScriptedModel(engine("hello")))

    def ask() -> str:
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            stream = client.chat.completions.create(model="default", messages=HI, stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    assert await asyncio.to_thread(ask) == "hello"


@pytest.mark.parametrize(
    ("asked_for", "grammar"),
    [
        ({"response_format": {"type": "json_object"}}, ("json_schema", '{"type": "object"}', "response_format")),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"const": "é"}}}},
            ("json_schema", '{"const": "é"}', "response_format"),
        ),
        ({"structured_outputs": {"json": '{"const": 1}'}}, ("json_schema", '{"const": 1}', "structured_outputs")),
        ({"structured_outputs": {"regex": "a+"}}, ("regex", "a+", "structured_outputs")),
        ({"structured_outputs": {"choice": ["x", "y"]}}, ("choice", ("x", "y"), "structured_outputs")),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, ("lark", 'start: "a"', "structured_outputs")),
        ({"guided_json": {"const": 1}}, ("json_schema", '{"const": 1}', "guided_json")),
        ({"guided_json": '{"const": 1}'}, ("json_schema", '{"const": 1}', "guided_json")),
        ({"guided_regex": "a+"}, ("regex", "a+", "guided_regex")),
        ({"guided_choice": ["x", "y"]}, ("choice", ("x", "y"), "guided_choice")),
        ({"guided_grammar": 'start: "a"'}, ("lark", 'start: "a"', "guided_grammar")),
    ],
)
async def test_what_the_output_must_obey_reaches_the_engine(serve, engine, client, asked_for, grammar) -> None:
    used = engine()
    served = await serve(ScriptedModel(used))
    body = {"model": "default", "messages": HI, **asked_for}
    await client(served).post("/chat/completions", body=body, cast_to=object)
    assert used.submitted[0].sampling.grammar == Grammar(*grammar)


@pytest.mark.parametrize("schema", ["true", "false", "null", "[1]", '"x"', "NaN", '{"const": NaN}', "{", "[" * 2000])
@pytest.mark.parametrize("field", ["guided_json", "structured_outputs.json"])
async def test_a_schema_that_is_no_object_of_json_is_refused_before_a_worker_sees_it(
    serve, engine, client, field, schema
) -> None:
    used = engine()
    served = await serve(ScriptedModel(used))
    asked_for = {"guided_json": schema} if field == "guided_json" else {"structured_outputs": {"json": schema}}
    with pytest.raises(openai.BadRequestError, match=field):
        await client(served).post(
            "/chat/completions", body={"model": "default", "messages": HI, **asked_for}, cast_to=object
        )
    assert not used.submitted


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize(
    "field", ['"metadata": {"a": %s}', '"guided_json": {"const": [%s]}', '"chat_template_kwargs": {"a": {"b": %s}}']
)
async def test_numbers_that_json_has_not_are_refused_in_free_json(serve, engine, field, number) -> None:
    served = await serve(ScriptedModel(engine()))
    body = '{"model": "default", "messages": [{"role": "user", "content": "x"}], ' + field % number + "}"
    reply = await served.client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert "finite" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    "asked", [{"n": 16, "max_tokens": 1000, "top_logprobs": 20}, {"max_tokens": 90_000, "top_logprobs": 2}]
)
async def test_more_log_probabilities_than_are_held_are_refused_before_one_is_made(
    serve, engine, client, asked
) -> None:
    used = engine()
    served = await serve(ScriptedModel(used, max_context=100_000))
    with pytest.raises(openai.BadRequestError, match="at most 262,144 are given: lower max_tokens or n"):
        await client(served).chat.completions.create(model="default", messages=HI, logprobs=True, **asked)
    assert not used.submitted


async def test_an_answer_of_any_length_has_as_many_log_probabilities_as_are_held(serve, engine, client) -> None:
    used = engine()
    served = await serve(ScriptedModel(used, max_context=100_000))
    await client(served).chat.completions.create(model="default", messages=HI, logprobs=True, top_logprobs=20, n=2)
    assert [request.sampling.max_tokens for request in used.submitted] == [262_144 // 42] * 2


async def test_a_parsed_pydantic_answer_is_forced_by_its_schema(serve, engine, client) -> None:
    class City(pydantic.BaseModel):
        """As a user of the package declares what it wants."""

        name: str

    used = engine('{"name": "서울"}')
    served = await serve(ScriptedModel(used))
    answer = await client(served).chat.completions.parse(model="default", messages=HI, response_format=City)
    assert answer.choices[0].message.parsed == City(name="서울")
    assert json.loads(used.submitted[0].sampling.grammar.value)["required"] == ["name"]


async def test_a_named_function_is_forced_and_its_arguments_stream(serve, engine, client) -> None:
    used = engine('{"city": "Oslo"}')
    served = await serve(ScriptedModel(used))
    choice = {"type": "function", "function": {"name": "weather"}}
    stream = await client(served).chat.completions.create(
        model="default", messages=HI, tools=TOOLS, tool_choice=choice, stream=True
    )
    deltas = [chunk.choices[0].delta async for chunk in stream]
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    assert (calls[0].function.name, calls[0].id[:5]) == ("weather", "call_")
    assert len(calls) > 5
    assert "".join(call.function.arguments or "" for call in calls) == '{"city": "Oslo"}'
    grammar = used.submitted[0].sampling.grammar
    assert (grammar.field, '"required": ["city"]' in grammar.value) == ("tool_choice", True)
    assert '"name": "weather"' in asked(used)  # its template knows no tools, so the system text describes them


class Weather(pydantic.BaseModel):
    """The weather of a city, as users of the package declare a tool."""

    city: str


async def test_parsed_calls_go_round_with_all_that_the_client_adds_to_them(serve, engine, client) -> None:
    used = engine(CALL.replace("weather", "Weather"))
    served = await serve(ScriptedModel(used))
    tool = openai.pydantic_function_tool(Weather)
    assert tool["function"]["strict"] is True
    parse = client(served).chat.completions.parse
    first = await parse(model="default", messages=HI, tools=[tool])
    message = first.choices[0].message
    assert message.tool_calls[0].function.parsed_arguments == Weather(city="서울")
    assert used.submitted[0].sampling.grammar.field == "tools"
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "name": "Weather", "content": "sunny"}
    history = [*HI, message.model_dump(), result]
    second = await parse(model="default", messages=history, tools=[tool], response_format=Weather)
    assert second.choices[0].finish_reason == "tool_calls"
    assert asked(used, 1).endswith('{"name": "Weather", "content": "sunny"}\n</tool_response>\nmodel\n')


async def test_a_required_call_is_forced_by_grammar_and_found(serve, engine, client) -> None:
    used = engine('{"name": "weather", "arguments": {"city": "Oslo"}}')
    served = await serve(ScriptedModel(used))
    chats, wanted = client(served).chat.completions, {"model": "default", "messages": HI, "tools": TOOLS}
    whole = await chats.create(**wanted, tool_choice="required")
    async with chats.stream(**wanted, tool_choice="required") as stream:
        streamed = await stream.get_final_completion()
    for answer in (whole, streamed):
        (call,) = answer.choices[0].message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Oslo"})
        assert answer.choices[0].finish_reason == "tool_calls"
    assert used.submitted[0].sampling.grammar.field == "tool_choice"


async def test_a_forced_call_leaves_nothing_to_a_format_and_excludes_every_other_constraint(
    serve, engine, client
) -> None:
    used = engine('{"name": "weather", "arguments": {"city": "Oslo"}}')
    served = await serve(ScriptedModel(used))
    forced = {"model": "default", "messages": HI, "tools": TOOLS, "tool_choice": "required"}
    answer = await client(served).chat.completions.create(**forced, response_format={"type": "json_object"})
    assert answer.choices[0].message.tool_calls[0].function.name == "weather"
    with pytest.raises(openai.BadRequestError, match="exclude each other"):
        await client(served).chat.completions.create(**forced, extra_body={"guided_regex": "a"})


async def test_tags_of_calls_that_are_control_tokens_are_shown_where_there_are_tools(serve, engine) -> None:
    tokenizer = LetterTokenizer(tools=True)
    tokenizer.special_texts = {"<tool_call>": 7, "</tool_call>": 8, "<eos>": 9}
    used = engine('Well. <tool_call>{"name": "f", "arguments": {}}</tool_call>')
    served = await serve(ScriptedModel(used, tokenizer=tokenizer))
    body = {"model": "default", "messages": [{"role": "user", "content": "hi"}]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    answer = (await served.client.post("/v1/chat/completions", json={**body, "tools": tools})).json()["choices"][0]
    assert answer["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    assert (answer["message"]["content"], answer["finish_reason"]) == ("Well. ", "tool_calls")
    await served.client.post("/v1/chat/completions", json=body)
    assert [request.sampling.shown_tokens for request in used.submitted] == [{7, 8}, frozenset()]


@pytest.mark.parametrize("stream", [False, True])
async def test_parameters_in_xml_have_the_types_of_their_function(serve, engine, client, stream) -> None:
    said = "<tool_call><function=f><parameter=a>1</parameter><parameter=b>1</parameter></function></tool_call>"
    served = await serve(ScriptedModel(engine(said), tokenizer=LetterTokenizer(tools=True)))
    kinds = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}}
    asked_for = {"messages": HI, "tools": [{"type": "function", "function": {"name": "f", "parameters": kinds}}]}
    answer = await client(served).chat.completions.create(model="default", stream=stream, **asked_for)
    if stream:
        (call,) = [
            item for chunk in [part async for part in answer] for item in chunk.choices[0].delta.tool_calls or ()
        ]
    else:
        (call,) = answer.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"a": "1", "b": 1}


async def test_the_characters_that_are_counted_are_no_more_than_the_prompt_has(serve, engine) -> None:
    served = await serve(ScriptedModel(engine(), max_context=2000, tokenizer=LetterTokenizer()))
    body = {"model": "default", "messages": HI * 170, "max_tokens": 1}  # a long one, of short turns
    reply = await served.client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200
    tools = [{"type": "function", "function": {"name": "f", "description": "x" * 20000}}]
    named = LetterTokenizer(tools=True)  # writes the names only
    served = await serve(ScriptedModel(engine(), max_context=2000, tokenizer=named))
    reply = await served.client.post("/v1/chat/completions", json={**body, "tools": tools, "messages": HI})
    assert reply.status_code == 200
