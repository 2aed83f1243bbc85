"""Clients whose grammars take minutes and gigabytes to compile, or cannot be followed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

import coldstream.demo
from tests.support.serving import Served, serving

pytestmark = pytest.mark.more
ENDLESS = {"type": "integer", "multipleOf": 400_000_009}
WIDE = {f"k{number}": {"type": "string"} for number in range(3000)}
COSTLY: dict[str, Any] = {
    "remainders": ENDLESS,
    "remainders of a part": {"type": "object", "properties": {"a": ENDLESS}, "required": ["a"]},
    "remainders in a range": {**ENDLESS, "minimum": 0, "maximum": 10**15},
}
REFUSED: dict[str, Any] = {
    "a number beyond all": {"type": "integer", "maximum": 10**300},
    "a range beyond all": {"type": "number", "minimum": 1e-300, "maximum": 1e300},
    "a wide object": {"type": "object", "properties": WIDE},
    "alternatives": {"anyOf": [{"type": "object", "properties": dict(list(WIDE.items())[i::20])} for i in range(20)]},
}
LARK = {
    "repetition": 'start: a{0,1000000}\na: b{0,100000}\nb: "x"{0,10000}',
    "intersections": "start: A\nA: /(.*a.{30})/ & /(.*b.{31})/ & /(.*c.{29})/ & ~/(.*d.{33})/",
}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with serving(Path(coldstream.demo.__file__).parent / "sql_model", "-q") as served:
        yield served


def ask(server: Served, schema: Any) -> httpx2.Response:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    messages = [{"role": "user", "content": "x"}]
    body = {"model": server.model, "messages": messages, "max_tokens": 4, "response_format": wanted}
    return httpx2.post(f"{server.url}/v1/chat/completions", json=body, timeout=90)


def ask_lark(server: Served, grammar: str) -> httpx2.Response:
    body = {"model": server.model, "prompt": "x", "max_tokens": 4, "structured_outputs": {"grammar": grammar}}
    return httpx2.post(f"{server.url}/v1/completions", json=body, timeout=90)


@pytest.mark.parametrize("kind", COSTLY)
def test_a_grammar_that_is_not_compiled_within_the_limits_is_refused(server: Served, kind: str) -> None:
    before = server.resident()
    answer = ask(server, COSTLY[kind])
    assert answer.status_code == 400
    assert "response_format" in answer.json()["error"]["message"]
    assert "takes more than" in answer.json()["error"]["message"]
    assert server.resident() - before < 256 << 20
    assert ask(server, {"type": "boolean"}).is_success


@pytest.mark.parametrize("kind", REFUSED)
def test_a_grammar_that_cannot_be_followed_is_the_clients_fault(server: Served, kind: str) -> None:
    answer = ask(server, REFUSED[kind])
    assert answer.status_code == 400, answer.text
    assert "response_format" in answer.json()["error"]["message"]
    assert "unknown" not in answer.text
    assert len(answer.text) < 1000


@pytest.mark.parametrize("kind", LARK)
def test_a_grammar_of_the_clients_own_is_followed_or_refused(server: Served, kind: str) -> None:
    answer = ask_lark(server, LARK[kind])
    assert answer.is_success or "cannot be followed" in answer.json()["error"]["message"]


def test_what_is_compiled_already_does_not_wait_for_what_is_not(server: Served) -> None:
    known = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert ask(server, known).is_success
    with ThreadPoolExecutor(4) as pool:
        attacks = [pool.submit(ask, server, {**ENDLESS, "minimum": number}) for number in range(4)]
        for _ in range(5):
            assert ask(server, known).is_success
            assert httpx2.get(f"{server.url}/ready", timeout=60).is_success
        assert not all(attack.done() for attack in attacks)
        assert [attack.result().status_code for attack in attacks] == [400] * 4
    deaths = httpx2.get(f"{server.url}/metrics", timeout=60).text
    assert 'coldstream_worker_deaths_total{work="GrammarCheck"}' in deaths


def test_values_of_the_client_are_not_in_the_log(server: Served) -> None:
    """What goes wrong with a grammar is said without it."""
    schema = {"type": "integer", "maximum": 10**300, "title": "a secret"}
    assert "a secret" not in ask(server, schema).text
    assert json.dumps(10**300) not in ask(server, schema).text
