"""Sizing, quota and the service as data: pure, and held against what Cloud Run allows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstream.backends.blocks import bytes_per_block, windows
from coldstream.deploy import cards, quota, service, sizing
from coldstream.deploy import plan as planning
from coldstream.deploy.quota import CPU_QUOTA, MEMORY_QUOTA
from coldstream.deploy.service import Options, Scaling
from coldstream.deploy.sizing import CPU, GIB, L4, CloudMachine, ModelShape, Prices, Size, Weights, Wish
from coldstream.deploy.target import target
from coldstream.engine.kvcache.blocks import Blocks
from coldstream.engine.kvcache.budget import affordable
from coldstream.errors import DeployError, UnsupportedConfig
from coldstream.model.config import ModelConfig
from coldstream.model.memory import BLOCK_SIZE, beside_weights, graph_bytes, step_of, workspace_bytes
from coldstream.settings import DeploySettings
from tests.deploy.conftest import GEMMA_270M

TARGET = target(DeploySettings(project="demo-project"), ("gs://models/gemma",))
L4_QUOTA, L4_REDUNDANT_QUOTA = cards.L4.quota(redundant=False), cards.L4.quota(redundant=True)
FREE = {CPU_QUOTA: None, MEMORY_QUOTA: None, L4_QUOTA: None}


def weights(gib: float, config: dict[str, object] | None = None) -> Weights:
    size = int(gib * GIB)
    return Weights("gs://models/gemma", size, size // 2, sizing.shape(config or GEMMA_270M))


def sized(gib: float, machine: CloudMachine = L4, **wish: object) -> Size:
    return sizing.size((weights(gib),), machine, Wish(**wish), prices=Prices())  # type: ignore[arg-type]


def test_gemma_3_in_the_spelling_of_transformers_4_and_5_is_the_same_shape() -> None:
    """18 layers, every sixth of them full."""
    kinds = ["full_attention" if (layer + 1) % 6 == 0 else "sliding_attention" for layer in range(18)]
    newer = {key: value for key, value in GEMMA_270M.items() if key != "sliding_window_pattern"} | {
        "layer_types": kinds
    }
    assert sizing.shape(GEMMA_270M) == sizing.shape(newer)
    assert sizing.shape(newer).sliding_layers == 15


def test_a_vision_model_is_sized_by_its_text_part() -> None:
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    shape = sizing.shape({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text})
    assert (shape.layers, shape.hidden, shape.vocab) == (34, 2560, 262_208)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "mistral"},
        {"model_type": "qwen3", "use_sliding_window": True, "max_window_layers": 2, "sliding_window": 64},
        {"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": False},
        {"model_type": "llama", "rope_scaling": {"type": "yarn", "factor": 4.0}, "max_position_embeddings": 1024},
        {"model_type": "gemma3", "text_config": {"hidden_size": 2560, "num_attention_heads": 8}},
    ],
)
def test_the_plan_counts_what_the_decoder_keeps(changes: dict[str, Any]) -> None:
    shape, model = sizing.shape(changes), ModelConfig.from_json(changes)
    assert (shape.kv_heads, shape.head_dim, shape.context) == (model.kv_heads, model.head_dim, model.max_positions)
    block = bytes_per_block(model, BLOCK_SIZE, token_bytes=2 * model.kv_heads * model.head_dim * 2)
    groups = affordable(1 << 40, windows=windows(model), block_bytes=block, sequences=1, context=5000, step=512)
    kept = sum(group.count * each for group, each in zip(groups, block, strict=True))
    assert shape.kv_bytes(5000, item=2, step=512) == kept


def test_a_config_without_layers_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedConfig, match="num_hidden_layers"):
        sizing.shape({"hidden_size": 64, "num_attention_heads": 4})


def test_keys_and_values_of_a_full_attention_model_by_hand() -> None:
    """Llama 3 8B: 32 layers x 8 heads x 128 x 2 (keys, values) x 2 bytes = 128 KiB a token, 32 tokens a block."""
    shape = ModelShape("LlamaForCausalLM", 32, 0, 0, 8, 128, 4096, 14336, 128_256, 8192)
    assert shape.kv_bytes(1, item=2, step=512) == 2 * 32 * 131_072


@given(tokens=st.integers(1, 100_000))
def test_a_sliding_layer_holds_no_more_than_its_window(tokens: int) -> None:
    shape = sizing.shape(GEMMA_270M)
    full = replace(shape, sliding_layers=0)
    saved = full.kv_bytes(tokens, item=2, step=512) - shape.kv_bytes(tokens, item=2, step=512)
    block = shape.sliding_layers * 2 * 256 * 2 * 32
    behind = max(0, tokens - shape.window - min(512, tokens)) // 32
    assert max(0, (behind - 2) * block) <= saved <= behind * block


@given(gib=st.floats(0.1, 19), sequences=st.integers(1, 64))
def test_what_is_planned_for_a_gpu_fits_on_it_and_in_cloud_runs_limits(gib: float, sequences: int) -> None:
    try:
        size = sized(gib, max_sequences=sequences)
    except DeployError:
        assert gib > 15
        return
    assert size.needed_bytes <= size.device_bytes
    assert size.cpu in (4, 6, 8)
    assert 16 <= size.memory_gib <= 32
    assert 1 <= size.concurrency <= sequences
    assert size.probe_period * size.probe_failures <= 1800
    assert size.probe_period <= 240
    assert size.host_bytes <= size.memory_gib * GIB


MODELS = (GEMMA_270M, {"model_type": "llama"}, {"model_type": "mistral"})


@given(
    config=st.sampled_from(MODELS),
    gib=st.floats(0.1, 16),
    sequences=st.integers(1, 64),
    step=st.integers(1, 4096),
    context=st.none() | st.integers(1, 40_000),
    card=st.sampled_from([cards.L4, cards.RTX_PRO_6000]),
)
def test_the_engine_takes_what_the_plan_says_and_no_sequence_is_shorter(
    config: dict[str, Any], gib: float, sequences: int, step: int, context: int | None, card: cards.Card
) -> None:
    """On a card that has free what the plan assumes; the engine is given the planned context and sequences."""
    wish = Wish(max_sequences=sequences, step_tokens=step, context=context)
    try:
        size = sizing.size((weights(gib, config),), sizing.with_card(card), wish, prices=Prices())
    except DeployError:
        return
    model, rows = ModelConfig.from_json(config), min(size.concurrency, sequences)
    longest = step_of(step, image=0, context=size.context)
    room = beside_weights(
        card.device_bytes - sizing.CUDA_BYTES,
        card.device_bytes,
        unallocated=size.weight_bytes,
        workspace=workspace_bytes(model, tokens=longest, rows=rows, item=2) + graph_bytes(model, rows=rows, item=2),
    )
    block = bytes_per_block(model, BLOCK_SIZE, token_bytes=2 * model.kv_heads * model.head_dim * 2)
    groups = affordable(
        room, windows=windows(model), block_bytes=block, sequences=rows, context=size.context, step=longest
    )
    assert sum(group.count * each for group, each in zip(groups, block, strict=True)) == size.kv_bytes
    assert Blocks(groups, BLOCK_SIZE, step=longest).capacity >= size.context


def test_each_model_of_an_instance_has_an_engine_of_its_own() -> None:
    one, two = (sizing.size((weights(1),) * count, L4, Wish(), prices=Prices()) for count in (1, 2))
    assert two.kv_bytes == 2 * one.kv_bytes
    assert two.activation_bytes == 2 * one.activation_bytes


def test_weights_are_counted_as_they_are_computed_with() -> None:
    shape = sizing.shape(GEMMA_270M)
    stored = Weights("gs://models/gemma", 4 * 10**9, 10**9, shape)
    held = {
        (precision, gpu): replace(stored, precision=precision).held_bytes("native", gpu=gpu)
        for precision in ("auto", "float32", "bfloat16", "int8")
        for gpu in (False, True)
    }
    assert held["auto", True] == held["bfloat16", True] == held["bfloat16", False] == 2 * 10**9
    assert held["float32", True] == held["float32", False] == 4 * 10**9
    assert held["auto", False] == held["int8", True] == held["int8", False] == 1.05 * 10**9
    assert stored.held_bytes("vllm", gpu=True) == stored.bytes


@given(gib=st.floats(0.05, 12))
def test_what_is_planned_without_a_gpu_fits_in_cloud_runs_limits(gib: float) -> None:
    try:
        size = sized(gib, CPU)
    except DeployError:
        assert gib > 4
        return
    assert size.host_bytes <= size.memory_gib * GIB <= 32 * GIB
    assert size.probe_period * size.probe_failures <= 240
    assert (size.memory_gib, size.cpu) <= (32, 8)


def test_a_model_that_is_too_large_for_the_gpu_is_refused_with_its_size() -> None:
    with pytest.raises(DeployError, match=r"24\.0 GiB of weights .* do not fit in the 22 GiB of one NVIDIA L4"):
        sized(24)


def test_a_model_that_takes_too_long_for_a_cpu_service_is_refused() -> None:
    """Cloud Run waits 240 s without a GPU."""
    with pytest.raises(DeployError, match="Cloud Run waits 240 s at most"):
        sizing.size((weights(8),), replace(CPU, fetch_per_cpu=1e6, fetch_most=1e7), Wish(), prices=Prices())


def test_an_instance_that_cloud_run_does_not_have_is_refused() -> None:
    with pytest.raises(DeployError, match="2 vCPU"):
        sized(1, cpu=2)
    with pytest.raises(DeployError, match="64 GiB"):
        sized(1, memory_gib=64)


def test_an_l4_with_eight_cpus_costs_what_the_price_list_says() -> None:
    """About $1.40 an hour: 8 vCPU, 32 GiB and one L4."""
    assert math.isclose(sized(4, cpu=8, memory_gib=32).dollars_per_hour, 1.42, abs_tol=0.02)


def test_the_assumptions_are_told() -> None:
    text = " ".join(sized(1).assumptions)
    assert all(word in text for word in ("GB/s", "not measured", "prices"))


def fit(wanted: int | None = None, least: int = 0, **limits: int) -> quota.Fit:
    size = sized(0.5, cpu=4, memory_gib=16)
    return quota.fit(size, {**FREE, **limits}, wanted=wanted, least=least, zonal_redundancy=False)


def test_without_a_known_limit_the_wish_stands_and_the_default_is_one() -> None:
    """A caller who may not see the quota does not run into it by default."""
    assert fit(7).instances == 7
    assert fit().instances == 1
    assert fit(**{CPU_QUOTA: 10**6, MEMORY_QUOTA: 10**15, L4_QUOTA: 50}).instances == 3


NEW_PROJECT = {CPU_QUOTA: 20_000, MEMORY_QUOTA: 40 * GIB, L4_QUOTA: 0}


def test_a_new_projects_limits_hold_one_instance_beside_a_rollout() -> None:
    """20 vCPU hold five of 4, 40 GiB two of 16: one by default, so that the next revision fits beside it."""
    found = fit(**NEW_PROJECT)
    assert (found.instances, found.limited_by, found.overlap) == (1, MEMORY_QUOTA, None)


def test_a_wish_gets_all_that_a_new_project_holds() -> None:
    """An overlap is not taken from who asks: it is told, and has a way out."""
    found = fit(2, **NEW_PROJECT)
    assert (found.instances, found.overlap) == (2, False)
    assert [item.quota for item in found.crowded] == [MEMORY_QUOTA]


def test_the_commonest_case_is_small_enough_for_a_new_project() -> None:
    """Gemma 3 4b on one L4: 5.3 GiB of the host while loading, so 4 vCPU and 16 GiB."""
    size = sized(8.0)
    assert (size.cpu, size.memory_gib) == (4, 16)
    assert size.host_bytes < 5.5 * GIB
    assert quota.fit(size, NEW_PROJECT, wanted=None, least=0, zonal_redundancy=False).instances == 1


def test_one_instance_that_fills_the_quota_is_deployed_the_first_time() -> None:
    """8 vCPU and 32 GiB of a new project's 40: there is no old revision to overlap with."""
    size = sized(0.5, cpu=8, memory_gib=32)
    assert quota.fit(size, NEW_PROJECT, wanted=None, least=0, zonal_redundancy=False).instances == 1


def test_an_rtx_pro_6000_has_its_own_size_and_quota() -> None:
    size = sized(40, sizing.with_card(cards.RTX_PRO_6000))
    assert size.cpu >= 20
    assert size.memory_gib >= 80
    demand = quota.demands(size, {}, zonal_redundancy=False)[-1]
    assert demand.quota == "NvidiaRtxPro6000GpuAllocNoZonalRedundancyPerProjectRegion"
    assert demand.each == 1000
    assert any("price" in text and "not known" in text for text in size.assumptions)


@pytest.mark.parametrize(
    ("card", "cuda", "runs"),
    [
        (cards.L4, (12, 2), True),
        (cards.L4, (12, 9), True),
        (cards.L4, (13, 0), False),
        (cards.L4, (11, 8), True),
        (cards.RTX_PRO_6000, (13, 2), True),
        (cards.RTX_PRO_6000, (12, 8), True),
        (cards.RTX_PRO_6000, (12, 6), False),
    ],
)
def test_a_driver_runs_its_own_major_version_and_older_ones_that_know_the_card(
    card: cards.Card, cuda: cards.Cuda, runs: bool
) -> None:
    assert cards.runs(card, cuda) is runs


def test_torch_comes_from_the_index_that_the_driver_runs() -> None:
    assert cards.torch_for(cards.L4, "2.10.1") == ("2.10.1", "https://download.pytorch.org/whl/cu126")
    assert cards.torch_for(cards.RTX_PRO_6000, "2.13.0") == ("2.13.0", "https://download.pytorch.org/whl/cu130")


@pytest.mark.parametrize("installed", ["9.1.0", "2.12.1", "2.14.0"])
def test_an_installed_torch_without_a_build_for_the_card_bars_none(installed: str) -> None:
    version, index = cards.torch_for(cards.L4, installed)
    assert (version, index.rpartition("/")[2]) == ("2.13.0", "cu126")
    none = replace(cards.L4, cuda=(11, 0))
    with pytest.raises(DeployError, match="no CUDA build of torch for NVIDIA L4"):
        cards.torch_for(none, installed)


@given(
    wanted=st.integers(1, 50),
    cpu=st.integers(0, 400_000),
    memory=st.integers(0, 400 * GIB),
    gpus=st.integers(1, 50),
)
def test_what_fits_never_exceeds_a_limit(wanted: int, cpu: int, memory: int, gpus: int) -> None:
    found = fit(wanted, **{CPU_QUOTA: cpu, MEMORY_QUOTA: memory, L4_QUOTA: gpus})
    assert found.instances <= wanted
    if found.instances:
        assert all(item.fits(found.instances) for item in found.demands)


@given(least=st.integers(0, 9), memory=st.integers(1, 9), seen=st.booleans())
def test_instances_that_are_always_there_are_counted_in_or_refused(least: int, memory: int, seen: bool) -> None:
    """Never fewer than were asked for, without a word."""
    limits = {CPU_QUOTA: 400_000, MEMORY_QUOTA: memory * 16 * GIB, L4_QUOTA: 50} if seen else FREE
    size = sized(0.5, cpu=4, memory_gib=16)
    wanted = DeploySettings(min_instances=least)
    if seen and memory < least:
        with pytest.raises(DeployError, match=f"deploy.min_instances = {least}, and {MEMORY_QUOTA}"):
            planning.fitting(size, wanted, limits)
    else:
        assert planning.fitting(size, wanted, limits).instances >= least


def test_redundancy_is_another_quota() -> None:
    size = sized(0.5)
    asked = quota.demands(size, {L4_REDUNDANT_QUOTA: 0}, zonal_redundancy=True)
    assert asked[-1].fits(1) is False


def template(size: Size, **other: str) -> dict[str, object]:
    given = {"image": "image:1", "config": "[models.a]", "revision_of_model": "1", **other}
    body = service.template(TARGET, size, Scaling(0, 2, 600), options=Options(), **given)
    return {"revision": service.revision_name(TARGET.service, body, None), **body}


def test_a_template_has_what_an_l4_service_needs() -> None:
    made = template(sized(0.5))
    container = made["containers"][0]  # type: ignore[index]
    assert container["resources"]["limits"] == {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1"}
    assert container["startup_probe"]["http_get"]["path"] == "/ready"
    assert made["gpu_zonal_redundancy_disabled"] is True
    assert made["node_selector"] == {"accelerator": "nvidia-l4"}


def test_the_same_template_is_the_same_revision_and_another_one_another() -> None:
    assert template(sized(0.5))["revision"] == template(sized(0.5))["revision"]
    names = {template(sized(0.5), **{key: "other"})["revision"] for key in ("image", "config", "revision_of_model")}
    assert len(names | {template(sized(0.5))["revision"]}) == 4


def test_a_diff_names_the_fields_that_would_change() -> None:
    before = service.service(TARGET, template(sized(0.5)), Scaling(0, 2, 600), [])
    after = service.service(TARGET, template(sized(0.5), image="image:2"), Scaling(0, 2, 600), [])
    assert [change.path for change in service.diff(before, after)] == ["template.containers[0].image"]
    assert service.diff(before, before) == ()


def test_a_gpu_that_is_no_longer_wanted_is_in_the_diff() -> None:
    before = service.service(TARGET, template(sized(0.5)), Scaling(0, 2, 600), [])
    after = service.service(TARGET, template(sized(0.5, CPU)), Scaling(0, 2, 600), [])
    paths = [change.path for change in service.diff(before, after)]
    assert "template.node_selector.accelerator" in paths


def test_serving_resolves_latest_to_the_revision_it_means() -> None:
    deployed = {"latest_ready_revision": "p/revisions/one", "traffic": [{"percent": 100}]}
    assert service.serving(deployed) == {"one": 100}


NAMES = st.text("abcdefgh", min_size=1, max_size=4)
FOREIGN = st.fixed_dictionaries(
    {},
    optional={
        "vpc_access": st.fixed_dictionaries({"egress": NAMES}),
        "session_affinity": st.just(True),
        "encryption_key": NAMES,
        "service_mesh": st.fixed_dictionaries({"mesh": NAMES}),
        "health_check_disabled": st.just(True),
        "volumes": st.lists(st.fixed_dictionaries({"name": NAMES}), min_size=1, max_size=2),
    },
)


@given(
    foreign=FOREIGN,
    labels=st.dictionaries(NAMES, NAMES, max_size=3),
    env=st.lists(NAMES.map(lambda name: {"name": name.upper(), "value": name}), max_size=3),
    sidecars=st.lists(NAMES.map(lambda name: {"name": f"side-{name}", "image": name}), max_size=2),
    concurrency=st.integers(1, 16),
)
def test_what_somebody_set_is_never_cleared_and_a_second_time_changes_nothing(
    foreign: dict[str, object],
    labels: dict[str, str],
    env: list[dict[str, str]],
    sidecars: list[dict[str, str]],
    concurrency: int,
) -> None:
    """Whatever was set in the template, by whatever way: it is in the next one, and the one after is the same."""
    first = template(sized(0.5))
    (container,) = first["containers"]  # type: ignore[misc]
    container = {**container, "env": [*container["env"], *env]}  # type: ignore[has-type]
    set_by_somebody = {**first, **foreign, "containers": [container, *sidecars], "labels": {**labels, **service.LABELS}}
    body = template(sized(0.5, concurrency=concurrency))
    body.pop("revision")
    made = service.upon({"template": set_by_somebody}, body)
    assert {key: made.get(key) for key in foreign} == foreign
    assert made["labels"].items() >= labels.items() - service.LABELS.items()
    assert [item for item in made["containers"][0]["env"] if item in env] == env
    assert made["containers"][1:] == sidecars
    again = service.upon({"template": made}, body)
    assert again == made
    names = {service.revision_name("s", body, {"template": seen}) for seen in (set_by_somebody, made, again)}
    assert len(names) == 1
    spec = service.service(TARGET, made, Scaling(0, 2, 600), [])
    assert service.diff({**spec, "template": made}, spec) == ()
