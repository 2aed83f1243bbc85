"""`load` without a server: a real checkpoint from a real bucket becomes a model that answers, or a named error."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from coldstream.demo.bucket import LocalBucket
from coldstream.engine.request import Request, SamplingParams, TokenEvent
from coldstream.engine.tokenizer import process
from coldstream.errors import ChecksumMismatch, StoreError
from coldstream.loading.context import LoadContext
from coldstream.loading.loaded_model import LoadedModel
from coldstream.loading.loader import load
from coldstream.settings import EngineSettings, ModelSettings, Settings
from tests.support import processes
from tests.support.loads import TEXT_2, Once, Wait, apart, said, write
from tests.support.proxy import ChaosProxy, Trouble
from tests.support.tiny import Tiny
from tests.support.tiny_vision import gemma3_vision

SETTINGS = Settings({}, {}, engine=EngineSettings(kv_bytes=4_000_000, threads=1))


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return gemma3_vision()


@pytest.fixture(scope="module")
def bucket(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBucket]:
    folder = tmp_path_factory.mktemp("apart")
    write(folder, tiny, apart)
    with LocalBucket() as local:
        local.add("models", "apart", folder)
        yield local


class Answer:
    """What became of one request."""

    def __init__(self, model: LoadedModel, prompt: str) -> None:
        self.events: list[TokenEvent] = []
        self.ended = threading.Event()
        ids = (2, *model.tokenizer.encode(prompt, add_special_tokens=False))
        model.engine.submit(Request(prompt, ids, SamplingParams(max_tokens=6)), self._deliver)

    def _deliver(self, event: TokenEvent) -> None:
        self.events.append(event)
        if event.finish_reason is not None:
            self.ended.set()

    @property
    def last(self) -> TokenEvent:
        assert self.ended.wait(60)
        return self.events[-1]

    @property
    def text(self) -> str:
        assert self.last.error is None
        return "".join(event.text for event in self.events)


Loading = tuple["asyncio.Task[LoadedModel]", "asyncio.Future[LoadedModel]", LoadContext]


@pytest.fixture
def begin(bucket: LocalBucket, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A load through a network that meets troubles: its task, its model once that takes requests, and its context."""

    @asynccontextmanager
    async def begun(trouble: Any, precision: str = "float32") -> AsyncIterator[Loading]:
        model = ModelSettings("m", "gs://models/apart", precision=precision)
        with ChaosProxy(bucket.url, trouble) as proxy:
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
            accepting = asyncio.get_running_loop().create_future()
            context = LoadContext.of_one("m", SETTINGS)
            task = asyncio.create_task(load(model, SETTINGS, context=context, accepting=accepting.set_result))
            try:
                yield task, accepting, context
            finally:
                trouble.now.set()
                await asyncio.wait({task})
                if accepting.done():
                    accepting.result().close()
                context.workers.close()

    return begun


def threads_left(model: str = "m") -> list[str]:
    """The model's threads that do not end."""
    mine = [thread for thread in threading.enumerate() if thread.name.endswith((f" {model}", f"-{model}"))]
    for thread in mine:
        thread.join(10)
    return [thread.name for thread in mine if thread.is_alive()]


def children() -> list[int]:
    """The tokenizers' processes that do not end."""
    mine = [pid for pid in processes.children(os.getpid()) if process.__name__ in processes.command(pid)]
    return processes.left(mine)


async def test_a_model_is_loaded_without_a_server_and_answers_as_transformers_does(tiny: Tiny, tmp_path: Path) -> None:
    write(tmp_path, tiny, apart)
    model = await load(ModelSettings("m", str(tmp_path), precision="float32"), SETTINGS)
    with closing(model):
        assert (model.uri, model.plan.precision, model.images is not None) == (str(tmp_path), "float32", True)
        assert Answer(model, "hello").text == said(tiny, "hello", 6)
    assert not threads_left()
    assert not children()


async def test_a_uri_is_enough(tiny: Tiny, tmp_path: Path) -> None:
    write(tmp_path, tiny, apart)
    with closing(await load(str(tmp_path), SETTINGS)) as model:
        assert Answer(model, "hello").last.finish_reason in ("stop", "length")


@pytest.mark.parametrize("precision", ["float32", "int8"])
async def test_it_takes_requests_before_its_bytes_are_there_and_no_token_leaves_before_they_are_verified(
    begin: Callable[..., Any], tiny: Tiny, precision: str
) -> None:
    wait = Wait(TEXT_2)
    async with begin(wait, precision) as (task, accepting, context):
        answer = Answer(await accepting, "hello")
        assert context.state.phase == "streaming"
        assert not answer.events
        wait.now.set()
        model = await task
        assert model is await accepting
        assert context.state.phase == "ready"
        if precision == "float32":
            assert await asyncio.to_thread(lambda: answer.text) == said(tiny, "hello", 6)


async def test_a_request_that_was_computed_with_damaged_bytes_is_computed_again(
    begin: Callable[..., Any], tiny: Tiny
) -> None:
    once = Once(TEXT_2)
    async with begin(once) as (task, accepting, _):
        model = await accepting
        answer = Answer(model, "hello")
        async with asyncio.timeout(60):
            while not model.engine.stats().completion_tokens or model.engine.stats().running:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert not answer.events
        once.now.set()
        await task
        assert await asyncio.to_thread(lambda: answer.text) == said(tiny, "hello", 6)


async def test_what_fails_behind_the_engine_ends_the_load_and_its_requests_by_name(begin: Callable[..., Any]) -> None:
    damaged = Wait(TEXT_2, then=Trouble("corrupt", at=100))
    async with begin(damaged) as (task, accepting, context):
        answer = Answer(await accepting, "hello")
        damaged.now.set()
        with pytest.raises(ChecksumMismatch, match=TEXT_2) as caught:
            await task
        assert context.state.error is caught.value
        assert answer.last.error is caught.value
        assert Answer(await accepting, "later").last.error is caught.value


async def test_what_fails_before_the_engine_leaves_no_thread_and_no_process_behind(
    bucket: LocalBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.url)
    with pytest.raises(StoreError, match="gs://models/nothing"):
        await load("gs://models/nothing", SETTINGS)
    assert not threads_left("gs://models/nothing")
    assert not children()


async def test_a_load_that_is_cancelled_ends_its_requests_and_leaves_nothing_behind(begin: Callable[..., Any]) -> None:
    async with begin(Wait(TEXT_2)) as (task, accepting, context):
        answer = Answer(await accepting, "hello")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert context.state.phase == "failed"
        assert "stopped" in str(context.state.error)
        assert "stopped" in str(answer.last.error)
    context.threads.join(30)
    assert not threads_left()
    assert not children()


async def test_a_load_that_is_cancelled_while_its_tokenizer_is_built_does_not_start_its_process_again(
    tiny: Tiny, tmp_path: Path
) -> None:
    write(tmp_path, tiny, apart)
    for _ in range(3):
        context = LoadContext.of_one("m", SETTINGS)
        task = asyncio.create_task(load(ModelSettings("m", str(tmp_path)), SETTINGS, context=context))
        async with asyncio.timeout(60):
            while not any(span.name == "tokenizer files" for span in context.timeline.spans()):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait({task})
        context.workers.close()
        assert not threads_left()
        assert not children()
