"""`coldstream chat`, against a running server."""

from __future__ import annotations

import asyncio
import io

import pytest

from coldstream.cli.chat import Client, Conversation, converse
from coldstream.errors import LocationError, NotReady, RequestError, StoreUnavailable
from coldstream.serve.middleware.auth import ApiKeys
from coldstream.settings import ModelSettings, Settings, TaskSettings
from tests.support.scripted import ScriptedModel


def talking(url: str, lines: list[str], key: str | None = None, system: str | None = None) -> tuple[str, Conversation]:
    left, out = iter(lines), io.StringIO()

    def read(prompt: str) -> str:
        for line in left:
            return line
        raise EOFError

    with Client(url, key) as client:
        talk = Conversation(client, client.first_model(), system)
        converse(talk, read, out)
    return out.getvalue(), talk


async def test_a_conversation_remembers_what_was_said(serve, engine) -> None:
    used = engine("fine")
    served = await serve(ScriptedModel(used), keys=ApiKeys.of("k"))
    lines = ["how are you?", "", "and now?", "/nonsense", "/quit", "never asked"]
    said, _ = await asyncio.to_thread(talking, f"{served.url}/v1/", lines, "k", "Be brief.")
    assert said.count("fine\n[4 tokens, first after") == 2
    assert "/reset forgets" in said
    last = "".join(map(chr, used.submitted[-1].prompt_ids))
    assert last == "system\nBe brief.\nuser\nhow are you?\nassistant\nfine\nuser\nand now?\nmodel\n"
    assert len(used.submitted) == 2


async def test_a_conversation_is_held_with_the_model_of_a_task_that_takes_any_prompt(serve, engine) -> None:
    models = {name: ScriptedModel(engine("ok"), name=name) for name in ("sql", "talker")}
    tasks = {
        "sql": TaskSettings("sql", "sql", prompt="{schema} {prompt}"),
        "text": TaskSettings("text", "talker", system="Be kind."),
    }
    known = Settings({name: ModelSettings(name, "gs://b/m") for name in models}, tasks)
    served = await serve(models, known)
    _, talk = await asyncio.to_thread(talking, served.url, [])
    assert talk.model == "talker"


async def test_reset_and_system_begin_again(serve, engine) -> None:
    used = engine("ok")
    served = await serve(ScriptedModel(used))
    await asyncio.to_thread(talking, served.url, ["one", "/reset", "two", "/system  Rhyme. ", "three"])
    prompts = ["".join(map(chr, request.prompt_ids)) for request in used.submitted]
    assert prompts[1:] == ["user\ntwo\nmodel\n", "system\nRhyme.\nuser\nthree\nmodel\n"]


async def test_an_error_ends_a_turn_and_not_the_conversation(serve, engine) -> None:
    answers = iter([["par", "<error>"], ["<error>"], ["whole"]])
    served = await serve(ScriptedModel(engine(lambda request: next(answers))))
    said, talk = await asyncio.to_thread(talking, served.url, ["one", "two", "three"])
    assert said.count("error: ") == 2
    assert [turn["content"] for turn in talk.turns] == ["one", "par", "three", "whole"]


async def test_what_a_server_refuses_is_said_in_its_words(serve, engine) -> None:
    served = await serve(ScriptedModel(engine()), keys=ApiKeys.of("right"))

    def ask(key: str, model: str) -> None:
        with Client(served.url, key) as client:
            list(client.stream(model, [{"role": "user", "content": "x"}], {}))

    with pytest.raises(RequestError, match=r"not one of this server's; set \$COLDSTREAM_API_KEY"):
        await asyncio.to_thread(ask, "wrong", "default")
    with pytest.raises(RequestError, match="there are: default, text"):
        await asyncio.to_thread(ask, "right", "gpt-4")
    served.state.begin_shutdown()
    with pytest.raises(NotReady, match="shutting down"):
        await asyncio.to_thread(ask, "right", "default")


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http:///v1"])
def test_a_url_that_is_no_servers_is_refused(url) -> None:
    with pytest.raises(LocationError, match="http://HOST:PORT"):
        Client(url)


def test_nobody_there_is_said_with_the_address() -> None:
    with (
        Client("127.0.0.1:9") as client,
        pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:9 cannot"),
    ):
        client.first_model()
