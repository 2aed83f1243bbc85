"""A folder -> Checkpoint: what is read, what is refused, and with which words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from coldstream.errors import (
    BadResponse,
    ColdstreamError,
    HeaderError,
    IndexMismatch,
    NoConfig,
    NoWeights,
    ObjectNotFound,
    ShardMissing,
    UnsafeName,
)
from coldstream.weights.checkpoint.checkpoint import Checkpoint, open_checkpoint_async
from coldstream.weights.stores.store import Pin
from tests.support import files
from tests.support.fault_stores import MemoryStore

INDEX = "model.safetensors.index.json"


async def opened(folder: dict[str, bytes]) -> tuple[Checkpoint, MemoryStore]:
    store = MemoryStore(folder)
    return await open_checkpoint_async(store.location, store=store), store


async def refused(folder: dict[str, bytes], error: type[ColdstreamError], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        await opened(folder)
    assert "gs://memory/model" in str(caught.value)


async def test_a_single_file_is_the_checkpoint() -> None:
    checkpoint, store = await opened(files.checkpoint(files.model()))
    assert checkpoint.tensors.keys() == files.model().keys()
    assert checkpoint.config["model_type"] == "llama"
    assert checkpoint.generation_config is None
    assert checkpoint.total_bytes == sum(len(data) for _, _, data in files.model().values())
    assert store.listings == 1


async def test_the_index_decides_and_nothing_else_is_read() -> None:
    folder = files.checkpoint(files.model(), shards=3)
    extra = {
        "consolidated.safetensors": b"?",
        "optimizer.pt": b"?",
        "model.safetensors": b"?",
        "adapter_model.safetensors": b"?",
    }
    checkpoint, store = await opened({**folder, **extra})
    assert [shard.name for shard in checkpoint.shards] == sorted(name for name in folder if "-of-" in name)
    assert {request.name for request in store.requests}.isdisjoint(extra)


async def test_an_index_beside_a_whole_file_decides_and_the_warning_names_both() -> None:
    folder = files.checkpoint(files.model(), shards=2)
    checkpoint, _ = await opened({**folder, "model.safetensors": files.safetensors(files.model(seed=1))})
    (warning,) = checkpoint.warnings
    assert all(word in warning for word in (INDEX, "model.safetensors is not", 'weights = "file"'))
    assert (await opened(folder))[0].warnings == ()


async def test_the_whole_file_is_read_where_it_is_chosen() -> None:
    folder = files.checkpoint(files.model(), shards=2)
    store = MemoryStore({**folder, "model.safetensors": files.safetensors(files.model(seed=1))})
    checkpoint = await open_checkpoint_async(store.location, store=store, weights="file")
    assert [shard.name for shard in checkpoint.shards] == ["model.safetensors"]
    assert INDEX in checkpoint.warnings[0]
    with pytest.raises(NoWeights, match=r"no model\.safetensors"):
        await open_checkpoint_async(store.location, store=MemoryStore(folder), weights="file")


@pytest.mark.parametrize("index", [b"{}", b'{"weight_map": {"w": "model-00001-of-00002.safetensors"}}'])
async def test_a_stale_index_beside_a_whole_file_says_so_and_how_to_take_it(index: bytes) -> None:
    folder = {**files.checkpoint(files.model()), INDEX: index}
    error = IndexMismatch if index == b"{}" else ShardMissing
    await refused(folder, error, r'whole model\.safetensors lies beside it.*weights = "file"')


async def test_a_tensor_that_the_index_names_and_no_file_holds_is_a_warning() -> None:
    folder = files.checkpoint(files.model(), shards=2)
    index = json.loads(folder[INDEX])
    index["weight_map"]["lm_head.weight"] = "model-00002-of-00002.safetensors"
    checkpoint, _ = await opened({**folder, INDEX: json.dumps(index).encode()})
    assert checkpoint.tensors.keys() == files.model().keys()
    assert "lm_head.weight" in checkpoint.warnings[0]


async def test_an_adapter_beside_the_model_is_said_to_be_not_applied() -> None:
    checkpoint, _ = await opened({**files.checkpoint(files.model()), "adapter_model.safetensors": b"?"})
    assert "not applied" in checkpoint.warnings[0]


async def test_a_short_header_is_one_request_a_shard() -> None:
    _, store = await opened(files.checkpoint(files.model(), shards=3))
    assert len([request for request in store.requests if "-of-" in request.name]) == 3


async def test_a_header_longer_than_the_first_read_takes_a_second_one() -> None:
    tensors = {f"model.layers.{n}.{'x' * 200}": ("U8", [1], b"\1") for n in range(2000)}
    checkpoint, store = await opened(files.checkpoint(tensors))
    assert len(checkpoint.tensors) == 2000
    assert len([request for request in store.requests if request.name == "model.safetensors"]) == 2


async def test_the_only_safetensors_file_may_have_any_name() -> None:
    folder = files.checkpoint(files.model())
    folder["gemma.safetensors"] = folder.pop("model.safetensors")
    checkpoint, _ = await opened(folder)
    assert checkpoint.shards[0].name == "gemma.safetensors"


async def test_the_revision_changes_with_any_file_that_is_read() -> None:
    first, store = await opened(files.checkpoint(files.model(), shards=2))
    same = await open_checkpoint_async(store.location, store=store)
    store.replace("model-00002-of-00002.safetensors", store.files["model-00002-of-00002.safetensors"])
    other = await open_checkpoint_async(store.location, store=store)
    assert first.revision == same.revision != other.revision
    assert len(first.revision) == 16


async def test_files_beside_the_weights_can_be_read() -> None:
    checkpoint, _ = await opened({**files.checkpoint(files.model()), "tokenizer.json": b"{}"})
    assert await checkpoint.read_file("tokenizer.json") == b"{}"
    with pytest.raises(ObjectNotFound, match=r"gs://memory/model/chat_template\.jinja"):
        await checkpoint.read_file("chat_template.jinja")


async def test_an_empty_folder() -> None:
    await refused({}, ObjectNotFound, "empty or does not exist")


async def test_no_config() -> None:
    await refused({"model.safetensors": b""}, NoConfig, r"no config\.json")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
async def test_a_config_that_is_no_json_object(text: bytes) -> None:
    await refused({**files.checkpoint(files.model()), "config.json": text}, NoConfig, r"config\.json")


async def test_pickled_weights_are_refused_with_the_way_out() -> None:
    await refused({"config.json": b"{}", "pytorch_model.bin": b"?"}, NoWeights, "pytorch_model.bin.*safe_serialization")


async def test_an_adapter_alone_is_refused_with_the_way_out() -> None:
    await refused({"config.json": b"{}", "adapter_model.safetensors": b"?"}, NoWeights, "merge")


async def test_several_files_without_an_index() -> None:
    await refused({"config.json": b"{}", "a.safetensors": b"", "b.safetensors": b""}, NoWeights, "upload the index")


async def test_no_weights_at_all() -> None:
    await refused({"config.json": b"{}"}, NoWeights, "no safetensors files")


async def test_a_shard_that_is_not_there() -> None:
    folder = files.checkpoint(files.model(), shards=2)
    del folder["model-00002-of-00002.safetensors"]
    await refused(folder, ShardMissing, "model-00002-of-00002")


async def test_a_shard_that_was_cut() -> None:
    folder = files.checkpoint(files.model(), shards=2)
    folder["model-00002-of-00002.safetensors"] = folder["model-00002-of-00002.safetensors"][:-1]
    await refused(folder, HeaderError, "model-00002-of-00002.*truncated")


async def test_a_tensor_in_another_shard_than_the_index_says() -> None:
    folder = files.checkpoint(files.model(), shards=2)
    index = json.loads(folder[INDEX])
    name = next(iter(index["weight_map"]))
    index["weight_map"][name] = "model-00002-of-00002.safetensors"
    await refused({**folder, INDEX: json.dumps(index).encode()}, IndexMismatch, name)


async def test_a_tensor_that_the_index_does_not_name() -> None:
    folder = files.checkpoint(files.model(), shards=2)
    index = json.loads(folder[INDEX])
    del index["weight_map"]["model.norm.weight"]
    await refused({**folder, INDEX: json.dumps(index).encode()}, IndexMismatch, r"model\.norm\.weight")


async def test_a_tensor_in_two_shards() -> None:
    folder = files.checkpoint(files.model(), shards=2)
    twin = files.safetensors(dict(list(files.model().items())[:1]))
    index = json.loads(folder[INDEX])
    index["weight_map"]["other"] = "twin.safetensors"
    await refused({**folder, INDEX: json.dumps(index).encode(), "twin.safetensors": twin}, IndexMismatch, "lies in")


@pytest.mark.parametrize(
    "index", [b"{", b"[]", b"{}", b'{"weight_map": {}}', b'{"weight_map": []}', b'{"weight_map": {"a":"b","a":"c"}}']
)
async def test_an_index_that_says_nothing(index: bytes) -> None:
    await refused({**files.checkpoint(files.model(), shards=2), INDEX: index}, IndexMismatch, INDEX)


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/model.safetensors", "a/../../b.safetensors", "gs://other/a.safetensors",
     "a//b.safetensors",
     "./a.safetensors", "..\\a.safetensors", "a\0.safetensors", "a\r\nHost: b.safetensors", "\ud800.safetensors",
     "x" * 1025 + ".safetensors", "~/../a.safetensors", "https://other/a.safetensors", "a/..", "", None, 3, ["a"]],
)  # fmt: skip
async def test_names_that_leave_the_folder(name: Any) -> None:
    index = json.dumps({"weight_map": {"w": name}}).encode()
    await refused({**files.checkpoint(files.model()), INDEX: index}, UnsafeName, "tensor 'w'")


async def test_an_index_that_names_itself() -> None:
    index = json.dumps({"weight_map": {"w": INDEX}}).encode()
    await refused({**files.checkpoint(files.model()), INDEX: index}, NoWeights, "convert")


async def test_an_index_that_names_pickled_shards() -> None:
    index = json.dumps({"weight_map": {"w": "pytorch_model.bin"}}).encode()
    await refused({**files.checkpoint(files.model()), INDEX: index}, NoWeights, "convert the model to safetensors")


async def test_a_shard_in_a_folder_below_is_found() -> None:
    folder = files.checkpoint(files.model(), shards=2)
    index = json.loads(folder[INDEX])
    deep = {f"part/{name}" if "-of-" in name else name: data for name, data in folder.items()}
    weight_map = {name: f"part/{file}" for name, file in index["weight_map"].items()}
    checkpoint, _ = await opened({**deep, INDEX: json.dumps({"weight_map": weight_map}).encode()})
    assert len(checkpoint.tensors) == len(files.model())


async def test_a_file_of_gigabytes_beside_the_weights_is_not_read() -> None:
    class Huge(MemoryStore):
        def _pin(self, name: str) -> Pin:
            return Pin(name, 1 << 34, generation="1") if name == "tokenizer.json" else super()._pin(name)

    store = Huge({**files.checkpoint(files.model()), "tokenizer.json": b"{}"})
    checkpoint = await open_checkpoint_async(store.location, store=store)
    with pytest.raises(BadResponse, match="too large"):
        await checkpoint.read_file("tokenizer.json")
    assert "tokenizer.json" not in {request.name for request in store.requests}
