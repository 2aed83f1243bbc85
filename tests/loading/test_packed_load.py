"""A model that loads from its packed copy over a network that damages it answers as the model from its source."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coldstream.demo.bucket import LocalBucket
from coldstream.errors import ChecksumMismatch
from coldstream.loading.context import LoadContext
from coldstream.loading.loader import load
from coldstream.pack.pack import pack
from coldstream.settings import EngineSettings, ModelSettings, Settings
from tests.loading.test_loader import Answer
from tests.support import packs
from tests.support.loads import apart, write
from tests.support.proxy import ChaosProxy, Trouble
from tests.support.tiny_vision import gemma3_vision

SETTINGS = Settings({}, {}, engine=EngineSettings(kv_bytes=4_000_000, threads=1))
URI = "gs://models/seeing"
PROMPT = "a b c"


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBucket]:
    folder = tmp_path_factory.mktemp("seeing")
    write(folder, gemma3_vision(), apart)
    with LocalBucket() as local, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", local.url)
        local.add("models", "seeing", folder)
        asyncio.run(pack(URI))
        yield local


async def answered(packed: str = "auto", precision: str = "int8") -> tuple[str, dict[str, Any]]:
    """What the model says, and what `/startup` would say of its load."""
    model = ModelSettings("m", URI, precision=precision, packed=packed)  # type: ignore[arg-type]
    context = LoadContext.of_one("m", SETTINGS)
    try:
        loaded = await load(model, SETTINGS, context=context)
        try:
            return await asyncio.to_thread(lambda: Answer(loaded, PROMPT).text), context.state.as_json()
        finally:
            loaded.close()
    finally:
        context.workers.close()


class Damage:
    """The first reads of the copy's text file are damaged, so many of them."""

    def __init__(self, times: int) -> None:
        self.left, self.damaged = times, 0

    def __call__(self, path: str, span: tuple[int, int] | None) -> Trouble | None:
        if span is None or not path.split("?")[0].endswith(packs.TEXT) or not self.left:
            return None
        self.left -= 1
        self.damaged += 1
        return Trouble("corrupt", at=100)


async def test_the_answers_are_the_same_bit_by_bit(bucket: LocalBucket) -> None:
    from_copy, state = await answered()
    from_source, other = await answered("off")
    assert from_copy == from_source
    assert (state["packed"], state["warnings"]) == (f"{URI}/packed", [])
    assert (other["packed"], other["warnings"]) == (None, [])
    assert state["total_bytes"] < 0.9 * other["total_bytes"]


async def test_a_copy_that_is_damaged_on_the_way_is_fetched_again(
    bucket: LocalBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage = Damage(1)
    with ChaosProxy(bucket.url, damage) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        text, state = await answered()
        from_source, _ = await answered("off")
    assert damage.damaged
    assert state["packed"]
    assert text == from_source


async def test_a_copy_that_arrives_damaged_each_time_ends_the_load_by_name(
    bucket: LocalBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ChaosProxy(bucket.url, Damage(1_000_000)) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        with pytest.raises(ChecksumMismatch, match=packs.TEXT):
            await answered()


async def test_another_precision_reads_the_source(bucket: LocalBucket) -> None:
    _, state = await answered(precision="float32")
    assert (state["packed"], state["warnings"]) == (None, [])
    _, told = await answered(f"{URI}/packed", precision="float32")
    assert "float32 on cpu" in told["warnings"][0]


async def test_a_named_place_without_a_copy_is_told(bucket: LocalBucket, tmp_path: Path) -> None:
    _, state = await answered(str(tmp_path))
    assert state["packed"] is None
    assert "no packed copy of form" in state["warnings"][0]
