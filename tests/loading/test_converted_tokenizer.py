"""A load reads the converted form in place of tokenizer.json where it lies beside it and was made of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from coldstream.demo.bucket import LocalBucket
from coldstream.engine.tokenizer import process
from coldstream.loading.context import LoadContext
from coldstream.loading.converted_tokenizer import convert
from coldstream.loading.loaded_model import LoadedModel
from coldstream.loading.loader import load
from coldstream.settings import EngineSettings, ModelSettings, Settings
from coldstream.weights.checkpoint.file_names import CONVERTED, TOKENIZER
from tests.support import processes
from tests.support.loads import apart, write
from tests.support.proxy import ChaosProxy
from tests.support.tiny import Tiny
from tests.support.tiny_vision import gemma3_vision

SETTINGS = Settings({}, {}, engine=EngineSettings(kv_bytes=4_000_000, threads=1))
LONG = "hello " * 2000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Tiny = gemma3_vision()
    path = tmp_path_factory.mktemp("converted")
    write(path, made, apart)
    files = {name: (path / name).read_bytes() for name in TOKENIZER if (path / name).exists()}
    (path / CONVERTED).write_bytes(convert(files))
    return path


@pytest.fixture(scope="module")
def bucket(folder: Path) -> Iterator[LocalBucket]:
    with LocalBucket() as local:
        local.add("models", "m", folder)
        yield local


class Reads:
    """No trouble; which objects' bytes were asked for."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __call__(self, path: str, span: tuple[int, int] | None) -> None:
        if span is not None or "alt=media" in path or not path.startswith("/storage"):
            self.names.add(path.partition("?")[0].rpartition("/")[2].rpartition("%2F")[2])


def children() -> list[int]:
    mine = processes.children(os.getpid())
    return [pid for pid in mine if process.__name__ in processes.command(pid) or "converted" in processes.command(pid)]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def ids(model: LoadedModel) -> list[list[int]]:
    return [model.tokenizer.encode(text) for text in ("hello", "a <eos> b", LONG)]


async def test_tokenizer_json_is_not_read_and_its_process_starts_with_the_first_long_text(
    bucket: LocalBucket, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, before = Reads(), children()
    with ChaosProxy(bucket.url, reads) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        with closing(await load(ModelSettings("m", "gs://models/m", precision="float32"), SETTINGS)) as model:
            assert CONVERTED in reads.names
            assert "tokenizer.json" not in reads.names
            assert model.tokenizer.encode("hello")
            assert children() == before
            found, special = ids(model), model.tokenizer.special_tokens
            assert len(children()) == len(before) + 1
    assert processes.left([pid for pid in children() if pid not in before]) == []
    for name, data in files_of(folder).items():
        if name != CONVERTED:
            bucket.put("models", f"plain/{name}", data)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.url)
    with closing(await load(ModelSettings("m", "gs://models/plain", precision="float32"), SETTINGS)) as model:
        assert ids(model) == found
        assert model.tokenizer.special_tokens == special


@pytest.mark.parametrize("what", ["tokenizer.json", "tokenizer_config.json", CONVERTED])
async def test_what_does_not_fit_is_said_and_tokenizer_json_is_read(folder: Path, tmp_path: Path, what: str) -> None:
    for name, data in files_of(folder).items():
        (tmp_path / name).write_bytes(data + (b"\n" if name == what else b""))
    context = LoadContext.of_one("m", SETTINGS)
    model = await load(ModelSettings("m", str(tmp_path), precision="float32"), SETTINGS, context=context)
    with closing(model):
        assert model.tokenizer.encode("hello")
        warning = next(text for text in context.state.warnings if "converted tokenizer" in text)
        assert warning.startswith(str(tmp_path))
        assert warning.endswith("tokenizer.json is read instead")
    context.workers.close()
