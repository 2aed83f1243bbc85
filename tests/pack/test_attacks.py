"""Copies made to be believed: none is used but what was made of the source, and none is an error of the model's."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coldstream.errors import ChecksumMismatch, CopyRefused
from coldstream.loading.packed_copy import choose_copy
from coldstream.loading.run_plan import RunPlan
from coldstream.settings import ModelSettings
from coldstream.weights.packed.manifest import parse_manifest
from coldstream.weights.packed.opening import WithCopy
from coldstream.weights.transfer.checksum import crc32c
from coldstream.weights.transfer.stream import stream
from tests.support import packs, tiny
from tests.support.fault_stores import MemoryStore

PLAN = RunPlan("native", "", "cpu", "", "int8", "", 0, converts=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """A model's files, and those of its copy."""
    folder = packs.write(tmp_path_factory.mktemp("model"), tiny.llama())
    packs.packed(folder)
    return packs.files_of(folder), packs.files_of(folder / "packed")


def tried(found: WithCopy, packed: str = "auto") -> str | None:
    """Why the copy is not used; None: it is."""
    copy, why_not = choose_copy(found, PLAN, ModelSettings("m", "gs://memory/model", packed=packed))
    assert copy is None or why_not is None
    return why_not if copy is None else None


def with_manifest(copy: dict[str, bytes], change: Callable[[dict[str, Any]], object]) -> dict[str, bytes]:
    value = json.loads(copy[packs.MANIFEST])
    change(value)
    return copy | {packs.MANIFEST: json.dumps(value).encode()}


def renamed(to: str) -> Callable[[dict[str, Any]], object]:
    def change(value: dict[str, Any]) -> None:
        value["files"][to] = value["files"].pop(packs.TEXT)

    return change


def header(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    """Of the file, in the manifest."""

    def changed(value: dict[str, Any]) -> None:
        text = value["files"][packs.TEXT]["header"]
        table = json.loads(text)
        change(table)
        value["files"][packs.TEXT]["header"] = json.dumps(table, separators=(",", ":")).ljust(len(text))

    return changed


def reshaped(table: dict[str, Any]) -> None:
    entry = table["layers.0.down.int8"]
    entry["shape"] = entry["shape"][::-1]


def retyped(table: dict[str, Any]) -> None:
    table["layers.0.down.scales"]["dtype"] = "I32"


LIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no file": (lambda value: value["files"].clear(), "names 0 files"),
    "a size": (lambda value: value["files"][packs.TEXT].update(size=10), "is not what the manifest names"),
    "a size beyond all": (lambda value: value["files"][packs.TEXT].update(size=2**70), "whole number"),
    "a checksum": (
        lambda value: value["files"][packs.TEXT].update(crc32c="00000000"),
        "is not what the manifest names",
    ),
    "no checksum": (lambda value: value["files"][packs.TEXT].pop("crc32c"), "no crc32c"),
    "a small file that is not there": (
        lambda value: value["small"].update({"x": {"size": 1, "crc32c": "00000000"}}),
        "x: the manifest names it",
    ),
    "a small file above": (
        lambda value: value["small"].update({"../x": {"size": 1, "crc32c": "00000000"}}),
        "not the name of a file",
    ),
    "a name above": (renamed("../model.safetensors"), "not the name of a file"),
    "a name in another bucket": (renamed("gs://other/model.safetensors"), "not the name of a file"),
    "a name below": (renamed("a/model.safetensors"), "not the name of a file"),
    "no safetensors": (renamed("config.json"), "name of a file of tensors"),
    "another file": (renamed("other.safetensors"), "is not there"),
    "another form": (lambda value: value.update(form="cpu-int8-999"), "of form cpu-int8-999"),
    "a form that is none": (lambda value: value.update(form="../x"), "no name of one"),
    "a format to come": (lambda value: value.update(coldstream_packed=2), "this version reads 1"),
    "shapes": (header(reshaped), "has to be"),
    "dtypes": (header(retyped), "has to be"),
    "a tensor less": (header(lambda table: table.pop("model.norm.weight")), "gap|end here|lacks"),
    "a tensor renamed": (
        header(lambda table: table.update(other=table.pop("layers.0.down.int8"))),
        "lacks layers.0.down.int8",
    ),
    "an overlap": (header(lambda table: table["layers.0.down.int8"].update(data_offsets=[0, 1])), "takes|overlap|gap"),
    "a source that gained a file": (
        lambda value: value["source"]["objects"].update({"x.safetensors": {"size": 1}}),
        "x.safetensors is gone",
    ),
    "a source without one": (lambda value: value["source"]["objects"].pop("config.json"), "config.json has come"),
    "another source": (
        lambda value: value["source"]["objects"]["model.safetensors"].update(crc32c="12345678"),
        "model.safetensors was replaced",
    ),
    "a source by size alone": (
        lambda value: value["source"]["objects"].update({"config.json": {"size": 1}}),
        "config.json was replaced",
    ),
    "other weights": (lambda value: value["source"].update(weights="file"), "weights"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_lies_is_told_and_the_source_is_read(made: Any, lie: str) -> None:
    source, copy = made
    change, told = LIES[lie]
    found = packs.opened(MemoryStore(source), MemoryStore(with_manifest(copy, change)))
    why = tried(found)
    assert why is not None
    assert "the model's own files are streamed" in why
    assert re.search(told, why), why


def test_the_copy_that_all_of_them_are_made_of_is_used(made: Any) -> None:
    source, copy = made
    assert tried(packs.opened(MemoryStore(source), MemoryStore(copy))) is None


@settings(max_examples=150, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), put=st.binary(max_size=6), cut=st.integers(0, 6))
@example(at=0.0, put=b"[" * 6, cut=0)
def test_a_damaged_manifest_is_never_an_error_of_the_model(made: Any, at: float, put: bytes, cut: int) -> None:
    source, copy = made
    text = copy[packs.MANIFEST]
    place = int(at * len(text))
    damaged = copy | {packs.MANIFEST: text[:place] + put + text[place + cut :]}
    found = packs.opened(MemoryStore(source), MemoryStore(damaged))
    if tried(found) is None:  # then it says the same of everything that counts
        was, now = (parse_manifest(files[packs.MANIFEST], uri="m") for files in (copy, damaged))
        assert now.files.keys() == was.files.keys()
        assert all(now.files[name].crc32c == file.crc32c for name, file in was.files.items())


@pytest.mark.parametrize("text", [b"", b"null", b"{", b"[" * 100_000, b'{"a":1,"a":2}', b"{" + b"," * 5_000_000])
def test_what_is_no_manifest_is_refused_by_name(text: bytes) -> None:
    with pytest.raises(CopyRefused, match=r"^uri: "):
        parse_manifest(text, uri="uri")


def test_files_without_their_manifest_are_a_copy_that_was_not_finished(made: Any) -> None:
    source, copy = made
    half = {name: data for name, data in copy.items() if name != packs.MANIFEST}
    found = packs.opened(MemoryStore(source), MemoryStore(half))
    assert (found.copy, found.why_not) == (None, None)
    named = packs.opened(MemoryStore(source), MemoryStore(half), is_named=True)
    assert "no packed copy of form" in (named.why_not or "")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_source_that_was_replaced_is_read_itself(made: Any, name: str) -> None:
    source, copy = made
    store = MemoryStore(source)
    store.replace(name, source[name] + b" " if name == "config.json" else source[name][:-1] + b"\1")
    assert f"{name} was replaced" in (tried(packs.opened(store, MemoryStore(copy))) or "")


def test_a_source_that_was_written_again_as_it_was_is_the_same(made: Any) -> None:
    source, copy = made
    store = MemoryStore(source)
    store.replace("model.safetensors", source["model.safetensors"])
    assert tried(packs.opened(store, MemoryStore(copy))) is None


def test_an_adapter_beside_the_model_is_a_change(made: Any) -> None:
    source, copy = made
    store = MemoryStore(source | {"adapter_model.safetensors": source["model.safetensors"]})
    assert "adapter_model.safetensors has come" in (tried(packs.opened(store, MemoryStore(copy))) or "")


@pytest.mark.parametrize("publishes", [True, False])
def test_a_bit_that_is_flipped_is_told_before_a_token(made: Any, publishes: bool) -> None:
    """At once where the store publishes checksums, and else by the manifest's when the bytes have come."""
    source, copy = made
    data = bytearray(copy[packs.TEXT])
    data[-1] ^= 1
    found = packs.opened(MemoryStore(source), MemoryStore(copy | {packs.TEXT: bytes(data)}, checksums=publishes))
    if publishes:
        assert "is not what the manifest names" in (tried(found) or "")
        return
    assert found.copy is not None

    async def read() -> None:
        assert found.copy is not None
        async for _ in stream(found.copy.arriving):
            pass

    with pytest.raises(ChecksumMismatch):
        asyncio.run(read())


def test_a_file_that_was_cut_short_is_told(made: Any) -> None:
    source, copy = made
    short = MemoryStore(copy | {packs.TEXT: copy[packs.TEXT][:-10]}, checksums=False)
    assert "is not what the manifest names" in (tried(packs.opened(MemoryStore(source), short)) or "")


def test_a_copy_of_another_model_is_none_of_this_one(made: Any, tmp_path: Path) -> None:
    """Also where its manifest claims to be made of this one."""
    source, _ = made
    packs.write(tmp_path, tiny.llama(hidden_size=64))
    packs.packed(tmp_path)
    copy = packs.files_of(tmp_path / "packed")
    assert "was replaced" in (tried(packs.opened(MemoryStore(source), MemoryStore(copy))) or "")
    objects = json.loads(made[1][packs.MANIFEST])["source"]["objects"]
    claimed = with_manifest(copy, lambda value: value["source"].update(objects=objects))
    assert "has to be" in (tried(packs.opened(MemoryStore(source), MemoryStore(claimed))) or "")


def test_what_does_not_run_here_is_told_where_it_was_asked_for() -> None:
    found = WithCopy(None, None)  # type: ignore[arg-type]
    plan = RunPlan("native", "", "cpu", "", "float32", "", 0, converts=False)
    asked = ModelSettings("m", "gs://b/m", packed="gs://b/other")
    assert "float32 on cpu" in (choose_copy(found, plan, asked)[1] or "")
    assert choose_copy(found, plan, ModelSettings("m", "gs://b/m")) == (None, None)


def test_small_files_of_a_copy_are_read_as_the_models_own_where_they_are_asked_for(made: Any) -> None:
    """By name, so that a copy cannot put a chat template or a config in the place of the model's."""
    source, copy = made
    extra = {"tokenizer.converted": b"converted", "chat_template.jinja": b"another template"}
    entries = {name: {"size": len(data), "crc32c": f"{crc32c(memoryview(data)):08x}"} for name, data in extra.items()}
    copy = with_manifest(copy, lambda value: value["small"].update(entries)) | extra
    source = source | {"chat_template.jinja": b"the model's"}
    found = packs.opened(MemoryStore(source), MemoryStore(copy, checksums=False))
    assert found.copy is not None
    checkpoint = found.copy.around(found.checkpoint, ("tokenizer.converted",))
    names = ("chat_template.jinja", "tokenizer.converted")
    assert asyncio.run(checkpoint.read_files(names)) == {names[0]: b"the model's", names[1]: b"converted"}
    assert checkpoint.revision == found.checkpoint.revision
    damaged = packs.opened(MemoryStore(source), MemoryStore(copy | {names[1]: b"convertex"}, checksums=False))
    assert damaged.copy is not None
    with pytest.raises(ChecksumMismatch):
        asyncio.run(damaged.copy.around(damaged.checkpoint, names[1:]).read_files(names))
