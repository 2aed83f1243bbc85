"""Clients with a key, or with too many addresses, that would have all the places, or learn what others ask."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstream.engine.kvcache.blocks import Chain
from coldstream.serve.api.sse import dumps, dumps_long
from coldstream.serve.http.protocol import HttpLimits
from coldstream.serve.middleware.auth import ApiKeys
from coldstream.settings import EngineSettings, ServerSettings, Settings, for_uri
from tests.support.scripted import ScriptedModel


def settings(server: ServerSettings) -> Settings:
    return replace(for_uri("gs://b/m"), server=server, engine=EngineSettings(max_sequences=1))


async def test_one_caller_has_its_share_of_the_places_and_the_others_find_some(serve, engine) -> None:
    stuck = engine("a", manual=True)
    chosen = settings(ServerSettings(max_queue=7, client_share=0.5))
    served = await serve(ScriptedModel(stuck), chosen, keys=ApiKeys.of("greedy", "other"))

    async def ask(key: str) -> int:
        headers = {"authorization": f"Bearer {key}"}
        return (await served.client.post("/generate", json={"prompt": "x"}, headers=headers)).status_code

    greedy = [asyncio.create_task(ask("greedy")) for _ in range(4)]
    await asyncio.to_thread(stuck.wait_until, lambda: len(stuck.submitted) == 4)
    assert await ask("greedy") == 429
    other = asyncio.create_task(ask("other"))
    await asyncio.to_thread(stuck.wait_until, lambda: len(stuck.submitted) == 5)
    await asyncio.to_thread(stuck.step)
    assert [await task for task in (*greedy, other)] == [200] * 5


@pytest.mark.parametrize(
    ("keys", "trusting", "same"),
    [((), False, True), (("a",), False, True), (("a", "b"), False, False), (("a", "b"), True, True)],
)
async def test_keys_share_a_prompts_beginning_only_where_they_trust_one_another(
    serve, engine, keys, trusting, same
) -> None:
    used = engine("a")
    chosen = settings(ServerSettings(shared_prefixes=trusting))
    served = await serve(ScriptedModel(used), chosen, keys=ApiKeys.of(*keys))
    for key in (*keys, *keys) or ("", ""):
        sent = {"authorization": f"Bearer {key}"} if key else {}
        assert (await served.client.post("/generate", json={"prompt": "x"}, headers=sent)).status_code == 200
    salts = [request.salt for request in used.submitted]
    assert salts[: len(salts) // 2] == salts[len(salts) // 2 :]
    assert (len(set(salts)) == 1) == same


async def test_a_place_is_given_back_when_the_last_token_is_there_however_it_is_read(serve, engine, connect) -> None:
    """A stream that is longer than the kernel holds for its reader, who takes none of it."""
    long = engine(lambda request: ["x" * 1_000_000] * 40)
    limits = HttpLimits(send_seconds=0.5)
    served = await serve(ScriptedModel(long), settings(ServerSettings(max_queue=0)), http={"limits": limits})
    peer = await connect(served)
    body = b'{"prompt": "x", "stream": true, "max_tokens": 40}'
    head = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    peer.stop_reading()
    await peer.say(head % len(body) + body)
    await asyncio.to_thread(long.wait_until, lambda: len(long.submitted) == 1)
    short = {"prompt": "x", "max_tokens": 1}
    while (await served.client.post("/generate", json=short)).status_code == 429:
        pass
    while len(served.state.lifecycle.streams) > 0:  # and the connection is ended, which ends the request
        await served.client.get("/healthz")


@given(st.lists(st.integers(0, 9), min_size=8, max_size=40), st.binary(max_size=64), st.binary(max_size=64))
def test_prompts_of_different_salts_have_no_block_in_common(tokens, one, other) -> None:
    first, second = (Chain(salt=salt).reach(tokens, 4) for salt in (one, other))
    if one == other:
        assert first == second
    else:
        assert not set(first) & set(second)


MANY = {"model": "default", "prompt": [0] * 3000, "echo": True, "logprobs": 100, "max_tokens": 1}


async def test_scores_of_a_prompt_are_counted_before_they_are_computed(serve, engine) -> None:
    used = engine("a")
    served = await serve(ScriptedModel(used), settings(ServerSettings()))
    refused = await served.client.post("/v1/completions", json=MANY)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "logprobs")
    assert not used.submitted


async def test_answers_together_hold_no_more_scores_than_are_counted(serve, engine) -> None:
    """Each is within its own limit; when one of them is out, there is room for the next."""
    stuck = engine("a", manual=True)
    served = await serve(ScriptedModel(stuck, max_context=4000), settings(ServerSettings(max_queue=8)))
    asked = {"model": "default", "prompt": "x", "max_tokens": 2500, "logprobs": 100}

    async def ask() -> httpx2.Response:
        return await served.client.post("/v1/completions", json=asked)

    held = [asyncio.create_task(ask()) for _ in range(3)]
    await asyncio.to_thread(stuck.wait_until, lambda: len(stuck.submitted) == 3)
    refused = await ask()
    assert refused.status_code == 429
    assert "757500 log probabilities" in refused.json()["error"]["message"]
    assert int(refused.headers["retry-after"]) >= 1
    assert len(stuck.submitted) == 3
    await asyncio.to_thread(stuck.step)
    assert [(await task).status_code for task in held] == [200] * 3
    last = asyncio.create_task(ask())
    await asyncio.to_thread(stuck.wait_until, lambda: len(stuck.submitted) == 4)
    await asyncio.to_thread(stuck.step)
    assert (await last).status_code == 200


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda x: st.lists(x, max_size=200) | st.dictionaries(st.text(max_size=2), x, max_size=3),
        max_leaves=300,
    )
)
def test_json_in_pieces_is_the_same_json(value) -> None:
    assert dumps_long(value) == dumps(value)


async def test_many_scores_are_written_beside_the_loop_and_are_all_there(serve, engine) -> None:
    served = await serve(ScriptedModel(engine("a")), settings(ServerSettings()))
    asked = MANY | {"prompt": "x" * 3000, "logprobs": 1}
    whole = (await served.client.post("/v1/completions", json=asked)).json()["choices"][0]["logprobs"]
    assert [len(items) for items in whole.values()] == [3001] * 4
    streamed = (await served.client.post("/v1/completions", json=asked | {"stream": True})).text
    assert len(streamed) > 50_000
