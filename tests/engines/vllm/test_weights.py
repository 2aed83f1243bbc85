"""A checkpoint's tensors for vLLM's loader: right or a named error on a bad network; and what is reported."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from coldstream.engines.vllm.handover import LoadReport, ModelSource, checked_extra
from coldstream.engines.vllm.weights import WeightSource
from coldstream.errors import ChecksumMismatch, ColdstreamError, ObjectChanged, SettingsError
from tests.faults.schedules import Faults
from tests.support import files
from tests.support.fault_stores import Fault, FaultStore, MemoryStore, Request

SOURCE = ModelSource("gs://bucket/model", deadline=20.0)


def loaded(
    store: Any, *, source: ModelSource = SOURCE, replaceable: bool = True
) -> tuple[dict[str, bytes], LoadReport]:
    """What came, the later of two, and the last report."""
    reports: list[LoadReport] = []
    tensors = WeightSource(source, report=reports.append, store=store).tensors(replaceable=replaceable)
    import torch

    got = {name: tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for name, tensor in tensors}
    return got, reports[-1]


def model(seed: int) -> tuple[dict[str, bytes], MemoryStore]:
    tensors = files.model(seed, layers=3, width=8)
    store = MemoryStore(files.checkpoint(tensors, shards=2), checksums=True)
    return {name: data for name, (_, _, data) in tensors.items()}, store


TRANSIENT = ["slow", "paused", "reset", "lost", "short", "throttled", "unavailable"]


@pytest.mark.parametrize("seed", range(20))
def test_a_load_survives_what_passes(seed: int) -> None:
    """Twenty seeded schedules of errors that are transient: every byte is right, and said to be verified."""
    wanted, inner = model(seed)
    faults = Faults(random.Random(seed), TRANSIENT, chance=0.2, most=3)
    got, said = loaded(FaultStore(inner, faults))
    assert got == wanted
    assert said.error is None
    assert said.phase == "done"
    assert (len(said.verified), said.unverified) == (2, ())


def test_a_replaced_checkpoint_is_not_mixed_with_the_config_of_another() -> None:
    _, store = model(0)
    with pytest.raises(ObjectChanged, match="revision other"):
        loaded(store, source=ModelSource("gs://bucket/model", revision="other"))


class OneDamagedRead:
    """The first read of tensors is damaged."""

    def __init__(self) -> None:
        self._left = 1

    def __call__(self, request: Request) -> Fault | None:
        if not request.name.endswith(".safetensors") or request.start == 0 or not self._left:
            return None
        self._left -= 1
        return Fault("wrong", 10, 0.0)


def test_a_damaged_file_comes_again_for_a_model_that_can_take_it() -> None:
    wanted, inner = model(1)
    got, said = loaded(FaultStore(inner, OneDamagedRead()))
    assert got == wanted
    assert said.counters.refetches == 1


def test_a_model_that_is_quantised_meanwhile_refuses_a_second_delivery() -> None:
    _, inner = model(1)
    with pytest.raises(ChecksumMismatch, match="quantised"):
        loaded(FaultStore(inner, OneDamagedRead()), replaceable=False)


def test_the_servers_process_hears_the_error_as_it_was_raised(tmp_path: Path) -> None:
    _, inner = model(2)
    denied = FaultStore(inner, lambda request: Fault("denied", 0, 0.0) if request.start else None)
    reports: list[LoadReport] = []
    with pytest.raises(ColdstreamError) as raised:
        list(WeightSource(SOURCE, report=reports.append, store=denied).tensors(replaceable=True))
    reports[-1].write(tmp_path)
    heard = LoadReport.read(tmp_path)
    assert heard is not None
    error = heard.raised()
    assert type(error) is type(raised.value)
    assert str(error) == str(raised.value)


@pytest.mark.parametrize(
    ("extra", "found"),
    [
        ({}, {}),
        ({"concurrency": 4, "distributed": True}, {"concurrency": 4}),
        ({"memory_limit": 1000}, {"max_bytes_in_flight": 1000}),
        ({"memory_limit": -1}, {"max_bytes_in_flight": 1 << 62}),
        ({"verify": "required"}, {"verify": "required"}),
    ],
)
def test_the_loaders_options_have_their_effect(extra: dict[str, Any], found: dict[str, Any]) -> None:
    assert checked_extra(extra) == found


@pytest.mark.parametrize("extra", [{"threads": 4}, {"concurrency": "4"}, {"concurrency": True}, {"verify": "never"}])
def test_an_option_that_the_loader_has_not_is_refused_by_name(extra: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(extra))):
        checked_extra(extra)


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    assert ModelSource.read(tmp_path) is None
    assert LoadReport.read(tmp_path) is None
    source = ModelSource("gs://b/m", "abc", "file", "required", 1, 2, 3.0)
    source.write(tmp_path)
    assert ModelSource.read(tmp_path) == source
    report = LoadReport("streaming", 10, 5, verified=("a",), unverified=("b",), seconds=1.5, error=("OutOfMemory", "x"))
    report.write(tmp_path)
    assert LoadReport.read(tmp_path) == report
