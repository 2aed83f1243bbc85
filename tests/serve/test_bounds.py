"""Whatever a request may hold has a bound, and is counted before anything is done with it."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstream.errors import InvalidRequest
from coldstream.serve.api.schema import GenerateRequest, small
from coldstream.serve.http import asgi
from coldstream.serve.middleware.json_body import PARSED, JsonLimits, LargeBodies, ReadJson, parsed
from coldstream.serve.openai.responses_schema import ResponsesRequest
from coldstream.serve.openai.schema import ChatRequest, CompletionRequest

BODIES = (GenerateRequest, ChatRequest, CompletionRequest, ResponsesRequest)


def unbounded(schema: Any, way: str) -> Iterator[str]:
    """The texts, lists and objects in a schema of pydantic's core that may be of any size."""
    if isinstance(schema, dict):
        kind = schema.get("type")
        if kind == "function-after" and schema["function"]["function"] is small:
            return
        if kind == "str" and "max_length" not in schema and "64}$" not in str(schema.get("pattern")):
            yield f"{way}: a text"
        if kind == "list" and not ("max_length" in schema and schema.get("fail_fast")):
            yield f"{way}: a list"
        if kind == "dict" and "max_length" not in schema:
            yield f"{way}: an object"
        if kind == "any":
            yield f"{way}: anything"
        for name, inner in schema.items():
            if name not in ("metadata", "serialization", "function", "config", "cls"):
                yield from unbounded(inner, f"{way}.{name}")
    elif isinstance(schema, list | tuple):
        for place, inner in enumerate(schema):
            yield from unbounded(inner, f"{way}.{place}")


@pytest.mark.parametrize("body", BODIES)
def test_every_text_list_and_object_of_a_request_has_a_bound(body) -> None:
    assert list(unbounded(body.__pydantic_core_schema__, body.__name__)) == []


def test_the_property_finds_what_has_no_bound() -> None:
    from pydantic import BaseModel

    class Open(BaseModel):
        text: str
        texts: list[str]
        more: dict[str, Any]

    assert len(list(unbounded(Open.__pydantic_core_schema__, "Open"))) == 6


TINY = JsonLimits(values=20, containers=12, texts=10, names=5, escapes=8)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(['"', "\\", '\\"', ",[{:", "\\\\"]),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=40,
)


def counted(value: Any) -> Counter[str]:
    """Values in lists and objects, an empty one's bracket counting as one, and what they are."""
    found: Counter[str] = Counter()
    if isinstance(value, str):
        found["texts"] += 1
    if isinstance(value, list | dict):
        found["containers"] += 1
        found["values"] += max(1, len(value))
        for item in value if isinstance(value, list) else value.values():
            found += counted(item)
    if isinstance(value, dict):
        found["names"] += len(value)
        found["texts"] += len(value)
    return found


@settings(deadline=None, max_examples=300)
@given(JSON, st.booleans(), st.integers(1, 40))
def test_a_body_is_read_where_and_only_where_it_is_within_the_limits(value, is_ascii, size) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii)
    found = counted(value) | Counter(escapes=text.count("\\"))
    body = text.encode("utf-8", "surrogatepass")
    if all(found[name] <= most for name, most in asdict(TINY).items()):
        assert parsed(body, TINY, large=0, chunk=size) == value
    else:
        with pytest.raises(InvalidRequest, match="more than"):
            parsed(body, TINY, large=0, chunk=size)


NUMBERS = st.integers() | st.floats(allow_nan=False) | st.integers(-(10**400), 10**400) | st.just(1e300)


@settings(deadline=None)
@given(st.lists(NUMBERS | st.text(), max_size=20), st.integers(1, 9))
def test_a_large_body_means_what_a_small_one_does(value, chunk) -> None:
    body = json.dumps(value, ensure_ascii=False).encode()
    read = parsed(body, large=0, chunk=chunk)
    assert read == parsed(body) == value
    assert list(map(type, read)) == list(map(type, value))


@settings(deadline=None, max_examples=300)
@given(
    st.integers(1, 9),
    st.lists(st.sampled_from(["\\", "u", "d83d", "dE00", "DFFF", "0041", '"', "x", "\\ud83d", "\\ude00", "\\\\"])),
)
def test_half_a_surrogate_pair_is_refused_and_a_whole_one_is_not(chunk, pieces) -> None:
    body = f'"{"".join(pieces)}"'.encode()
    try:
        value = json.loads(body)
        value.encode()
        is_text = True
    except UnicodeEncodeError:
        is_text = False
    except ValueError:
        return
    if is_text:
        assert parsed(body, chunk=chunk) == value
    else:
        with pytest.raises(InvalidRequest, match="half a surrogate pair"):
            parsed(body, chunk=chunk)


@pytest.mark.parametrize("size", [10, 200_000])
async def test_a_body_is_not_kept_beside_its_value(size) -> None:
    body = json.dumps({"prompt": "x" * size}).encode()
    alone = sys.getrefcount(body)
    seen = []

    async def application(scope, receive, send) -> None:
        seen.append((scope[PARSED], sys.getrefcount(body)))

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}
    await ReadJson(application, LargeBodies())(scope, asgi.replay(body), None)
    assert seen == [({"prompt": "x" * size}, alone)]


COSTLY = {
    "prompts": ("/v1/completions", {"prompt": [0] * 400_000 + [-1]}, "prompt.400000"),
    "ids": ("/v1/completions", {"prompt": [0] * 1_000_000}, "500,000 values"),
    "biases": (
        "/v1/completions",
        {"prompt": "x", "logit_bias": {str(place): 1 for place in range(2000)}},
        "logit_bias",
    ),
    "spellings": ("/v1/completions", {"prompt": "x", "logit_bias": {"1": 1, "01": 2}}, "logit_bias"),
    "unknown fields": ("/generate", {f"x{place}": 1 for place in range(20_000)}, "256 fields"),
    "messages": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}] * 5000}, "messages"),
    "many messages": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "x"}] * 100_000},
        "30,000 names",
    ),
    "description": (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "x"}],
            "tools": [{"type": "function", "function": {"name": "f", "description": "d" * 4_000_000}}],
        },
        "tools.0.function.description",
    ),
    "empty lists": ("/generate", {"inputs": [[]] * 200_000}, "60,000 lists and objects"),
    "texts": ("/generate", {"inputs": [""] * 200_000}, "100,000 texts"),
}


@pytest.mark.parametrize("name", COSTLY)
async def test_what_would_be_costly_is_refused_by_name_in_few_words(serve, engine, name) -> None:
    from tests.support.scripted import ScriptedModel

    served = await serve(ScriptedModel(engine()))
    path, sent, says = COSTLY[name]
    reply = await served.client.post(path, json={"model": "default", **sent} if path.startswith("/v1") else sent)
    assert reply.status_code in (400, 422)
    assert says in reply.json()["error"]["message"]
    assert len(reply.content) < 1500
