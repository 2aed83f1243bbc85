"""A packed copy holds what packing at the start would have made, bit by bit, and is bound to its source."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldstream.backends.cpu.choice import stand_up
from coldstream.backends.cpu.decoder import CpuDecoder
from coldstream.backends.cpu.packed import LAYOUT_VERSION
from coldstream.backends.cpu.packed_copy import check_fits
from coldstream.backends.cpu.packing import Packing
from coldstream.backends.cpu.placing import Filling, Placing
from coldstream.demo.bucket import LocalBucket
from coldstream.errors import LocationError, ObjectChanged, UnknownArchitecture
from coldstream.model.config import ModelConfig
from coldstream.pack.pack import pack
from coldstream.weights.arrays import as_array
from coldstream.weights.checkpoint.checkpoint import Checkpoint
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.packed.forms import CPU_INT8
from coldstream.weights.packed.opening import WithCopy
from coldstream.weights.stores.local import LocalStore
from coldstream.weights.transfer.stream import StreamOptions, stream
from tests.support import packs, tiny
from tests.support.cpu_models import one_step
from tests.support.fault_stores import MemoryStore
from tests.support.tiny_vision import gemma3_vision

PROMPTS = [[4, 8, 15], [16, 23, 42, 7]]


def failed(exc: BaseException) -> None:
    raise exc


async def fill(checkpoint: Checkpoint, arriving: Checkpoint, filling: Filling, part: int) -> CpuDecoder:
    """A decoder of what a stream of small reads brings."""
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    decoder, assembly = stand_up(checkpoint.config, shapes, precision="int8", packing=filling)
    async for landed in stream(arriving, pieces=filling.pieces, options=StreamOptions(part_size=part)):
        if not filling.take(landed):
            assembly.assign(landed.info.name, as_array(landed))
    assembly.finish()
    return decoder


def both(found: WithCopy, part: int) -> tuple[tuple[CpuDecoder, Packing], tuple[CpuDecoder, Placing]]:
    """The model as it is made of the source, and of its copy."""
    assert found.copy is not None, found.why_not
    checkpoint, arriving = found.checkpoint, found.copy.arriving
    tensors, config = checkpoint.tensors.values(), ModelConfig.from_json(checkpoint.config)
    check_fits(checkpoint.config, tensors, arriving.tensors)
    packing = Packing(config, tensors, workers=0, failed=failed)
    placing = Placing(config, tensors, arriving.tensors, workers=0, failed=failed)
    from_source = asyncio.run(fill(checkpoint, checkpoint, packing, part))
    return (from_source, packing), (asyncio.run(fill(checkpoint, arriving, placing, part)), placing)


def held(folder: Path) -> WithCopy:
    """The model and its copy, copied into a bucket together: known by their checksums there."""
    return packs.opened(MemoryStore(packs.files_of(folder)), MemoryStore(packs.files_of(folder / "packed")))


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_model_from_its_copy_is_the_model_from_its_source(tmp_path_factory: Any, data: st.DataObject) -> None:
    make = data.draw(st.sampled_from([tiny.gemma3, tiny.llama, tiny.qwen2, tiny.qwen3]))
    heads = data.draw(st.sampled_from([1, 2, 4]))
    made = make(
        vocab_size=data.draw(st.integers(64, 300)),
        hidden_size=data.draw(st.integers(1, 24)) * 4,
        intermediate_size=data.draw(st.integers(1, 100)),
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=data.draw(st.sampled_from([1, heads])),
    )
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    tensors = {name: tensor.to(dtype) for name, tensor in made.tensors.items()}
    folder = tmp_path_factory.mktemp("model")
    packs.write(folder, made, shards=data.draw(st.sampled_from([1, 3])), tensors=tensors)
    report = packs.packed(folder)
    assert report.is_new
    (from_source, packing), (from_copy, placing) = both(held(folder), data.draw(st.sampled_from([999, 65536])))
    for name, matrix in packing.matrices.items():
        assert matrix.units == placing.matrices[name].units
        assert matrix.scales == placing.matrices[name].scales
    assert torch.equal(one_step(from_source, PROMPTS), one_step(from_copy, PROMPTS))


def test_a_copy_of_a_model_that_sees_keeps_the_tower_in_a_file_of_its_own(tmp_path: Path) -> None:
    packs.write(tmp_path, gemma3_vision())
    report = packs.packed(tmp_path)
    assert sorted(report.files) == sorted([packs.MANIFEST, packs.TEXT, packs.TEXT.replace("text", "vision")])
    (from_source, _), (from_copy, _) = both(held(tmp_path), 65536)
    assert from_source.vision is not None
    assert from_copy.vision is not None
    size = from_source.vision.config.image_size
    pixels = np.random.default_rng(0).standard_normal((3, size, size), dtype=np.float32)
    assert np.array_equal(from_source.vision.encode(pixels), from_copy.vision.encode(pixels))


def test_a_copy_that_is_there_is_left_alone_until_its_source_changes(tmp_path: Path) -> None:
    made = tiny.llama()
    packs.write(tmp_path, made)
    packs.packed(tmp_path)
    stamp = (tmp_path / "packed" / packs.TEXT).stat().st_mtime_ns
    assert not packs.packed(tmp_path).is_new
    assert (tmp_path / "packed" / packs.TEXT).stat().st_mtime_ns == stamp
    packs.write(tmp_path, made, tensors={name: tensor * 2 for name, tensor in made.tensors.items()})
    assert packs.packed(tmp_path).is_new
    assert not packs.packed(tmp_path).is_new


def test_a_copy_may_lie_elsewhere(tmp_path: Path) -> None:
    folder = packs.write(tmp_path / "model", tiny.llama())
    report = packs.packed(folder, tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / packs.MANIFEST).is_file()
    assert not (folder / "packed").exists()
    assert report.destination == f"file://{tmp_path}/elsewhere"


def test_in_a_bucket_it_is_bound_to_generations_and_written_under_preconditions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packs.write(tmp_path, tiny.llama())
    with LocalBucket() as bucket:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.url)
        uri = bucket.add("models", "llama", tmp_path)
        report = asyncio.run(pack(uri))
        stored = {item.name.rpartition("/")[2]: item for item in bucket.objects("models", "llama/packed")}
        assert {name: item.size for name, item in stored.items()} == report.files
        manifest = json.loads((bucket.folder / "objects/models/llama/packed" / packs.MANIFEST).read_bytes())
        source = {item.name: item for item in bucket.objects("models", "llama/")}["llama/model.safetensors"]
        bound = manifest["source"]["objects"]["model.safetensors"]
        assert bound["generation"] == str(source.generation)
        assert not asyncio.run(pack(uri)).is_new
        assert asyncio.run(pack(uri, again=True)).is_new


def test_who_comes_second_is_refused(tmp_path: Path) -> None:
    async def two() -> None:
        store = LocalStore(Location.parse(str(tmp_path)))
        first = await store.begin_upload("x", 1, replaces=None)
        second = await store.begin_upload("x", 1, replaces=None)
        for upload in (first, second):
            await upload.write(memoryview(b"1"))
        await first.finish()
        try:
            await second.finish()
        finally:
            await second.abort()

    with pytest.raises(ObjectChanged, match="another writer"):
        asyncio.run(two())
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_cannot_be_packed_says_why(tmp_path: Path) -> None:
    packs.write(tmp_path, tiny.llama())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"})
    )
    with pytest.raises(UnknownArchitecture):
        packs.packed(tmp_path)
    assert not (tmp_path / "packed").exists()
    with pytest.raises(LocationError, match="only read"):
        asyncio.run(pack(str(tmp_path), "s3://bucket/packed"))
    with pytest.raises(LocationError, match="folder of its own"):
        asyncio.run(pack(str(tmp_path), str(tmp_path)))


def test_the_forms_name_has_the_layouts_version() -> None:
    assert f"cpu-int8-{LAYOUT_VERSION}" == CPU_INT8
