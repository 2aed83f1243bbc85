"""POST /generate, as its users send it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from coldstream.engine.request import SamplingParams
from coldstream.errors import ObjectNotFound
from coldstream.settings import (
    InputSettings,
    ModelSettings,
    SamplingSettings,
    ServerSettings,
    Settings,
    TaskSettings,
    for_uri,
)
from tests.support.scripted import LetterTokenizer, ScriptedModel


def with_tasks(*tasks: TaskSettings, server: ServerSettings | None = None) -> Settings:
    models = {"default": ModelSettings("default", "gs://bucket/default")}
    return Settings(models, {task.name: task for task in tasks}, server or ServerSettings())


SQL = TaskSettings(
    "sql",
    "default",
    prompt="Schema: {context}\nQuestion: {question}",
    system="You write {dialect}.",
    prompt_input="question",
    inputs={"dialect": InputSettings("choice", "SQL", ("SQL", "PRQL"))},
    sampling=SamplingSettings(max_tokens=3, temperature=0.5, stop=(";",)),
)


async def test_the_answer_is_a_json_string_with_only_the_generated_text(serve, engine) -> None:
    served = await serve(ScriptedModel(engine("안녕 😀")))
    reply = await served.client.post("/generate", json={"type": "text", "prompt": "hi", "max_tokens": 150})
    assert (reply.status_code, reply.json()) == (200, "안녕 😀")
    assert reply.headers["content-type"] == "application/json"


async def test_a_task_with_a_schema_has_a_grammar_of_its_tables_and_none_where_none_is_shown(serve, engine) -> None:
    task = TaskSettings("sql", "default", prompt="{context}\n{question}", prompt_input="question", sql_schema="context")
    used = engine("SELECT 1;")
    served = await serve(ScriptedModel(used), with_tasks(task))
    for schema in ("CREATE TABLE t (a INT)", "a table"):
        body = {"prompt": "a over 7?", "inputs": {"context": schema}}
        assert (await served.client.post("/generate", json=body)).status_code == 200
    shown, none = (request.sampling.grammar for request in used.submitted)
    assert none is None
    assert shown is not None
    assert (shown.kind, shown.field) == ("lark", "inputs.context")
    assert '"7"' in shown.value


async def test_echo_puts_the_decoded_prompt_before_the_text(serve, engine) -> None:
    served = await serve(ScriptedModel(engine("fine")))
    reply = await served.client.post("/generate", json={"type": "text", "prompt": "How?", "echo": True})
    assert reply.json() == "user\nHow?\nmodel\nfine"


async def test_details_give_counts_timings_and_what_was_used(serve, engine) -> None:
    served = await serve(ScriptedModel(engine("SELECT")), with_tasks(SQL))
    body = {"type": "sql", "prompt": "how many?", "inputs": {"context": "t"}, "details": True}
    reply = (await served.client.post("/generate", json=body)).json()
    assert reply.pop("timings").keys() == {
        "queued_seconds",
        "first_token_seconds",
        "total_seconds",
        "tokens_per_second",
    }
    assert reply == {
        "text": "SEL",
        "finish_reason": "length",
        "usage": {"prompt_tokens": 63, "cached_tokens": 0, "completion_tokens": 3},
        "model": "default",
        "revision": "abc123",
        "task": "sql",
        "inputs_defaulted": ["dialect"],
    }


async def read_events(reply: Any) -> list[Any]:
    lines = [line async for line in reply.aiter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


async def test_a_stream_brings_the_same_text_and_ends_in_done(serve, engine) -> None:
    served = await serve(ScriptedModel(engine("hello")))
    async with served.client.stream("POST", "/generate", json={"prompt": "hi", "stream": True, "echo": True}) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        *events, last, done = await read_events(reply)
    assert "".join(event["text"] for event in events) == "user\nhi\nmodel\nhello"
    assert (last, done) == ({"text": "", "finish_reason": "stop"}, "[DONE]")


async def test_a_stream_delivers_each_token_as_soon_as_it_is_there(serve, engine) -> None:
    slow = engine("abc", manual=True)
    served = await serve(ScriptedModel(slow))
    asking = served.client.stream("POST", "/generate", json={"prompt": "hi", "stream": True})
    opening = asyncio.create_task(asking.__aenter__())
    await asyncio.to_thread(slow.wait_until, lambda: bool(slow.submitted))
    await asyncio.to_thread(slow.step)
    reply = await opening
    lines = reply.aiter_lines()
    assert json.loads((await anext(lines))[6:]) == {"text": "a"}
    await anext(lines)
    await asyncio.to_thread(slow.step)
    assert json.loads((await anext(lines))[6:]) == {"text": "b"}
    await asking.__aexit__(None, None, None)


async def test_sampling_is_the_models_then_the_tasks_then_the_requests(serve, engine) -> None:
    used = engine()
    defaults = SamplingParams(temperature=1.0, top_k=64, top_p=0.95, stop_token_ids=frozenset({1, 106}))
    served = await serve(ScriptedModel(used, defaults=defaults), with_tasks(SQL))
    body = {
        "type": "sql",
        "inputs": {"context": "t", "question": "q"},
        "top_p": 0.5,
        "seed": -7,
        "stop": "\n\n",
        "min_p": 0,
    }
    assert (await served.client.post("/generate", json=body)).status_code == 200
    assert used.submitted[0].sampling == SamplingParams(
        max_tokens=3,
        temperature=0.5,
        top_k=64,
        top_p=0.5,
        min_p=0,
        seed=-7,
        stop=(";", "\n\n"),
        stop_token_ids=frozenset({1, 106}),
    )


async def test_max_tokens_is_cut_to_what_the_context_still_holds(serve, engine) -> None:
    used = engine("hello world")
    served = await serve(ScriptedModel(used, max_context=20))
    body = {"prompt": "hi", "max_tokens": 1000, "details": True}
    reply = (await served.client.post("/generate", json=body)).json()
    assert (used.submitted[0].sampling.max_tokens, reply["finish_reason"]) == (6, "length")


async def test_what_a_user_sends_is_never_read_as_a_template(serve, engine) -> None:
    used = engine()
    served = await serve(ScriptedModel(used), with_tasks(SQL))
    body = {"type": "sql", "inputs": {"context": "{question} {{ {0.__class__}", "question": "{context}"}}
    assert (await served.client.post("/generate", json=body)).status_code == 200
    prompt = "".join(map(chr, used.submitted[0].prompt_ids))
    assert prompt == ("system\nYou write SQL.\nuser\nSchema: {question} {{ {0.__class__}\nQuestion: {context}\nmodel\n")


async def test_a_base_model_continues_plain_text(serve, engine) -> None:
    used = engine()
    served = await serve(ScriptedModel(used, tokenizer=LetterTokenizer(chat=False)), with_tasks(SQL))
    await served.client.post("/generate", json={"type": "sql", "prompt": "q", "inputs": {"context": "c"}})
    assert "".join(map(chr, used.submitted[0].prompt_ids)) == "You write SQL.\n\nSchema: c\nQuestion: q"


async def test_a_template_without_system_role_gets_the_system_text_in_the_users_turn(serve, engine) -> None:
    used = engine()
    served = await serve(ScriptedModel(used, tokenizer=LetterTokenizer(system=False)), with_tasks(SQL))
    await served.client.post("/generate", json={"type": "sql", "prompt": "q", "inputs": {"context": "c"}})
    prompt = "".join(map(chr, used.submitted[0].prompt_ids))
    assert prompt == "user\nYou write SQL.\n\nSchema: c\nQuestion: q\nmodel\n"


@pytest.mark.parametrize(
    ("body", "status", "kind", "field", "allowed"),
    [
        ({"type": "nope", "prompt": "x"}, 404, "UnknownTask", "type", ["sql", "text"]),
        ({"prompt": "x"}, 422, "InvalidRequest", "type", ["sql", "text"]),
        ({"type": "text"}, 422, "InvalidRequest", "prompt", []),
        ({"type": "sql", "prompt": "x"}, 422, "InvalidRequest", "inputs.context", []),
        ({"type": "sql", "prompt": "x", "inputs": {"question": "y"}}, 422, "InvalidRequest", "prompt", []),
        (
            {"type": "sql", "inputs": {"colour": "red"}},
            422,
            "InvalidRequest",
            "inputs.colour",
            ["dialect", "context", "question"],
        ),
        (
            {"type": "sql", "prompt": "x", "inputs": {"context": "c", "dialect": "COBOL"}},
            422,
            "InvalidRequest",
            "inputs.dialect",
            ["SQL", "PRQL"],
        ),
        ({"type": "text", "prompt": 5}, 422, "InvalidRequest", "prompt", []),
        ({"type": "text", "prompt": "x", "max_tokens": "5"}, 422, "InvalidRequest", "max_tokens", []),
        ({"type": "text", "prompt": "x", "max_tokens": 0}, 422, "InvalidRequest", "max_tokens", []),
        ({"type": "text", "prompt": "x", "max_tokens": True}, 422, "InvalidRequest", "max_tokens", []),
        ({"type": "text", "prompt": "x", "temperature": -1}, 422, "InvalidRequest", "temperature", []),
        ({"type": "text", "prompt": "x", "stop": [""]}, 422, "InvalidRequest", "stop.0", []),
        ({"type": "text", "prompt": "x", "stop": 3}, 422, "InvalidRequest", "stop", []),
        ({"type": "text", "prompt": "x" * 5000}, 413, "PromptTooLong", "prompt", []),
    ],
)
async def test_what_is_wrong_is_named_with_what_is_allowed(serve, engine, body, status, kind, field, allowed) -> None:
    served = await serve(ScriptedModel(engine()), with_tasks(SQL, TaskSettings("text", "default")))
    reply = await served.client.post(
        "/generate", content=json.dumps(body), headers={"content-type": "application/json"}
    )
    error = reply.json()["error"]
    assert (reply.status_code, error["type"], error["field"], error["allowed"]) == (status, kind, field, allowed)
    assert field.split(".")[0] in error["message"] or status != 422


async def test_an_unknown_field_is_refused_with_the_known_ones(serve, engine) -> None:
    served = await serve(ScriptedModel(engine()))
    error = (await served.client.post("/generate", json={"prompt": "x", "max_length": 5})).json()["error"]
    assert (error["field"], "max_tokens" in error["allowed"]) == ("max_length", True)
    assert "max_length is unknown" in error["message"]


@pytest.mark.parametrize(
    ("content", "content_type", "says"),
    [
        ("", "application/json", "empty"),
        ("{", "application/json", "not valid JSON"),
        ("[1]", "application/json", "must be a JSON object"),
        ('{"prompt": "x"}', "text/plain", "Content-Type: application/json"),
        ("[" * 100_000, "application/json", "body"),
        (b"\xff\xfe{}\xff", "application/json", "body"),
        ('{"prompt": "\\ud83d\\ude00 \\ud800"}', "application/json", "half a surrogate pair"),
        ('{"prompt": "x", "temperature": NaN}', "application/json", "temperature"),
        ('{"prompt": "x", "max_tokens": ' + "9" * 5000 + "}", "application/json", "body"),
    ],
)
async def test_a_body_that_is_no_json_object_is_a_4xx_in_words(serve, engine, content, content_type, says) -> None:
    served = await serve(ScriptedModel(engine()))
    reply = await served.client.post("/generate", content=content, headers={"content-type": content_type})
    assert reply.status_code in (400, 422)
    assert says in reply.json()["error"]["message"]


async def test_an_engine_error_is_a_500_and_in_a_stream_the_last_event(serve, engine) -> None:
    served = await serve(ScriptedModel(engine(lambda request: ["a", "<error>"])))
    reply = await served.client.post("/generate", json={"prompt": "x"})
    assert (reply.status_code, reply.json()["error"]["type"]) == (500, "EngineError")
    async with served.client.stream("POST", "/generate", json={"prompt": "x", "stream": True}) as streamed:
        events = await read_events(streamed)
    assert [events[0], events[-2]["error"]["type"], events[-1]] == [{"text": "a"}, "EngineError", "[DONE]"]


async def test_a_request_waits_for_a_model_that_is_loading(serve, engine) -> None:
    model = ScriptedModel(engine("ok"), loading=True)
    served = await serve(model)
    asking = asyncio.create_task(served.client.post("/generate", json={"prompt": "x"}))
    await asyncio.wait({asking}, timeout=0.05)
    assert not asking.done()
    model.loaded()
    assert (await asking).json() == "ok"


async def test_a_model_that_failed_to_load_says_why(serve, engine) -> None:
    model = ScriptedModel(engine(), loading=True)
    served = await serve(model)
    model.failed(ObjectNotFound("gs://bucket/default: no such folder"))
    reply = await served.client.post("/generate", json={"prompt": "x"})
    assert (reply.status_code, reply.json()["error"]["type"]) == (503, "ObjectNotFound")


async def test_one_server_answers_for_several_models(serve, engine) -> None:
    models = {name: ScriptedModel(engine(f"I am {name}"), name=name) for name in ("small", "large")}
    settings = Settings(
        {name: ModelSettings(name, f"gs://bucket/{name}") for name in models},
        {"quick": TaskSettings("quick", "small"), "good": TaskSettings("good", "large")},
    )
    served = await serve(models, settings)
    replies = [await served.client.post("/generate", json={"type": t, "prompt": "?"}) for t in ("quick", "good")]
    assert [reply.json() for reply in replies] == ["I am small", "I am large"]


async def test_a_request_past_its_deadline_is_a_504_and_its_work_is_stopped(serve, engine) -> None:
    stuck = engine(manual=True)
    settings = Settings(for_uri("gs://b/m").models, for_uri("gs://b/m").tasks, ServerSettings(request_timeout=0.05))
    served = await serve(ScriptedModel(stuck), settings)
    reply = await served.client.post("/generate", json={"prompt": "x"})
    assert (reply.status_code, reply.json()["error"]["type"]) == (504, "DeadlineExceeded")
    assert stuck.cancelled == [stuck.submitted[0].id]
