"""A server's quality by what it names of its next token, through the endpoint that engines without a server get."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Sequence

import httpx2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from coldstream.bench import child
from coldstream.bench.peers.front import serve
from coldstream.bench.peers.likeliest import likeliest
from coldstream.bench.serve_load import Endpoint, closed_loop, prompts
from coldstream.bench.served_quality import Position, Positions, divergence, measure, spelled
from coldstream.errors import SettingsError

VOCAB = 60


class Scripted:
    """Token n follows whatever a sequence's n-th step is; its logits are those of the prompt's last token."""

    def __init__(self) -> None:
        self.rows: dict[int, list[int]] = {}
        self.most = 0
        """Sequences of a step at most."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def spell(self, token: int) -> str:
        return f"<{token}>"

    def begin(self, sequence: int, prompt: Sequence[int], tokens: int) -> None:
        self.rows[sequence] = [0, tokens]

    def step(self) -> list[tuple[int, int]]:
        self.most = max(self.most, len(self.rows))
        if self.most == 1:  # nothing comes before a second sequence is there, however slow its client is
            time.sleep(0.001)
            return []
        made = [(sequence, place) for sequence, (place, _) in self.rows.items()]
        self.rows = {key: [place + 1, left - 1] for key, (place, left) in self.rows.items() if left > 1}
        return made

    def best(self, prompt: Sequence[int], count: int) -> list[tuple[int, float]]:
        return likeliest(logits(prompt[-1]), count)


def logits(seed: int) -> np.ndarray:
    return 3 * np.random.default_rng(seed).standard_normal(VOCAB)


def softmax(row: np.ndarray) -> np.ndarray:
    mass = np.exp(row - row.max())
    return (mass / mass.sum()).astype(np.float32)


@pytest.fixture(scope="module")
def engine() -> Scripted:
    return Scripted()


@pytest.fixture(scope="module")
def endpoint(engine: Scripted) -> Endpoint:
    port = child.free_port()
    threading.Thread(target=serve, args=(engine, port), daemon=True).start()
    with child.client(port, timeout=5.0) as http:
        for _ in range(500):
            with contextlib.suppress(httpx2.TransportError):
                assert http.get("/v1/models").json()["data"][0]["id"] == "model"
                break
            time.sleep(0.02)
    return Endpoint(f"http://127.0.0.1:{port}/v1", "model")


def test_every_answer_has_the_length_that_was_asked_for_and_they_are_made_together(engine, endpoint) -> None:
    answers = asyncio.run(closed_loop(endpoint, prompts(12, words=5, seed=1), max_tokens=40, clients=4))
    assert [(answer.error, answer.tokens, len(answer.arrivals)) for answer in answers] == [(None, 40, 40)] * 12
    assert all(answer.prompt_tokens > 5 for answer in answers)
    assert not engine.rows
    assert engine.most > 1


def test_a_server_that_has_the_references_own_distribution_is_no_nats_away(endpoint) -> None:
    places = tuple(Position((7, seed), softmax(logits(seed))) for seed in range(1, 9))
    found = measure(endpoint, Positions(places, {}))
    assert found.positions == 8
    assert found.top1_agreement == 1.0
    assert abs(found.mean_kl) < 1e-4
    wrong = tuple(Position((7, seed), softmax(logits(seed + 1))) for seed in range(1, 9))
    assert measure(endpoint, Positions(wrong, {})).mean_kl > 1


def test_a_server_that_names_nothing_is_not_guessed_at(endpoint) -> None:
    place = (Position((1,), softmax(logits(1))),)
    with pytest.raises(SettingsError, match="no log probabilities: ConnectError"):
        measure(Endpoint("http://127.0.0.1:9/v1", "m"), Positions(place, {}))


logit_rows = arrays.arrays(np.float64, VOCAB, elements=st.floats(-8, 8, width=32))


@settings(max_examples=60, deadline=None)
@given(expected=logit_rows, got=logit_rows, count=st.integers(1, VOCAB))
def test_what_is_named_never_makes_more_of_a_difference_than_there_is(expected, got, count) -> None:
    """Lumping the rest is a coarser look: at most the whole divergence, which it is where all are named."""
    p, log_q = softmax(expected), got - got.max() - math.log(np.exp(got - got.max()).sum())
    whole = float((p * (np.log(p) - log_q)).sum())
    found = divergence(p, [((token,), value) for token, value in likeliest(got, count)])
    assert -1e-4 <= found <= whole + 1e-4
    if count == VOCAB:
        assert found == pytest.approx(whole, abs=1e-4)


def test_a_part_of_a_character_is_named_by_its_bytes() -> None:
    assert spelled("bytes:\\xea\\xb0") == b"\xea\xb0"
    assert spelled("bytes") == b"bytes"
    assert spelled("\u00e9") == "\u00e9".encode()
