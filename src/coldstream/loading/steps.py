"""The steps of one load; a step that needs another one's result is given its task."""

from __future__ import annotations

import asyncio
import logging
from asyncio import Task
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from coldstream.errors import ColdstreamError, ConvertedUnfit
from coldstream.loading.assign import Assigner, Milestone
from coldstream.loading.build import begin_packing, build_backend, build_decoder, build_vision, stored_as
from coldstream.loading.closing import Closing
from coldstream.loading.context import LoadContext
from coldstream.loading.fetch import fetch_tensors
from coldstream.loading.loaded_model import LoadedModel
from coldstream.loading.run_plan import RunPlan, plan_run, text_files, threads_for
from coldstream.loading.tensor_queue import TensorQueue
from coldstream.loading.torch_need import expects_torch, require_torch
from coldstream.settings import ModelSettings, Settings

if TYPE_CHECKING:
    from coldstream.backends.cpu.placing import Filling
    from coldstream.engine.engine import Engine
    from coldstream.engine.tokenizer.process import TokenizerProcess
    from coldstream.engine.tokenizer.tokenizer import Tokenizer
    from coldstream.engine.vision.prompt import ImagePrompt
    from coldstream.loading.build import AnyDecoder, Built
    from coldstream.weights.checkpoint.checkpoint import Checkpoint
    from coldstream.weights.packed.opening import PackedCopy
    from coldstream.weights.transfer.progress import Progress
    from coldstream.weights.transfer.stream import StreamOptions

    Files: TypeAlias = dict[str, bytes]

_log = logging.getLogger(__name__)
_CONVERTED_AHEAD = 32 * 1024 * 1024
"""Bytes that may be in flight, and again that may wait, for conversion: the wire is faster than any conversion."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A checkpoint, how it will run, and what its tensors go through. None in `milestones`: there are no more.

    `arriving` is what is streamed: the checkpoint, or its packed copy.
    """

    checkpoint: Checkpoint
    arriving: Checkpoint
    plan: RunPlan
    options: StreamOptions
    progress: Progress
    tensors: TensorQueue
    packing: Filling | None
    assigner: Assigner
    milestones: asyncio.Queue[Milestone | None]


class LoadSteps:
    """Made on the event loop of the load; all of it but what `LoaderThreads` runs stays there."""

    def __init__(self, model: ModelSettings, settings: Settings, context: LoadContext, *, closes_workers: bool) -> None:
        self._model, self._settings = model, settings
        self._state, self._threads, self._timeline = context.state, context.threads, context.timeline
        self._torch, self._turns, self._workers = context.torch, context.turns, context.workers
        self.closing = Closing()
        if closes_workers:
            self.closing.add(context.workers.close)
        self._engine: Engine | None = None
        self._when_failed: list[Callable[[ColdstreamError], None]] = []
        self._is_given = False
        self._turns.enter(self._state)

    async def import_torch(self) -> None:
        """torch is there, for this model and all others, if the settings and the machine say that it is needed."""
        if expects_torch(self._model):
            await self._threads.run("torch", self._torch.finish)

    async def begin_tokenizer_process(self, checkpoint: Checkpoint) -> TokenizerProcess | None:
        """The tokenizer's process, which imports beside the file's bytes; None where none may be needed."""
        from coldstream.weights.checkpoint.file_names import CONVERTED

        return None if CONVERTED in checkpoint.files else await self._begin_tokenizer_process()

    async def _begin_tokenizer_process(self) -> TokenizerProcess:
        def begin() -> TokenizerProcess:
            from coldstream.engine.tokenizer.process import TokenizerProcess

            process = TokenizerProcess()
            self.closing.add(process.close)
            return process

        return await self._threads.run("tokenizer", begin)

    async def open(self) -> tuple[Checkpoint, PackedCopy | None, RunPlan]:
        """List, read the headers, and say how it will run, and of which packed copy if of any."""
        with self._timeline.span("import the streamer", model=self._model.name):
            from coldstream.loading.packed_copy import choose_copy, find_place
            from coldstream.model.findings import findings
            from coldstream.weights.packed.opening import open_with_copy
            from coldstream.weights.transfer.progress import Progress
            from coldstream.weights.transfer.retry import RetryPolicy
        retry = RetryPolicy(deadline=self._settings.load.deadline)
        progress = self._state.progress = Progress()
        found = await open_with_copy(
            self._model.uri,
            find_place(self._model),
            weights=self._model.weights,
            retry=retry,
            progress=progress,
            timeline=self._timeline,
        )
        checkpoint = found.checkpoint
        plan = self._state.plan = plan_run(checkpoint, self._model)
        self._state.warnings = findings(checkpoint) if plan.engine == "native" else checkpoint.warnings
        copy, why_not = choose_copy(found, plan, self._model)
        if why_not is not None:
            self._state.warnings = (*self._state.warnings, why_not)
        if copy is not None:
            self._state.packed = str(copy.arriving.location)
            self.closing.add(checkpoint.store.close_idle)
        named = {"fields": {"model": self._model.name}}
        for warning in self._state.warnings:
            _log.warning("model %s: %s", self._model.name, warning, extra=named)
        _log.info("model %s: engine %s, %s", self._model.name, plan.engine, plan.engine_reason, extra=named)
        if self._state.packed is not None:
            _log.info("model %s: from its packed copy in %s", self._model.name, self._state.packed, extra=named)
        return checkpoint, copy, plan

    def prepare(self, checkpoint: Checkpoint, copy: PackedCopy | None, plan: RunPlan) -> Opened:
        """What the tensors go through on the native engine."""
        from coldstream.weights.transfer.retry import RetryPolicy
        from coldstream.weights.transfer.stream import StreamOptions, refuse_unchecked_files

        ahead = _CONVERTED_AHEAD if plan.converts else None
        options = StreamOptions(
            max_bytes_in_flight=self._settings.load.max_bytes_in_flight or ahead,
            concurrency=self._settings.load.concurrency,
            retry=RetryPolicy(deadline=self._settings.load.deadline),
            verify="required" if self._settings.load.verify == "required" else True,
        )
        assert self._state.progress is not None
        if copy is not None and options.verify == "required":
            refuse_unchecked_files(checkpoint)
        return self._opened(checkpoint, copy, plan, options, self._state.progress, TensorQueue(ahead))

    async def read_tokenizer_files(self, checkpoint: Checkpoint) -> Files:
        """The small files, by name."""
        from coldstream.weights.checkpoint.file_names import CONVERTED, TEMPLATES_BELOW, TOKENIZER

        names: tuple[str, ...] = (*TOKENIZER, *TEMPLATES_BELOW)
        with self._timeline.span("tokenizer files", model=self._model.name):
            if CONVERTED in checkpoint.files:
                from coldstream.loading import converted_tokenizer

                names = converted_tokenizer.names(checkpoint)
            return await checkpoint.read_files(names)

    async def build_tokenizer(
        self, checkpoint: Checkpoint, process: Task[TokenizerProcess | None], files: Task[Files]
    ) -> Tokenizer:
        """The tokenizer, of its converted form or built in its process."""
        from coldstream.weights.checkpoint.file_names import CONVERTED

        contents = await files
        if CONVERTED in contents:
            made = await self._threads.run("tokenizer", partial(self._converted_tokenizer, checkpoint, contents))
            if made is not None:
                return made
            contents = {**contents, **await checkpoint.read_files(("tokenizer.json",))}
            del contents[CONVERTED]
        home = await process or await self._begin_tokenizer_process()

        def build() -> Tokenizer:
            from coldstream.engine.tokenizer.added_tokens import Declared

            if "tokenizer.json" in contents:  # before imports, which wait for one another
                home.begin(contents["tokenizer.json"], Declared.from_files(contents, source=self._model.uri))
            from coldstream.engine.tokenizer.tokenizer import Tokenizer

            around = self._around_tokenizer()
            with self._timeline.span("tokenizer", model=self._model.name):
                return Tokenizer.load(contents, build=home.build, **around)

        return await self._threads.run("tokenizer", build)

    def _converted_tokenizer(self, checkpoint: Checkpoint, contents: Files) -> Tokenizer | None:
        """None, and a warning, where the converted form may not be used."""
        from coldstream.engine.tokenizer.tokenizer import Tokenizer
        from coldstream.loading import converted_tokenizer as converted

        def began(process: TokenizerProcess) -> None:
            self.closing.add(process.close)

        uri = self._model.uri
        try:
            with self._timeline.span("tokenizer", model=self._model.name):
                near = converted.near(contents, made_of=checkpoint.files["tokenizer.json"], began=began, source=uri)
                return Tokenizer.around(near, contents, special_tokens=near.special_tokens, **self._around_tokenizer())
        except ConvertedUnfit as exc:
            warning = f"{exc}; tokenizer.json is read instead"
            self._state.warnings = (*self._state.warnings, warning)
            _log.warning("model %s: %s", self._model.name, warning, extra={"fields": {"model": self._model.name}})
            return None

    def _around_tokenizer(self) -> dict[str, Any]:
        """What `Tokenizer` takes beside a checkpoint's files."""
        from coldstream.engine.tokenizer import templates_apart

        templates_apart.begin(self._workers)  # beside the tokenizer, which is being made
        return {
            "source": self._model.uri,
            "templates": partial(templates_apart.TemplatesApart, workers=self._workers),
            "keeps_control_tokens": self._model.control_tokens == "keep",
        }

    async def build_decoder(self, opened: Opened, torch: Task[None]) -> Built:
        """The decoder before its bytes, and what fills it."""
        await torch

        def build() -> Built:
            require_torch(opened.plan, opened.checkpoint.config)
            if opened.plan.needs_torch:
                self._torch.finish()
            with self._timeline.span("model without its bytes", model=self._model.name):
                return build_decoder(opened.checkpoint, opened.plan, opened.packing)

        built = await self._threads.run("model", build)
        opened.assigner.model_built(built[1])
        return built

    async def start_engine(
        self,
        opened: Opened,
        tokenizer: Task[Tokenizer],
        decoder: Task[Built],
        files: Task[Files],
        accepting: Callable[[LoadedModel], None] | None,
    ) -> LoadedModel:
        """The engine, running: it takes requests."""
        parts = await tokenizer, await decoder, await files
        loaded = await self._threads.run_answering(lambda: self._new_engine(opened, *parts))
        assert self._engine is not None
        self._when_failed.append(self._engine.fail)
        if accepting is not None:
            self._is_given = True
            accepting(loaded)
        return loaded

    async def fetch_tensors(self, opened: Opened) -> None:
        """Every tensor into the queue, when it is this model's turn."""
        await fetch_tensors(
            opened.arriving,
            opened.tensors,
            pieces=opened.packing.pieces if opened.packing is not None else None,
            options=opened.options,
            progress=opened.progress,
            timeline=self._timeline,
            turn=partial(self._turns.come, self._state),
        )
        self._turns.leave(self._state)

    async def assign_tensors(self, opened: Opened) -> None:
        """Every tensor from the queue into the model."""

        def assign() -> None:
            with self._timeline.span("tensors assigned", model=self._model.name):
                opened.assigner.run()

        await self._threads.run("tensors", assign)
        opened.milestones.put_nowait(None)

    async def tell_engine(self, opened: Opened, loaded: Task[LoadedModel]) -> None:
        """What the engine has to hear of its weights, in the order in which it came to be."""
        await loaded
        engine = self._engine
        assert engine is not None
        while (milestone := await opened.milestones.get()) is not None:
            if milestone is Milestone.REPLACED:
                engine.recompute_all()
            else:
                engine.release_text()
                self._timeline.mark(f"{self._model.name} answers text")

    async def complete(self, loaded: LoadedModel) -> LoadedModel:
        """Everything is verified and in its place: every answer may leave."""
        assert self._engine is not None
        await self._prove(loaded.plan, self._engine)
        self._state.is_ready = True
        self._engine.release()
        return self.ready(loaded)

    def ready(self, loaded: LoadedModel) -> LoadedModel:
        """It can be asked, and everything of it is there and verified."""
        self._state.is_ready = True
        self._timeline.mark(f"{self._model.name} ready")
        return loaded

    async def give_up(self, error: ColdstreamError, *, join: bool) -> None:
        """Let all that waits hear of the error, and close what was not given away; `join`: return when it has ended."""
        self._state.error = error
        self._turns.leave(self._state)
        for hear in reversed(self._when_failed):
            hear(error)
        self._threads.end()
        if join:
            await self._threads.run("close", self._close)
        else:
            self._threads.begin("close", self._close)

    def _close(self) -> None:
        self._threads.join()  # first: a thread that still asks the tokenizer's process would start it again
        if not self._is_given:
            self.closing.close()

    async def _prove(self, plan: RunPlan, engine: Engine) -> None:
        """On a GPU: one token, so that a model that cannot answer there is not called ready. No answer waits for it.

        Not on a CPU, where it would only cost time: what runs there is what runs on every other CPU.
        """
        if plan.device == "cpu":
            return
        engine.release()
        with self._timeline.span("first token on the device", model=self._model.name):
            await self._threads.run("first token", engine.prove)

    def _opened(
        self,
        checkpoint: Checkpoint,
        copy: PackedCopy | None,
        plan: RunPlan,
        options: StreamOptions,
        progress: Progress,
        tensors: TensorQueue,
    ) -> Opened:
        loop, milestones = asyncio.get_running_loop(), asyncio.Queue[Milestone | None]()

        def reached(milestone: Milestone) -> None:
            loop.call_soon_threadsafe(milestones.put_nowait, milestone)

        arriving = checkpoint if copy is None else copy.arriving
        packing = begin_packing(checkpoint, plan, copy, threads=self._settings.engine.threads, failed=tensors.fail)
        files = text_files(checkpoint, arriving)
        assigner = Assigner(tensors, packing, files, as_stored=stored_as(plan), reached=reached)
        self._when_failed.append(assigner.fail)
        return Opened(checkpoint, arriving, plan, options, progress, tensors, packing, assigner, milestones)

    def _new_engine(self, opened: Opened, tokenizer: Tokenizer, built: Built, files: Files) -> LoadedModel:
        from coldstream.engine.engine import Engine
        from coldstream.engine.outbox import Verified

        decoder, _ = built
        vision, images = build_vision(decoder, files), _image_prompt(decoder, tokenizer, files)
        threads = threads_for(opened.plan, self._settings.engine.threads)
        with self._timeline.span("engine", model=self._model.name):
            backend = build_backend(
                decoder,
                self._timeline,
                vision=vision,
                threads=threads,
                name=self._model.name,
                graphs=self._settings.engine.cuda_graphs,
            )
            engine = Engine(
                backend,
                tokenizer,
                decoder.config,
                self._settings.engine,
                max_context=self._model.max_context,
                verified=Verified.NOTHING,
                workers=self._workers,
                name=self._model.name,
            )
            tokenizer.bound(engine.max_context)
            self.closing.add(engine.stop)
            self._engine = engine
            engine.start()
        name, uri, revision = self._model.name, self._model.uri, opened.checkpoint.revision
        return LoadedModel(name, uri, revision, opened.plan, tokenizer, engine, images, self.closing)


def _image_prompt(decoder: AnyDecoder, tokenizer: Tokenizer, files: Files) -> ImagePrompt | None:
    """How images stand in prompts; None for a model that takes none."""
    if decoder.vision is None:
        return None
    from coldstream.engine.vision.prompt import ImagePrompt
    from coldstream.model.image_processor import ImageProcessor

    config = decoder.vision.config
    return ImagePrompt(config, tokenizer, ImageProcessor.from_files(files, image_size=config.image_size))
