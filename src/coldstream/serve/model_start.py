"""One model from its URI to a running engine, in strands that meet where they must.

    stream (event loop)    open -> small files -> tensors into the landing
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
import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from coldstream.errors import ColdstreamError, ModelError, OutOfMemory
from coldstream.serve.filling import Filling
from coldstream.serve.firsts import FirstForward, WatchedEngine
from coldstream.serve.landing import Landing
from coldstream.serve.making import (
    RunPlan,
    TorchImport,
    begin_packing,
    plan_run,
    stand_up,
    text_files,
    threads_for,
)
from coldstream.serve.priority import loader_name, rename_thread
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
    from coldstream.model.packing import Packing
    from coldstream.model.vision import Sight
    from coldstream.weights.checkpoint import Checkpoint
    from coldstream.weights.progress import Progress

ModelPhase = Literal["waiting", "listing", "headers", "streaming", "verifying", "assembling", "ready", "failed"]

_ASSUMED_RATE = 100e6
"""Bytes a second, until a rate has been measured."""
_ASSUMED_START = 3.0
"""Seconds that imports and the tokenizer take, where the bytes come sooner."""
_CONVERTED_AHEAD = 32 * 1024 * 1024
"""Bytes that may be in flight, and again that may wait, for conversion: the wire is faster than any conversion."""
_LONGEST_JOIN = 10.0
"""Seconds to wait for a strand that may be inside `import torch` when the process is asked to end."""


class Turns(Protocol):
    """Whose tensors come next; see `startup.Order`."""

    async def turn(self, model: ModelStart) -> None:
        """Return when it is this model's turn."""


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
        self.progress: Progress | None = None
        self.plan: RunPlan | None = None
        self.error: ColdstreamError | None = None
        self.is_wanted = False
        self.gives_way = False
        """Whether another model answers, and is to have the processor as long as nobody waits for this one."""
        self._model, self._settings, self._timeline, self._on_change = model, settings, timeline, on_change
        self.loader = loader_name(number)
        self._torch = torch
        self._landing = Landing()
        self._standing: Future[Assembly | FallbackAssembly] = Future()
        self._filling = Filling(self._landing, self._standing)
        self._all_landed = False
        self._is_ready = False
        self._opened: Future[Checkpoint] = Future()
        self._files: Future[dict[str, bytes]] = Future()
        self._decoder: Future[Decoder | FallbackDecoder] = Future()
        self._accepting: Future[None] = Future()
        self._text_verified, self._verified = threading.Event(), threading.Event()
        self._text_files: frozenset[str] = frozenset()
        self._process: TokenizerProcess | None = None
        self._tokenizer: Tokenizer | None = None
        self._tokenizer_built: Future[Tokenizer] = Future()
        self._engine: Engine | None = None
        self._images: ImagePrompt | None = None
        self._watched: WatchedEngine | None = None
        self._packing: Packing | None = None
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
        failed = self.error is not None
        if self._packing is not None:
            self._packing.stop()
        self._fail(ModelError(f"{self.uri}: the server is shutting down"))
        for thread in self._threads:
            # A model that failed has nothing to save, and its thread may have seconds of `import torch` before it.
            thread.join(0 if failed else _LONGEST_JOIN)
        if self._process is not None:
            self._process.close()

    # -- what others ask --

    @property
    def phase(self) -> ModelPhase:
        """How far it is, in one word."""
        if self.error is not None:
            return "failed"
        if self._is_ready:
            return "ready"
        match self.progress.phase if self.progress is not None else "waiting":
            case "waiting" | "failed" | "cancelled":  # the error, if there is one, is on its way
                return "waiting"
            case "done":
                return "assembling"
            case phase:
                return phase

    @property
    def is_ready(self) -> bool:
        """Whether every byte is there, verified, and the engine runs."""
        return self._is_ready

    @property
    def wants_bytes(self) -> bool:
        """Whether tensors are still to come."""
        return not self._all_landed and self.error is None

    @property
    def seconds_left(self) -> float:
        """Until the model is expected to be ready, from the measured rate."""
        if self._is_ready or self.error is not None:
            return 0.0
        start = max(_ASSUMED_START - self._timeline.now(), 0.5)
        if self.progress is None or not self.progress.total_bytes:
            return start
        left = self.progress.total_bytes - self.progress.landed_bytes
        return max(left / (self.progress.rate or _ASSUMED_RATE), start)

    def retry_after(self) -> float:
        """Seconds after which a refused client should come back."""
        return max(self.seconds_left, 1.0)

    def state(self) -> dict[str, Any]:
        """How far it is, as plain data for JSON. Bytes, seconds, bytes a second."""
        progress = self.progress
        state: dict[str, Any] = {
            "phase": self.phase,
            "bytes": progress.landed_bytes if progress else 0,
            "total_bytes": progress.total_bytes if progress else 0,
            "rate": round(progress.rate) if progress else 0,
            "seconds_left": round(self.seconds_left, 1),
            "unverified": list(progress.unverified_files) if progress else [],
        }
        if self.plan is not None:
            state |= {"device": self.plan.device, "precision": self.plan.precision, "why": self.plan.reason}
        if progress is not None:
            counters = progress.counters
            state |= {"retries": counters.retries, "resumes": counters.resumes, "hedges": counters.hedges}
        if self.error is not None:
            state["error"] = {"type": type(self.error).__name__, "message": str(self.error)}
        return state

    async def ready(self) -> None:
        """Return when requests can be submitted.

        Raises:
            ColdstreamError: what the load failed with.
        """
        self.is_wanted = True
        await asyncio.shield(asyncio.wrap_future(self._accepting))

    @property
    def revision(self) -> str:
        """Changes with the checkpoint's objects."""
        return self._opened.result().revision

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

        return from_generation_config(self.tokenizer.generation_defaults, self.tokenizer.stop_ids)

    # -- the strand on the stream's event loop --

    async def stream(self, order: Turns) -> None:
        """Fetch everything: small files as soon as they are known, tensors when it is this model's turn."""
        try:
            await self._stream(order)
        except asyncio.CancelledError:
            raise
        except BaseException as exc:
            self._fail(exc)
        finally:
            self._all_landed = True

    async def _stream(self, order: Turns) -> None:
        with self._timeline.span("import the streamer", model=self.name):
            from coldstream.weights.checkpoint import open_checkpoint_async
            from coldstream.weights.progress import Progress
            from coldstream.weights.retry import RetryPolicy
            from coldstream.weights.stream import StreamOptions, stream
        load = self._settings.load
        retry = RetryPolicy(deadline=load.deadline)
        self.progress = Progress(on_change=self._noticed)
        checkpoint = await open_checkpoint_async(self.uri, retry=retry, progress=self.progress, timeline=self._timeline)
        self.plan = plan_run(checkpoint, self._model)
        self._landing.capacity = _CONVERTED_AHEAD if self.plan.converts else None
        self._text_files = text_files(checkpoint)
        threads = self._settings.engine.threads
        self._packing = begin_packing(
            checkpoint,
            self.plan,
            threads=threads,
            failed=self._fail,
            is_patient=lambda: self.gives_way and not self.is_wanted,
        )
        _settle(self._opened, checkpoint)
        files = asyncio.create_task(self._fetch_files(checkpoint))
        try:
            options = StreamOptions(
                max_bytes_in_flight=load.max_bytes_in_flight or (_CONVERTED_AHEAD if self.plan.converts else None),
                concurrency=load.concurrency,
                retry=retry,
            )
            pieces = self._packing.pieces if self._packing is not None else None
            tensors = stream(
                checkpoint, pieces=pieces, options=options, progress=self.progress, timeline=self._timeline
            )
            async for landed in tensors:
                if self.error is not None:
                    return
                await self._landing.put(landed)
                del landed  # the landing has it; kept here, it would outlive its conversion
                await order.turn(self)
            self._landing.end()
            await files
        finally:
            files.cancel()

    def _noticed(self, progress: Progress) -> None:
        """Once the files that text rests on are here: say so to the model's thread, behind their tensors."""
        if self._text_files and self._text_files <= progress.settled:
            self._text_files = frozenset()
            self._landing.then(self._text_landed)

    async def _fetch_files(self, checkpoint: Checkpoint) -> None:
        from coldstream.engine.tokenizer_files import TOKENIZER_FILES

        names = [name for name in TOKENIZER_FILES if name in checkpoint.files]
        try:
            with self._timeline.span("tokenizer files", model=self.name):
                contents = await asyncio.gather(*(checkpoint.read_file(name) for name in names))
        except BaseException as exc:
            self._fail(exc)
            raise
        _settle(self._files, dict(zip(names, contents, strict=True)))

    # -- the strands on threads --

    def _build_tokenizer(self) -> None:
        from coldstream.engine.tokenizer_process import TokenizerProcess

        self._process = TokenizerProcess()
        files = self._files.result()
        if "tokenizer.json" in files:
            self._process.begin(files["tokenizer.json"])  # before imports, which wait for one another
        from coldstream.engine.tokenizer import Tokenizer

        with self._timeline.span("tokenizer", model=self.name):
            self._tokenizer = Tokenizer.load(files, source=self.uri, build=self._process.build)
        _settle(self._tokenizer_built, self._tokenizer)

    def _start_engine(self) -> None:
        tokenizer, decoder = self._tokenizer_built.result(), self._decoder.result()
        from coldstream.engine.engine import Engine

        sees = self._sight(decoder, tokenizer)
        assert self.plan is not None
        wanted = self._settings.engine
        with self._timeline.span("engine", model=self.name):
            engine = Engine(
                FirstForward(decoder, self._timeline),
                tokenizer,
                decoder.config,
                replace(wanted, threads=threads_for(self.plan, wanted.threads)),
                max_context=self._model.max_context,
                hold=self._text_verified,
                hold_images=self._verified,
                sees=sees,
                device=decoder.device,
                name=self.name,
            )
            engine.start()
        self._engine, self._watched = engine, WatchedEngine(engine, self._timeline)
        if self.error is not None:  # it failed while the engine was being made
            engine.fail(self.error)
        _settle(self._accepting, None)

    def _sight(self, decoder: Decoder | FallbackDecoder, tokenizer: Tokenizer) -> Sight | None:
        """What the engine looks at images with, and how they stand in prompts; None for a model that takes none."""
        if decoder.vision is None:
            return None
        from coldstream.engine.image_prompt import ImagePrompt
        from coldstream.model.image_processor import ImageProcessor
        from coldstream.model.vision import Sight

        vision = decoder.vision.config
        processor = ImageProcessor.from_files(self._files.result(), image_size=vision.image_size)
        self._images = ImagePrompt(vision, tokenizer, processor)
        return Sight(decoder.vision, processor)

    def _stand_up(self) -> None:
        self._torch.finish()
        checkpoint = self._opened.result()
        with self._timeline.span("model without its bytes", model=self.name):
            assert self.plan is not None
            decoder, assembly = stand_up(checkpoint, self.plan, self._packing)
        _settle(self._standing, assembly)
        if self.error is not None:  # it failed meanwhile
            assembly.fail(self.error)
        _settle(self._decoder, decoder)
        self._landing.then(self._filling.assign_early)

    def _build_model(self) -> None:
        self._opened.result()  # then the packing is there, where there is one
        with self._timeline.span("tensors assigned", model=self.name):
            self._filling.take_all(self._packing)
        self._standing.result().finish()
        self._accepting.result()
        assert self._engine is not None
        if self._filling.came_twice:
            self._engine.recompute_all()
        self._is_ready = True
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
        if self.error is not None or self._is_ready:
            return
        self.error = exc if isinstance(exc, ColdstreamError) else _unforeseen(self.uri, exc)
        self._landing.end(self.error)
        if self._packing is not None:
            self._packing.stop()
        if self._standing.done() and self._standing.exception() is None:
            self._standing.result().fail(self.error)
        if self._engine is not None:
            self._engine.fail(self.error)
        waited_for = (self._opened, self._files, self._tokenizer_built, self._standing, self._decoder, self._accepting)
        for future in waited_for:
            with contextlib.suppress(InvalidStateError):
                future.set_exception(self.error)
        self._on_change()


_T = TypeVar("_T")


def _settle(future: Future[_T], value: _T) -> None:
    """Set the result, unless the start has failed meanwhile."""
    with contextlib.suppress(InvalidStateError):
        future.set_result(value)


def _unforeseen(uri: str, exc: BaseException) -> ColdstreamError:
    if isinstance(exc, MemoryError):
        return OutOfMemory(f"{uri}: the model does not fit in memory; give the container more")
    return ModelError(f"{uri}: {type(exc).__name__}: {exc}")
