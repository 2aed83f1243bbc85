"""Several models' start: one after the other, a failed one by name, and what loads gives way to what answers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coldstream.demo.bucket import LocalBucket
from coldstream.errors import ModelError, StoreError
from coldstream.serve.startup import Startup
from coldstream.settings import EngineSettings, ModelSettings, Settings
from coldstream.timeline import Timeline
from tests.support.loads import TEXT_2, Wait, apart, write
from tests.support.proxy import ChaosProxy
from tests.support.tiny_vision import gemma3_vision


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    write(path, gemma3_vision(), apart)
    return path


@pytest.fixture(scope="module")
def bucket(folder: Path) -> Iterator[LocalBucket]:
    with LocalBucket() as local:
        local.add("models", "m", folder)
        yield local


@pytest.fixture
def start() -> Iterator[Callable[..., Startup]]:
    started: list[Startup] = []

    def begin(**uris: str) -> Startup:
        models = {name: ModelSettings(name, uri, precision="float32") for name, uri in uris.items()}
        settings = Settings(models, {}, engine=EngineSettings(kv_bytes=4_000_000, threads=1))
        started.append(Startup(settings, Timeline(), on_change=lambda: None))
        started[-1].begin()
        return started[-1]

    yield begin
    for startup in started:
        startup.end()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  it is decided on other threads
            await asyncio.sleep(0.01)


def niceness(name: str) -> set[int]:
    """Of the threads of this kernel or Python name."""
    python = {thread.native_id for thread in threading.enumerate() if thread.name == name}
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # the thread ended meanwhile
            if int(task.name) in python or (task / "comm").read_text().strip() == name:
                found.add(os.getpriority(os.PRIO_PROCESS, int(task.name)))
    return found


async def test_a_failed_model_is_refused_by_name_and_the_other_one_is_ready(
    start: Callable[..., Startup], folder: Path, tmp_path: Path
) -> None:
    startup = start(gone=str(tmp_path / "nothing"), here=str(folder))
    with pytest.raises(StoreError, match="nothing"):
        await startup.models["gone"].ready()
    await startup.models["here"].ready()
    await until(lambda: startup.status == "degraded")
    assert [type(error) for error in startup.errors()] == [type(startup.models["gone"].load.error)]
    assert startup.state()["models"]["here"]["phase"] == "ready"


async def test_what_loads_gives_way_to_what_answers_and_its_engine_does_not_when_it_answers_itself(
    start: Callable[..., Startup], folder: Path, bucket: LocalBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait, usual = Wait(TEXT_2), os.getpriority(os.PRIO_PROCESS, 0)
    with ChaosProxy(bucket.url, wait) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        try:
            startup = start(here=str(folder), late="gs://models/m")
            await until(lambda: startup.models["here"].is_ready)
            await startup.models["late"].ready()
            await until(lambda: niceness("loader") == {19})
            wait.now.set()
            await until(lambda: startup.status == "ready")
        finally:
            wait.now.set()
        assert niceness("coldstream-here") == niceness("coldstream-late") == {usual}


async def test_an_end_in_the_middle_of_a_load_is_told_to_those_who_wait_and_leaves_no_thread(
    start: Callable[..., Startup], bucket: LocalBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = Wait(TEXT_2)
    with ChaosProxy(bucket.url, wait) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        startup = start(m="gs://models/m")
        await until(lambda: startup.state()["phase"] == "streaming")
        waiting = asyncio.create_task(startup.models["m"].ready())
        ending = asyncio.create_task(asyncio.to_thread(startup.end))
        await until(lambda: startup.status == "failed")
        wait.now.set()
        await ending
        with pytest.raises(ModelError, match="gs://models/m"):
            await waiting
    assert not [thread for thread in threading.enumerate() if thread.name.endswith((" m", "-m"))]
