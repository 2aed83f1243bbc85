"""Prompts are made beside the event loop: long ones wait for one another, and nothing else waits for them."""

from __future__ import annotations

import asyncio
import threading
from itertools import accumulate, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstream.engine.tokenizer.tokenizer import Tokenizer
from coldstream.errors import PromptTooLong
from coldstream.serve.openai.completions import _places
from tests.support.parts import tokenizer_files
from tests.support.scripted import LetterTokenizer, ScriptedModel

LONG = "a" * 20_000


class Slow(LetterTokenizer):
    """Encodes long texts when it is told to, and says on which threads it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go_on = threading.Event()
        self.threads: set[int] = set()
        self.encoded: list[int] = []

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self.threads.add(threading.get_ident())
        if len(text) >= len(LONG):
            assert self.may_go_on.wait(30)
        self.encoded.append(len(text))
        return super().encode(text, add_special_tokens=add_special_tokens)


async def ask(served: Any, prompt: str) -> Any:
    return await served.client.post("/v1/completions", json={"model": "default", "prompt": prompt, "max_tokens": 4})


async def test_a_short_prompt_and_a_probe_are_answered_while_long_ones_are_encoded(serve, engine) -> None:
    slow = Slow()
    served = await serve(ScriptedModel(engine("fine"), tokenizer=slow, max_context=100_000))
    long = [asyncio.create_task(ask(served, LONG)) for _ in range(3)]
    await asyncio.sleep(0)
    for _ in range(3):
        assert (await ask(served, "hi")).status_code == 200
        assert (await served.client.get("/readyz")).status_code == 200
    assert not any(task.done() for task in long)
    slow.may_go_on.set()
    assert {answer.status_code for answer in await asyncio.gather(*long)} == {200}
    assert threading.get_ident() not in slow.threads


async def test_what_no_context_can_hold_is_refused_by_its_length_even_behind_long_ones(serve, engine) -> None:
    slow = Slow()
    served = await serve(ScriptedModel(engine("fine"), tokenizer=slow, max_context=30_000))
    long = asyncio.create_task(ask(served, LONG))
    answer = await ask(served, "a" * 1_000_000)
    assert not long.done()
    assert "1000000 characters" in answer.json()["error"]["message"]
    slow.may_go_on.set()
    await long
    assert 1_000_000 not in slow.encoded


def test_a_tokenizer_refuses_what_its_context_cannot_hold_whatever_has_made_the_text() -> None:
    tokenizer = Tokenizer.load(tokenizer_files())
    longest = len("▁SELECT")
    assert tokenizer.longest_text(10) == 10 * longest
    tokenizer.bound(10)
    assert tokenizer.encode("a" * 10 * longest)
    with pytest.raises(PromptTooLong, match="at most"):
        tokenizer.encode("a" * (10 * longest + 1))


@given(st.lists(st.sampled_from(["a", " ", "안", "🙂"]), min_size=1, max_size=8).map("".join), st.data())
def test_tokens_of_given_ids_begin_where_their_text_has_them(text: str, data: st.DataObject) -> None:
    spelled = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, len(spelled)))))
    parts = [spelled[start:end] for start, end in pairwise((0, *cuts, len(spelled))) if end > start]
    places = _places(parts, text)
    for place, part in zip(places, accumulate(parts, initial=b""), strict=False):
        assert text[:place] == part.decode(errors="ignore")
    assert _places([b" a", b"b"], "ab") == [0, 1]  # a decoder took the first blank away
