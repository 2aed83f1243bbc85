"""Text is answered while the vision tower is still on the way, from a real bucket through a network that misbehaves."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from coldstream.demo.bucket import LocalBucket
from coldstream.engine.stats import Stats
from coldstream.serve.startup import Startup
from coldstream.settings import EngineSettings, ModelSettings, Settings, TaskSettings
from coldstream.timeline import Timeline
from tests.engine.vision.test_encoder import backend
from tests.serve.test_images_start import expected, png
from tests.support.loads import TEXT_2, TOWER, Once, Wait, apart, mixed, said, tower_start, write
from tests.support.proxy import ChaosProxy, Trouble
from tests.support.tiny import Tiny
from tests.support.tiny_vision import gemma3_vision

ASK = {"type": "text", "prompt": "hello", "max_tokens": 6}
LOOK = {"type": "look", "prompt": "what is it?", "max_tokens": 6, "image": base64.b64encode(png(1)).decode()}


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return gemma3_vision()


@pytest.fixture(scope="module")
def bucket(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBucket]:
    with LocalBucket() as local:
        for layout in (apart, mixed):
            folder = tmp_path_factory.mktemp(layout.__name__)
            write(folder, tiny, layout)
            local.add("models", layout.__name__, folder)
        yield local


class Start:
    """A server over a model that is on its way."""

    def __init__(self, startup: Startup, served: Any) -> None:
        self.startup, self.client = startup, served.client

    @property
    def model(self) -> dict[str, Any]:
        return self.startup.state()["models"]["m"]

    def ask(self, body: dict[str, Any]) -> asyncio.Task[httpx2.Response]:
        return asyncio.create_task(self.client.post("/generate", json=body, timeout=60))

    @property
    def stats(self) -> Stats:
        return self.startup.models["m"].engine.stats()

    async def computed(self, held: int) -> None:
        """Everything that was asked is answered, and `held` answers are held back."""
        await self.startup.models["m"].ready()
        await self.until(lambda: bool(self.stats.completion_tokens) and not self.stats.running)
        assert self.stats.waiting == held

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110  it is decided on other threads
                await asyncio.sleep(0.01)


@pytest.fixture
def start(bucket: LocalBucket, serve: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    @asynccontextmanager
    async def begin(*troubles: Any, layout: str = "apart", precision: str = "float32") -> AsyncIterator[Start]:
        settings = Settings(
            {"m": ModelSettings("m", f"gs://models/{layout}", precision=precision)},
            {"look": TaskSettings("look", "m", images=1), "text": TaskSettings("text", "m")},
            engine=EngineSettings(kv_bytes=4_000_000, threads=1),
        )

        def meets(path: str, span: tuple[int, int] | None) -> Trouble | None:
            return next((met for trouble in troubles if (met := trouble(path, span)) is not None), None)

        with ChaosProxy(bucket.url, meets) as proxy:
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
            startup = Startup(settings, Timeline(), on_change=lambda: None)
            startup.begin()
            try:
                yield Start(startup, await serve(startup.models, settings))
            finally:
                for one in troubles:
                    one.now.set()
                await asyncio.to_thread(startup.end)

    return begin


@pytest.mark.parametrize("precision", ["float32", "int8"])
async def test_text_is_answered_while_the_tower_lands_and_an_image_once_it_is_there(
    start: Any, tiny: Tiny, precision: str
) -> None:
    tower = Wait(TOWER)
    async with start(tower, precision=precision) as begun:
        image, text = begun.ask(LOOK), begun.ask(ASK)
        answer = await text
        assert answer.status_code == 200, answer.text
        if precision == "float32":
            assert answer.json() == said(tiny, "hello", 6)
        assert not tower.now.is_set()
        assert begun.model["phase"] == "streaming"
        assert not image.done()
        tower.now.set()
        answer = await image
        assert answer.status_code == 200, answer.text
        if precision == "float32":
            assert answer.json() == backend().decode(expected(tiny, 1, 6), skip_special_tokens=True)
        await begun.until(lambda: begun.model["phase"] == "ready")


async def test_text_waits_for_a_file_that_it_shares_with_the_tower(start: Any, tiny: Tiny, bucket: LocalBucket) -> None:
    """All of its tensors are there, but the file's checksum is not known before the tower's bytes are there too."""
    rest = Wait(TOWER, start=tower_start(bucket.folder / "objects" / "models" / "mixed" / TOWER))
    async with start(rest, layout="mixed") as begun:
        text = begun.ask(ASK)
        await begun.computed(held=1)
        assert not text.done()
        rest.now.set()
        assert (await text).json() == said(tiny, "hello", 6)


async def test_nothing_is_answered_from_a_text_file_that_is_damaged(start: Any) -> None:
    """Damaged on the way, twice, while the tower is whole: text and image hear of it, with the file's name."""
    damaged = Wait(TEXT_2, then=Trouble("corrupt", at=100))
    damaged.now.set()
    async with start(damaged) as begun:
        for answer in await asyncio.gather(begun.ask(ASK), begun.ask(LOOK)):
            assert answer.status_code >= 500
            assert TEXT_2 in answer.text
        assert begun.model["phase"] == "failed"


@pytest.mark.parametrize("precision", ["float32", "int8"])
async def test_text_of_damaged_bytes_is_computed_again_before_it_leaves(start: Any, tiny: Tiny, precision: str) -> None:
    once, tower = Once(TEXT_2), Wait(TOWER)
    async with start(once, tower, precision=precision) as begun:
        text = begun.ask(ASK)
        await begun.computed(held=1)
        first = begun.stats.prompt_tokens
        once.now.set()
        answer = await text
        assert begun.stats.prompt_tokens == 2 * first
        assert not tower.now.is_set()
        if precision == "float32":
            assert answer.json() == said(tiny, "hello", 6)
        tower.now.set()
        await begun.until(lambda: begun.model["phase"] == "ready")
        assert (await begun.ask(ASK)).json() == answer.json()


async def test_an_image_that_a_damaged_tower_saw_is_looked_at_again_before_its_answer_leaves(
    start: Any, tiny: Tiny
) -> None:
    once = Once(TOWER)
    async with start(once) as begun:
        image = begun.ask(LOOK)
        await begun.computed(held=1)
        first = begun.stats.prompt_tokens
        assert (await begun.ask(ASK)).json() == said(tiny, "hello", 6)
        once.now.set()
        assert (await image).json() == backend().decode(expected(tiny, 1, 6), skip_special_tokens=True)
        assert begun.stats.prompt_tokens > 2 * first


async def test_a_damaged_tower_fails_the_model_by_name(start: Any, tiny: Tiny) -> None:
    """Text that was answered before rests on verified bytes; afterwards nothing is answered, and all hear why."""
    tower = Wait(TOWER, then=Trouble("corrupt", at=100))
    async with start(tower) as begun:
        image = begun.ask(LOOK)
        assert (await begun.ask(ASK)).json() == said(tiny, "hello", 6)
        tower.now.set()
        answer = await image
        assert answer.status_code >= 500
        assert TOWER in answer.text
        await begun.until(lambda: begun.model["phase"] == "failed")
        assert TOWER in begun.model["error"]["message"]
        later = await begun.ask(ASK)
        assert later.status_code >= 500
        assert TOWER in later.text
