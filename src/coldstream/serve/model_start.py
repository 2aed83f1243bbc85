"""One model from its URI to a running engine, in strands that meet where they must.

    stream (event loop)    open -> small files -> tensors into the landing (model_stream.py)
    tokenizer (thread)     tokenizer.json -> tokenizer process
    model (thread)         take tensors from the landing: pack matrices (int8), give others to the decoder -> verified:
                           answers may leave
    torch (thread)         import torch -> decoder without its bytes
    engine (thread)        tokenizer and decoder -> the engine, which takes requests

A request may be submitted as soon as the engine stands; its prefill waits layer by layer for the bytes. Its tokens
leave when every file that holds any of the text model is verified; those of a request with images, when all files are.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING

from coldstream.errors import ColdstreamError, ModelError, OutOfMemory
from coldstream.serve.filling import Filling
from coldstream.serve.firsts import FirstForward, WatchedEngine
from coldstream.serve.landing import Landing
from coldstream.serve.load_state import LoadState
from coldstream.serve.making import TorchImport, stand_up, threads_for
from coldstream.serve.model_stream import ModelStream
from coldstream.serve.order import Order
from coldstream.serve.priority import loader_name, rename_thread
from coldstream.serve.promise import break_all, settle
from coldstream.settings import ModelSettings, Settings
from coldstream.timeline import Timeline

if TYPE_CHECKING:
    from coldstream.engine.engine import Engine
    from coldstream.engine.image_prompt import ImagePrompt
    from coldstream.engine.request import SamplingParams
    from coldstream.engine.tokenizer import Tokenizer
    from coldstream.engine.tokenizer_process import TokenizerProcess
    from coldstream.model.build import Assembly
    from coldstream.model.decoder import Decoder
    from coldstream.model.fallback import FallbackAssembly, FallbackDecoder
    from coldstream.model.vision import Sight

_LONGEST_JOIN = 10.0
"""Seconds to wait for a strand that may be inside `import torch` when the process is asked to end."""


class ModelStart:
    """A `ServedModel` (serve/state.py) from the moment its URI is known."""

    def __init__(
        self,
        model: ModelSettings,
        settings: Settings,
        timeline: Timeline,
        *,
        torch: TorchImport,
        number: int,
        on_change: Callable[[], None],
    ) -> None:
        self.name, self.uri = model.name, model.uri
        self.created = int(time.time())
        self.load = LoadState(timeline)
        self._model, self._settings, self._timeline, self._on_change = model, settings, timeline, on_change
        self.loader = loader_name(number)
        self._torch = torch
        self._landing = Landing()
        self._standing: Future[Assembly | FallbackAssembly] = Future()
        self._filling = Filling(self._landing, self._standing)
        self._decoder: Future[Decoder | FallbackDecoder] = Future()
        self._accepting: Future[None] = Future()
        self._text_verified, self._verified = threading.Event(), threading.Event()
        self._process: TokenizerProcess | None = None
        self._tokenizer: Tokenizer | None = None
        self._tokenizer_built: Future[Tokenizer] = Future()
        self._engine: Engine | None = None
        self._images: ImagePrompt | None = None
        self._watched: WatchedEngine | None = None
        self._stream = ModelStream(
            model,
            settings,
            timeline,
            load=self.load,
            landing=self._landing,
            failed=self._fail,
            text_landed=self._text_landed,
        )
        strands = {
            "tokenizer": self._build_tokenizer,
            "torch": self._stand_up,
            "model": self._build_model,
            "engine": self._start_engine,
        }
        self._threads = tuple(
            threading.Thread(target=self._guarded, args=(kind, work), name=f"{kind} {self.name}", daemon=True)
            for kind, work in strands.items()
        )

    def begin(self) -> None:
        """Start the strands that need no event loop."""
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Stop what still runs. Nothing of this model may be used afterwards."""
        if self._engine is not None:
            self._engine.stop()
        failed = self.load.error is not None
        if self._stream.packing is not None:
            self._stream.packing.stop()
        self._fail(ModelError(f"{self.uri}: the server is shutting down"))
        for thread in self._threads:
            # A model that failed has nothing to save, and its thread may have seconds of `import torch` before it.
            thread.join(0 if failed else _LONGEST_JOIN)
        if self._process is not None:
            self._process.close()

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
        self.load.is_wanted = True
        await asyncio.shield(asyncio.wrap_future(self._accepting))

    @property
    def revision(self) -> str:
        """Changes with the checkpoint's objects."""
        return self._stream.opened.result().revision

    @property
    def tokenizer(self) -> Tokenizer:
        """Only after `ready()`."""
        assert self._tokenizer is not None
        return self._tokenizer

    @property
    def engine(self) -> WatchedEngine:
        """Only after `ready()`."""
        assert self._watched is not None
        return self._watched

    @property
    def max_context(self) -> int:
        """Prompt and answer together, in tokens. Only after `ready()`."""
        assert self._engine is not None
        return self._engine.max_context

    @property
    def images(self) -> ImagePrompt | None:
        """How images stand in its prompts; None where it takes text only. Only after `ready()`."""
        return self._images

    @property
    def defaults(self) -> SamplingParams:
        """What the checkpoint's generation_config asks for. Only after `ready()`."""
        from coldstream.serve.sampling import from_generation_config

        return from_generation_config(self.tokenizer.generation_defaults)

    # -- the strands --

    async def stream(self, order: Order) -> None:
        """The strand on the stream's event loop: fetch everything."""
        await self._stream.run(order)

    def _build_tokenizer(self) -> None:
        from coldstream.engine.tokenizer_process import TokenizerProcess

        self._process = TokenizerProcess()
        files = self._stream.files.result()
        if "tokenizer.json" in files:
            self._process.begin(files["tokenizer.json"])  # before imports, which wait for one another
        from coldstream.engine.tokenizer import Tokenizer

        with self._timeline.span("tokenizer", model=self.name):
            self._tokenizer = Tokenizer.load(files, source=self.uri, build=self._process.build)
        settle(self._tokenizer_built, self._tokenizer)

    def _start_engine(self) -> None:
        tokenizer, decoder = self._tokenizer_built.result(), self._decoder.result()
        from coldstream.engine.engine import Engine

        sees = self._sight(decoder, tokenizer)
        assert self.load.plan is not None
        wanted = self._settings.engine
        with self._timeline.span("engine", model=self.name):
            engine = Engine(
                FirstForward(decoder, self._timeline),
                tokenizer,
                decoder.config,
                replace(wanted, threads=threads_for(self.load.plan, wanted.threads)),
                max_context=self._model.max_context,
                hold=self._text_verified,
                hold_images=self._verified,
                sees=sees,
                device=decoder.device,
                name=self.name,
            )
            engine.start()
        self._engine, self._watched = engine, WatchedEngine(engine, self._timeline)
        if self.load.error is not None:  # it failed while the engine was being made
            engine.fail(self.load.error)
        settle(self._accepting, None)

    def _sight(self, decoder: Decoder | FallbackDecoder, tokenizer: Tokenizer) -> Sight | None:
        """What the engine looks at images with, and how they stand in prompts; None for a model that takes none."""
        if decoder.vision is None:
            return None
        from coldstream.engine.image_prompt import ImagePrompt
        from coldstream.model.image_processor import ImageProcessor
        from coldstream.model.vision import Sight

        vision = decoder.vision.config
        processor = ImageProcessor.from_files(self._stream.files.result(), image_size=vision.image_size)
        self._images = ImagePrompt(vision, tokenizer, processor)
        return Sight(decoder.vision, processor)

    def _stand_up(self) -> None:
        self._torch.finish()
        checkpoint = self._stream.opened.result()
        with self._timeline.span("model without its bytes", model=self.name):
            assert self.load.plan is not None
            decoder, assembly = stand_up(checkpoint, self.load.plan, self._stream.packing)
        settle(self._standing, assembly)
        if self.load.error is not None:  # it failed meanwhile
            assembly.fail(self.load.error)
        settle(self._decoder, decoder)
        self._landing.then(self._filling.assign_early)

    def _build_model(self) -> None:
        self._stream.opened.result()  # then the packing is there, where there is one
        with self._timeline.span("tensors assigned", model=self.name):
            self._filling.take_all(self._stream.packing)
        self._standing.result().finish()
        self._accepting.result()
        assert self._engine is not None
        if self._filling.came_twice:
            self._engine.recompute_all()
        self.load.is_ready = True
        self._engine.release()
        self._timeline.mark(f"{self.name} ready")
        self._on_change()

    def _text_landed(self) -> None:
        """The text model's tensors were taken and their files are verified; the tower's may be on the way."""
        self._filling.assign_early()
        if self._filling.came_twice:
            self._standing.result().settle()
        self._accepting.add_done_callback(self._release_text)

    def _release_text(self, accepting: Future[None]) -> None:
        if accepting.exception() is not None:
            return
        assert self._engine is not None
        if self._filling.came_twice:
            self._engine.recompute_all()
        self._engine.release_text()
        self._timeline.mark(f"{self.name} answers text")

    # -- when something goes wrong --

    def _guarded(self, kind: str, work: Callable[[], None]) -> None:
        if kind != "engine":  # its thread starts those that compute answers, which inherit its name and its niceness
            rename_thread(self.loader)
        try:
            work()
        except BaseException as exc:  # whatever it is, /readyz and the waiting requests must hear of it
            self._fail(exc)

    def _fail(self, exc: BaseException) -> None:
        """The first error counts; everyone who waits gets it."""
        if self.load.error is not None or self.load.is_ready:
            return
        self.load.error = exc if isinstance(exc, ColdstreamError) else _unforeseen(self.uri, exc)
        self._landing.end(self.load.error)
        if self._stream.packing is not None:
            self._stream.packing.stop()
        if self._standing.done() and self._standing.exception() is None:
            self._standing.result().fail(self.load.error)
        if self._engine is not None:
            self._engine.fail(self.load.error)
        waited_for = (
            self._stream.opened,
            self._stream.files,
            self._tokenizer_built,
            self._standing,
            self._decoder,
            self._accepting,
        )
        break_all(waited_for, self.load.error)
        self._on_change()


def _unforeseen(uri: str, exc: BaseException) -> ColdstreamError:
    if isinstance(exc, MemoryError):
        return OutOfMemory(f"{uri}: the model does not fit in memory; give the container more")
    return ModelError(f"{uri}: {type(exc).__name__}: {exc}")
