"""What vLLM is started with: every key of ours under a name that vLLM has, and no key that it has nothing for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coldstream.engines.vllm.launch import OURS, Launch, check_settings, our_arguments
from coldstream.errors import SettingsError, UnsupportedConfig
from coldstream.settings import EngineSettings, ModelSettings
from tests.engines.vllm.record import RECORDING

MODEL = ModelSettings("main", "gs://b/m", engine="vllm")
ENGINE = EngineSettings()


def launch(model: ModelSettings = MODEL, engine: EngineSettings = ENGINE, device: str = "cuda") -> Launch:
    return Launch(Path("/nowhere"), model, engine, device, max_positions=1000)  # type: ignore[arg-type]


def test_what_we_set_is_refused_elsewhere_and_is_a_name_of_vllms() -> None:
    theirs = set(json.loads(RECORDING.read_text())["fields"]["AsyncEngineArgs"])
    assert set(our_arguments(launch())) <= set(OURS) <= theirs


@pytest.mark.parametrize(("wanted", "length"), [(None, -1), (500, 500), (5000, 1000)])
def test_a_context_is_what_is_asked_for_within_the_models_own(wanted: int | None, length: int) -> None:
    model = ModelSettings("main", "gs://b/m", max_context=wanted)
    assert our_arguments(launch(model))["max_model_len"] == length


def test_the_engines_keys_arrive() -> None:
    engine = EngineSettings(max_sequences=3, step_tokens=77, kv_bytes=5, prefix_cache=False)
    made = our_arguments(launch(engine=engine))
    assert (made["max_num_seqs"], made["max_num_batched_tokens"]) == (3, 77)
    assert (made["kv_cache_memory_bytes"], made["enable_prefix_caching"]) == (5, False)


def test_a_gpus_memory_is_for_vllm_to_share_out_and_a_containers_is_not() -> None:
    assert our_arguments(launch())["kv_cache_memory_bytes"] is None
    assert our_arguments(launch(device="cpu"))["kv_cache_memory_bytes"] > 0


def test_what_only_the_native_engine_has_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedConfig, match=r"models\.main\.precision"):
        check_settings(ModelSettings("main", "gs://b/m", precision="int8"), EngineSettings(), device="cuda")
    with pytest.raises(SettingsError, match=r"engine\.threads"):
        check_settings(MODEL, EngineSettings(threads=2), device="cuda")
    check_settings(MODEL, EngineSettings(threads=2), device="cpu")
    with pytest.raises(SettingsError, match=r"engine\.cuda_graphs.*--enforce-eager"):
        check_settings(MODEL, EngineSettings(cuda_graphs=False), device="cuda")
