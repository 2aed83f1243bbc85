"""Which engine a model gets, in every case, and that the reason says so."""

from __future__ import annotations

from typing import Literal

import pytest

from coldstream.engines import choice
from coldstream.engines.choice import choose_engine
from coldstream.errors import MissingExtra


def test_what_is_asked_for_is_taken() -> None:
    assert choose_engine("native", device="cuda", is_native=False, has_vllm=True) == ("native", "asked for")
    assert choose_engine("vllm", device="cpu", is_native=True, has_vllm=True) == ("vllm", "asked for")


def test_vllm_that_is_not_installed_is_refused_with_the_line_that_installs_it() -> None:
    with pytest.raises(MissingExtra, match=r"pip install 'coldstream\[vllm\]'"):
        choose_engine("vllm", device="cpu", is_native=True, has_vllm=False)


@pytest.mark.parametrize(("is_native", "told"), [(True, "on a CPU"), (False, "transformers")])
def test_a_cpu_is_for_the_native_engine(is_native: bool, told: str) -> None:
    engine, why = choose_engine("auto", device="cpu", is_native=is_native, has_vllm=True)
    assert engine == "native"
    assert told in why


@pytest.mark.parametrize(("is_native", "told"), [(True, "not measured"), (False, "architecture")])
def test_a_gpu_is_for_vllm_until_the_native_engine_was_measured_there(is_native: bool, told: str) -> None:
    engine, why = choose_engine("auto", device="cuda", is_native=is_native, has_vllm=True)
    assert engine == "vllm"
    assert told in why


def test_without_vllm_a_gpu_runs_the_native_engine_and_says_what_would_be_chosen() -> None:
    engine, why = choose_engine("auto", device="cuda", is_native=True, has_vllm=False)
    assert engine == "native"
    assert choice.PIP_LINE in why


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_there_is_always_a_reason(device: Literal["cpu", "cuda"]) -> None:
    for is_native in (True, False):
        for has_vllm in (True, False):
            assert choose_engine("auto", device=device, is_native=is_native, has_vllm=has_vllm)[1]
