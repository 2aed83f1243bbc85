"""One of the server's models, from the moment its URI is known: a `ServedModel` (serve/state.py) around its load."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING

from coldstream.errors import ColdstreamError, ModelError
from coldstream.host.threads import loader_name
from coldstream.loading.context import LoadContext
from coldstream.loading.first_request import WatchedEngine
from coldstream.loading.loader import load
from coldstream.loading.state import LoadState
from coldstream.loading.threads import LoaderThreads
from coldstream.loading.torch_import import TorchImport
from coldstream.loading.turns import Turns
from coldstream.settings import ModelSettings, Settings
from coldstream.timeline import Timeline
from coldstream.workers.workers import Workers

if TYPE_CHECKING:
    from coldstream.engine.request import SamplingParams
    from coldstream.engine.tokenizer.tokenizer import Tokenizer
    from coldstream.engine.vision.prompt import ImagePrompt
    from coldstream.engines.vllm.images import MarkedImages
    from coldstream.loading.loaded_model import LoadedModel


class StartingModel:
    """`load` says how far it is; `number` tells it from the others."""

    def __init__(self, model: ModelSettings, settings: Settings, timeline: Timeline, *, number: int) -> None:
        self.name, self.uri = model.name, model.uri
        self.created = int(time.time())
        self.load = LoadState(timeline)
        self.kernel_name = loader_name(number)
        self._model, self._settings, self._timeline = model, settings, timeline
        self._threads: LoaderThreads | None = None
        self._accepting: Future[LoadedModel] = Future()
        self._watched: WatchedEngine | None = None
        self._has_failed = False

    def begin(self) -> None:
        """Make the load's threads; not on a thread that may have given way to another model."""
        self._threads = LoaderThreads(self.name, kernel_name=self.kernel_name)

    async def run(self, torch: TorchImport, turns: Turns, workers: Workers) -> None:
        """Load it. What that fails with is `load.error`, and raised to those who wait for the model."""
        assert self._threads is not None
        context = LoadContext(self.load, self._threads, torch, turns, self._timeline, workers)
        try:
            await load(self._model, self._settings, context=context, accepting=self._accept)
        except ColdstreamError as exc:
            self._has_failed = True
            self._refuse(exc)

    def end(self) -> None:
        """Stop what still runs, when `run` has returned. Nothing of this model may be used afterwards."""
        self._refuse(ModelError(f"{self.uri}: the server is shutting down"))
        if self._threads is not None:
            self._threads.end()
            if not self._has_failed:  # its thread may have seconds of `import torch` before it, and nothing to save
                self._threads.join()
        if self._accepting.exception() is None:
            self._accepting.result().close()

    # -- what others ask --

    @property
    def is_ready(self) -> bool:
        """Whether every byte is there, verified, and the engine runs."""
        return self.load.is_ready

    def retry_after(self) -> float:
        """Seconds after which a refused client should come back."""
        return max(self.load.seconds_left, 1.0)

    async def ready(self) -> None:
        """Return when requests can be submitted.

        Raises:
            ColdstreamError: what the load failed with.
        """
        self.load.want()
        await asyncio.shield(asyncio.wrap_future(self._accepting))
        if self.load.error is not None:  # it failed after it had taken requests
            raise self.load.error

    @property
    def revision(self) -> str:
        """Changes with the checkpoint's objects. Only after `ready()`."""
        return self._accepting.result().revision

    @property
    def tokenizer(self) -> Tokenizer:
        """Only after `ready()`."""
        return self._accepting.result().tokenizer

    @property
    def engine(self) -> WatchedEngine:
        """Only after `ready()`."""
        assert self._watched is not None
        return self._watched

    @property
    def max_context(self) -> int:
        """Prompt and answer together, in tokens. Only after `ready()`."""
        return self._accepting.result().max_context

    @property
    def images(self) -> ImagePrompt | MarkedImages | None:
        """How images stand in its prompts; None where it takes text only. Only after `ready()`."""
        return self._accepting.result().images

    @property
    def defaults(self) -> SamplingParams:
        """What the checkpoint's generation_config asks for. Only after `ready()`."""
        from coldstream.engine.sampling import from_generation_config

        return from_generation_config(self.tokenizer.generation_defaults)

    def _accept(self, loaded: LoadedModel) -> None:
        self._watched = WatchedEngine(loaded.engine, self._timeline)
        self._accepting.set_result(loaded)

    def _refuse(self, error: ColdstreamError) -> None:
        """Let those who wait for the model get the error, unless its engine is there to say so."""
        if not self._accepting.done():
            self._accepting.set_exception(error)
