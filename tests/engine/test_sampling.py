"""Which sampling parameters a request runs with."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstream.engine.request import SamplingParams
from coldstream.engine.sampling import from_generation_config, resolve
from coldstream.settings import SamplingSettings


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, SamplingParams()),
        ({"temperature": 0.6, "top_p": 0.9}, SamplingParams()),  # without do_sample: greedy, as in transformers
        ({"do_sample": True, "top_k": 64, "top_p": 0.95}, SamplingParams(temperature=1.0, top_k=64, top_p=0.95)),
        ({"do_sample": True, "temperature": 0.2, "min_p": 0.1}, SamplingParams(temperature=0.2, min_p=0.1)),
        ({"repetition_penalty": 1.1, "max_new_tokens": 7}, SamplingParams(repetition_penalty=1.1, max_tokens=7)),
        (
            {"do_sample": True, "temperature": None, "top_k": -5, "top_p": 7, "min_p": "x", "repetition_penalty": 0},
            SamplingParams(temperature=1.0),
        ),
        ({"do_sample": True, "top_k": True, "max_new_tokens": 0}, SamplingParams(temperature=1.0)),
    ],
)
def test_generation_config_is_read_as_transformers_reads_it(config, expected) -> None:
    assert from_generation_config({**config, "eos_token_id": [1, 106]}) == expected


@given(
    defaults=st.sampled_from([0.0, 0.3]),
    task=st.sampled_from([None, 0.5]),
    given_=st.sampled_from([None, 0.0, 0.7]),
    room=st.integers(1, 300),
)
def test_the_nearest_to_the_caller_wins_and_the_context_bounds_all(defaults, task, given_, room) -> None:
    made = resolve(
        SamplingParams(temperature=defaults), SamplingSettings(temperature=task), {"temperature": given_}, room=room
    )
    assert made.temperature == next(value for value in (given_, task, defaults) if value is not None)
    assert made.max_tokens == min(256, room)


def test_stop_strings_of_model_task_and_request_add_up_in_order_and_once() -> None:
    made = resolve(SamplingParams(stop=("a",)), SamplingSettings(stop=("b", "a")), {"stop": ("c", "b")}, room=9)
    assert made.stop == ("a", "b", "c")


def test_stop_ids_of_model_and_request_add_up() -> None:
    made = resolve(
        SamplingParams(stop_token_ids=frozenset({1})), SamplingSettings(), {"stop_token_ids": [7, 1]}, room=9
    )
    assert made.stop_token_ids == {1, 7}
