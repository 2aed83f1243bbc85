"""Which engine a deployment runs: what is asked for, what `auto` chooses, and what cannot be."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

import pytest

from coldstream.deploy import cards, plan_report
from coldstream.errors import SettingsError
from tests.deploy.conftest import MODEL, SMALL, Opened, Site, one_model

LLAMA_4 = {
    "architectures": ["Llama4ForConditionalGeneration"],
    "model_type": "llama4",
    "text_config": {
        "hidden_size": 2048,
        "intermediate_size": 4096,
        "num_hidden_layers": 8,
        "num_attention_heads": 16,
        "vocab_size": 32000,
        "num_local_experts": 16,
    },
}


def served(template: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that a revision carries."""
    (container,) = template["containers"]
    (text,) = (item["value"] for item in container["env"] if item["name"] == "COLDSTREAM_TOML")
    found: dict[str, Any] = tomllib.loads(text)
    return found


@pytest.mark.parametrize(("engine", "variant"), [("vllm", "vllm-"), ("native", "gpu-")])
def test_the_engine_that_is_asked_for_is_built_and_is_what_the_service_is_told(
    ready: Site, engine: str, variant: str
) -> None:
    made = ready.job(engine=engine).plan()
    assert (made.size.engine, made.engine_reason) == (engine, "asked for")
    assert made.image.rpartition(":")[2].startswith(variant)
    ready.deploy(engine=engine)
    assert served(ready.service()["template"])["models"]["gemma"]["engine"] == engine


def test_a_gpu_gets_vllm_until_the_native_engine_was_measured_there(ready: Site) -> None:
    made = ready.job().plan()
    assert made.size.engine == "vllm"
    assert "not measured" in made.engine_reason
    ready.deploy()
    assert served(ready.service()["template"])["models"]["gemma"] == {
        "uri": MODEL,
        "device": "cuda",
        "engine": "vllm",
        "max_context": 8192,
    }


@pytest.mark.parametrize(("concurrency", "most"), [(3, 3), (40, None)])
def test_the_service_runs_as_many_sequences_as_were_planned_of_the_length_that_was(
    ready: Site, concurrency: int, most: int | None
) -> None:
    """More than are computed together wait in the engine: 16, where nothing else is said."""
    made = ready.job(engine="native", concurrency=concurrency).plan()
    assert made.size.concurrency == concurrency
    told = served(made.template)
    assert told["models"]["gemma"]["max_context"] == made.size.context
    assert told.get("engine", {}).get("max_sequences") == most


def test_a_service_without_a_gpu_runs_the_native_engine(ready: Site) -> None:
    ready.shelf.models[MODEL] = Opened(**SMALL)
    made = ready.job(cpu_only=True).plan()
    assert made.size.engine == "native"
    assert made.image.rpartition(":")[2].startswith("cpu-")
    assert made.beside is None


@pytest.mark.parametrize("chosen", [{"engine": "vllm"}, {}])
def test_vllm_without_a_gpu_is_refused_by_name(ready: Site, chosen: dict[str, Any]) -> None:
    ready.shelf.models[MODEL] = Opened(**SMALL)
    settings = one_model() if chosen else one_model(engine="vllm")
    with pytest.raises(SettingsError, match="GPU"):
        ready.job(chosen=settings, cpu_only=True, **chosen).plan()


def test_a_model_that_wants_vllm_in_an_image_without_it_is_refused_by_name(ready: Site) -> None:
    with pytest.raises(SettingsError, match=r"models\.gemma\.engine"):
        ready.job(chosen=one_model(engine="vllm"), engine="native").plan()
    assert ready.job(chosen=one_model(engine="vllm")).plan().size.engine == "vllm"
    assert ready.job(chosen=one_model(engine="native"), engine="vllm").plan().size.engine == "vllm"


def test_an_architecture_that_only_vllm_knows_goes_to_vllm(ready: Site) -> None:
    ready.shelf.models[MODEL] = Opened(config=LLAMA_4, total_bytes=2_000_000_000, total_parameters=1_000_000_000)
    made = ready.job().plan()
    assert (made.size.engine, made.beside) == ("vllm", None)
    assert "architecture" in made.engine_reason


def test_an_image_of_ones_own_is_told_no_engine_unless_one_is_named(ready: Site) -> None:
    own = "us-docker.pkg.dev/cloudrun/container/hello"
    assert "engine" not in served(ready.job(image=own).plan().template)["models"]["gemma"]
    assert served(ready.job(image=own, engine="vllm").plan().template)["models"]["gemma"]["engine"] == "vllm"


@pytest.mark.parametrize("engine", ["vllm", "native"])
def test_the_plan_shows_both_engines_with_their_assumptions(ready: Site, engine: str) -> None:
    made = ready.job(engine=engine).plan()
    assert made.beside is not None
    assert {made.size.engine, made.beside.engine} == {"vllm", "native"}
    lines = plan_report.lines(made)
    other = [text for name, text in lines if name == f"on {made.beside.engine}"]
    assert "first token" in other[0]
    assert "tokens/s" in other[0]
    assert any("start" in text for text in other[1:])
    assert any("bandwidth" in text for text in other[1:])
    data = plan_report.as_json(made)
    assert data["engine"]["name"] == engine
    assert data["beside"]["engine"] == made.beside.engine


@pytest.mark.parametrize(("card", "end"), [(cards.L4, "-cu129"), (cards.RTX_PRO_6000, "")])
def test_vllms_image_has_a_cuda_that_the_cards_driver_runs(card: cards.Card, end: str) -> None:
    assert cards.vllm_base(card) == f"docker.io/vllm/vllm-openai:v{cards.VLLM_RELEASE}{end}"


def test_the_image_has_the_release_whose_fields_are_known() -> None:
    from coldstream.engines.vllm import sampling

    assert cards.VLLM_RELEASE == sampling.RELEASE


def test_an_engine_that_does_not_exist_is_refused_by_name(ready: Site) -> None:
    with pytest.raises(SettingsError, match=r"deploy\.engine = 'sglang'"):
        ready.job().wanted.overridden(engine="sglang")
