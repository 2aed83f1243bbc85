"""One request's text: where it stops, which control tokens are in it, and where its tokens stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstream.backends.protocol import Logprob, Sampled
from coldstream.engine.generation import Finish, Generation
from coldstream.engine.request import Request, SamplingParams, TokenEvent, TokenLogprob
from coldstream.engine.tokenizer.tokenizer import Tokenizer
from tests.engine.tokenizer.test_added_tokens import byte_level
from tests.support.parts import EOS, SPECIAL, VOCAB, make_tokenizer

TOKENIZER = make_tokenizer()
TURN = VOCAB["<turn>"]


def drawn(ids: list[int], tokenizer: Tokenizer = TOKENIZER, **params: Any) -> tuple[list[TokenEvent], Finish]:
    """The events of an answer of these tokens, and how it ended."""
    request = Request("r", (VOCAB["b"],), SamplingParams(logprobs=1, **params))
    generation = Generation(request, lambda _: None, tokenizer=tokenizer, stop_ids=frozenset({EOS}), max_context=1000)
    events, finish = [], None
    for token in ids:
        event, finish = generation.push(Sampled(token, Logprob(token, -1.0, ((token, -1.0), (TURN, -2.0)))))
        events += [event] if event else []
        if finish is not None:
            break
    finish = finish or Finish("length")
    last = generation.last_event(finish)
    return [*events, last], Finish(last.finish_reason or "error", last.stop_match)


class Counting:
    """A tokenizer's backend that counts what is asked of it, as a process would be asked."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.known: set[int] = set()
        self.fetches = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def learn(self, ids: Sequence[int]) -> None:
        self.fetches += not self.known.issuperset(ids)
        self.known.update(ids)

    def token_bytes(self, id: int) -> bytes | None:
        assert id in self.known, "asked for by itself"
        return self._backend.token_bytes(id)  # type: ignore[no-any-return]


@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=20), min_size=1, max_size=20))
def test_names_of_all_alternatives_of_a_step_are_fetched_together_and_are_theirs(best: list[list[int]]) -> None:
    plain = make_tokenizer()
    counting = Counting(plain.backend)
    tokenizer = make_tokenizer()
    tokenizer.backend = counting
    request = Request("r", (VOCAB["b"],) * (len(best) + 1), SamplingParams(prompt_logprobs=20))
    generation = Generation(request, lambda _: None, tokenizer=tokenizer, stop_ids=frozenset(), max_context=1000)
    scored = [Logprob(ids[0], -1.0, tuple((token, -1.0 - place) for place, token in enumerate(ids))) for ids in best]
    generation.prompt_scored(0, scored)
    assert counting.fetches == 1
    first, *rest = generation.last_event(Finish("length")).prompt_logprobs
    assert first is None
    for ids, item in zip(best, rest, strict=True):
        assert item is not None
        assert [other.spelled for other in item.top] == [plain.token_bytes(token) for token in ids]
        assert item.top == tuple(
            TokenLogprob(token, plain.token_text(token), -1.0 - place, raw=plain.token_bytes(token))
            for place, token in enumerate(ids)
        )


def text(events: list[TokenEvent]) -> str:
    return "".join(event.text for event in events)


def letters(written: str) -> list[int]:
    return [VOCAB[f"<0x{byte:02X}>"] for byte in written.encode()]


@pytest.mark.parametrize(
    ("stop", "ids", "said"),
    [
        ("<turn>", [*letters("hi"), TURN, *letters("no")], "hi"),
        ("<turn>", [*letters("hi<turn>no")], "hi"),
        ("i<turn>\n", [*letters("hi"), TURN, *letters("\nno")], "h"),
        ("<turn><bos>", [*letters("hi"), TURN, VOCAB["<bos>"], *letters("no")], "hi"),
        ("<turn><bos>", [*letters("hi<turn>"), VOCAB["<bos>"], *letters("no")], "hi<turn>no"),
        ("turn", [*letters("hi"), TURN, *letters("!")], "hi!"),
        ("no", [*letters("n"), TURN, *letters("o!")], ""),
    ],
)
def test_a_stop_string_may_name_control_tokens_and_sees_no_others(stop: str, ids: list[int], said: str) -> None:
    events, finish = drawn(ids, stop=(stop,))
    assert text(events) == said
    assert finish.stop_match == (None if said in ("hi<turn>no", "hi!") else stop)


def test_a_control_token_that_a_stop_string_only_begins_with_is_still_no_text() -> None:
    events, finish = drawn([*letters("a"), TURN, *letters("b")], stop=("<turn>!",))
    assert (text(events), finish.reason) == ("ab", "length")


def test_control_tokens_are_in_the_text_where_they_are_to_be_shown() -> None:
    ids = [*letters("a"), TURN, VOCAB["<pad>"], *letters("b")]
    assert text(drawn(ids)[0]) == "ab"
    assert text(drawn(ids, shown_tokens=frozenset({TURN}))[0]) == "a<turn>b"


@pytest.mark.parametrize("kind", ["byte-fallback", "byte-level"])
def test_parts_of_a_character_have_their_own_bytes_and_its_place(kind: str) -> None:
    tokenizer, ids = TOKENIZER, letters("가🦜!")
    if kind == "byte-level":
        tokenizer = Tokenizer.load({"tokenizer.json": byte_level().to_str().encode()})
        ids = tokenizer.encode("가🦜!")
    events, _ = drawn(ids, tokenizer)
    scored = [item for event in events for item in event.logprobs]
    assert [item.spelled for item in scored] == [bytes([byte]) for byte in "가🦜!".encode()]
    assert [item.offset for item in scored] == [0, 0, 0, 1, 1, 1, 1, 2]


@settings(deadline=None, max_examples=40)
@given(st.text(st.sampled_from("ab 안🙂é\n"), min_size=1, max_size=10))
def test_a_token_begins_where_the_text_before_it_ends(written: str) -> None:
    ids = [TURN, *TOKENIZER.encode(written)]
    events, _ = drawn(ids)
    whole, scored = text(events), [item for event in events for item in event.logprobs]
    assert whole == written
    for place, item in enumerate(scored):
        before = b"".join(TOKENIZER.token_bytes(number) for number in ids[1:place])
        assert whole[: item.offset] == before.decode(errors="ignore")


def test_a_word_of_a_sentence_keeps_its_blank() -> None:
    events, _ = drawn([VOCAB["▁the"]])
    assert events[0].logprobs[0].text == " the"
    assert [other.text for other in events[0].logprobs[0].top] == [" the", "<turn>"]
    assert SPECIAL.index("<turn>") == TURN
