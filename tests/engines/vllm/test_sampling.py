"""Every option of a request reaches vLLM, is done on our side, or is refused by name."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstream.engine.request import Grammar, SamplingParams
from coldstream.engines.vllm import sampling
from coldstream.engines.vllm.sampling import FIELDS, NOT_OFFERED, OURS, arguments, check
from coldstream.errors import InvalidRequest
from tests.engines.vllm.record import RECORDING

STOPS = frozenset({1, 2})
ON_OUR_SIDE = {"stop", "shown_tokens"}
"""Text is made of tokens here, for both engines."""


def recorded() -> dict[str, Any]:
    """The names as the recorded release has them, or as the installed one does, where there is one."""
    if find_spec("vllm") is not None:
        from tests.engines.vllm.record import fields as installed

        return installed()
    found: dict[str, Any] = json.loads(RECORDING.read_text())["fields"]
    return found


def test_the_table_names_every_field_of_vllms_and_no_other() -> None:
    assert set(FIELDS) == set(recorded()["SamplingParams"])


def test_the_recording_is_of_the_release_that_the_table_says() -> None:
    assert json.loads(RECORDING.read_text())["vllm"].partition("+")[0] == sampling.RELEASE


def test_every_field_of_ours_comes_from_the_table_or_is_our_own_affair() -> None:
    reach = {name for text in FIELDS.values() if text not in (OURS, NOT_OFFERED) for name in text.split(", ")}
    assert reach | ON_OUR_SIDE == {item.name for item in fields(SamplingParams)}


CHANGED: dict[str, Any] = {
    "max_tokens": 7,
    "temperature": 0.7,
    "top_p": 0.5,
    "top_k": 4,
    "min_p": 0.1,
    "repetition_penalty": 1.2,
    "presence_penalty": 0.3,
    "frequency_penalty": 0.2,
    "seed": 5,
    "stop_token_ids": frozenset({9}),
    "ignore_eos": True,
    "logprobs": 2,
    "prompt_logprobs": 1,
    "logit_bias": ((3, 1.0),),
    "grammar": Grammar("regex", "a+"),
}


@pytest.mark.parametrize("name", sorted({item.name for item in fields(SamplingParams)} - ON_OUR_SIDE))
def test_a_field_that_is_set_changes_what_vllm_is_asked(name: str) -> None:
    plain = arguments(SamplingParams(), stop_ids=STOPS, room=1000)
    asked = arguments(replace(SamplingParams(), **{name: CHANGED[name]}), stop_ids=STOPS, room=1000)
    assert asked != plain
    assert set(asked) <= set(recorded()["SamplingParams"])


@given(
    temperature=st.floats(0, 100),
    top_p=st.floats(0, 1),
    top_k=st.integers(0, 1 << 20),
    min_p=st.floats(0, 1),
    presence=st.floats(-100, 100),
    frequency=st.floats(-100, 100),
    repetition=st.floats(0, 100, exclude_min=True),
    seed=st.none() | st.integers(-(1 << 63), (1 << 64) - 1),
    most=st.integers(1, 1 << 30),
)
def test_what_passes_is_what_vllm_takes_unchanged(
    temperature: float,
    top_p: float,
    top_k: int,
    min_p: float,
    presence: float,
    frequency: float,
    repetition: float,
    seed: int | None,
    most: int,
) -> None:
    """vLLM's own checks (0.32, `SamplingParams._verify_args`), and what it changes without a word."""
    params = SamplingParams(
        max_tokens=most,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        presence_penalty=presence,
        frequency_penalty=frequency,
        repetition_penalty=repetition,
        seed=seed,
    )
    is_taken = (temperature == 0 or 0.01 <= temperature <= 2) and abs(presence) <= 2 and abs(frequency) <= 2
    if not is_taken:
        with pytest.raises(InvalidRequest):
            check(params)
        return
    check(params)
    asked = arguments(params, stop_ids=STOPS, room=100)
    assert asked["temperature"] == temperature
    assert 0 < asked["top_p"] <= 1
    assert asked["top_k"] >= 0
    assert asked["repetition_penalty"] > 0
    assert asked["seed"] is None or 0 <= asked["seed"] < 1 << 64
    assert 1 <= asked["max_tokens"] <= 100


@pytest.mark.parametrize(
    ("params", "field"),
    [
        (SamplingParams(temperature=2.5), "temperature"),
        (SamplingParams(temperature=0.001), "temperature"),
        (SamplingParams(presence_penalty=3.0), "presence_penalty"),
        (SamplingParams(frequency_penalty=-3.0), "frequency_penalty"),
        (SamplingParams(grammar=Grammar("regex", "a\0b", "regex")), "regex"),
        (SamplingParams(grammar=Grammar("lark", 'root ::= "a"', "grammar")), "grammar"),
        (SamplingParams(grammar=Grammar("json_schema", '{"not":' * 70 + "{}" + "}" * 70)), "response_format"),
    ],
)
def test_what_vllm_does_not_compute_is_refused_by_name(params: SamplingParams, field: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        check(params)
    assert refusal.value.field == field


def test_only_the_best_token_is_in_a_top_p_of_nothing() -> None:
    asked = arguments(SamplingParams(temperature=1.0, top_p=0.0), stop_ids=STOPS, room=10)
    assert (asked["top_p"], asked["top_k"]) == (1.0, 1)


def test_seeds_that_torch_reads_alike_stay_so_and_none_is_vllms_word_for_no_seed() -> None:
    asked = [arguments(SamplingParams(seed=seed), stop_ids=STOPS, room=10)["seed"] for seed in (-1, (1 << 64) - 1)]
    assert asked[0] == asked[1] == (1 << 64) - 1


def test_json_has_no_blanks_between_its_parts() -> None:
    structured = sampling.structured(Grammar("json_schema", '{"type": "object"}'))
    assert structured["json"]["x-guidance"] == {"whitespace_flexible": False}
    assert set(structured) <= set(recorded()["StructuredOutputsParams"])


def test_tokens_that_end_a_request_are_decided_on_our_side() -> None:
    asked = arguments(SamplingParams(stop_token_ids=frozenset({9})), stop_ids=STOPS, room=10)
    assert (asked["stop_token_ids"], asked["ignore_eos"], asked["detokenize"]) == ([1, 2, 9], True, False)
    ignoring = SamplingParams(stop_token_ids=frozenset({9}), ignore_eos=True)
    assert arguments(ignoring, stop_ids=STOPS, room=10)["stop_token_ids"] == [9]
