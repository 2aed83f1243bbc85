"""What leaves, and when: everything of a request, in order, once the weights that it rests on are verified."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from coldstream.engine.generation import Generation
from coldstream.engine.outbox import Outbox, Verified
from coldstream.engine.request import PromptImage, Request, TokenEvent
from coldstream.engine.stats import Meter
from tests.support.parts import make_tokenizer

TOKENIZER = make_tokenizer()
IMAGE = PromptImage(0, 1, np.zeros((1, 1, 3), np.uint8), b"")
NEEDS = {"text": Verified.TEXT, "image": Verified.ALL}


@given(
    begun=st.sampled_from(Verified),
    done=st.lists(st.sampled_from([*NEEDS, *Verified]), max_size=20),
)
def test_events_leave_in_order_as_soon_as_they_may_and_never_before(
    begun: Verified, done: list[str | Verified]
) -> None:
    received: dict[str, list[TokenEvent]] = {"text": [], "image": []}
    sent: dict[str, list[TokenEvent]] = {"text": [], "image": []}
    outbox, verified = Outbox("test", Meter(), verified=begun, broken=print), begun
    generations = {}
    for key, got in received.items():
        request = Request(key, (5, 6), images=(IMAGE,) if key == "image" else ())
        made = Generation(request, got.append, tokenizer=TOKENIZER, stop_ids=frozenset(), max_context=100)
        generations[key] = made
        outbox.add(made)
    for what in done:
        if isinstance(what, Verified):
            verified = max(verified, what)
            assert outbox.verify(what) == []
        else:
            sent[what].append(TokenEvent(what, str(len(sent[what]))))
            outbox.send(generations[what], sent[what][-1])
        for key, need in NEEDS.items():
            assert received[key] == (sent[key] if verified >= need else [])
            assert outbox.may_leave(generations[key]) is (verified >= need)


def test_an_end_that_was_held_back_is_told_with_what_came_before() -> None:
    received: list[TokenEvent] = []
    outbox = Outbox("test", Meter(), verified=Verified.NOTHING, broken=print)
    made = Generation(Request("a", (5,)), received.append, tokenizer=TOKENIZER, stop_ids=frozenset(), max_context=100)
    outbox.add(made)
    outbox.hold_back(made, TokenEvent("a", "x"))
    outbox.hold_back(made, TokenEvent("a", "y", finish_reason="stop"))
    assert outbox.verify(Verified.TEXT) == [made]
    assert [event.text for event in received] == ["x", "y"]
    assert len(outbox) == 0
    assert outbox.verify(Verified.ALL) == []
