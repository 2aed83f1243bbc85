"""The rest of a load on engine vllm: a folder for its processes, their start, and what they say of the weights.

The weights are streamed where vLLM loads them, by the plug-in (engines/vllm/loader.py); this process hears of it
through the folder, for /startup, and gets its error as it was raised there.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import Task
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from coldstream.errors import ColdstreamError
from coldstream.loading.closing import Closing
from coldstream.loading.context import LoadContext
from coldstream.loading.loaded_model import LoadedModel
from coldstream.loading.run_plan import RunPlan
from coldstream.loading.torch_import import complete
from coldstream.settings import ModelSettings, Settings

if TYPE_CHECKING:
    from pathlib import Path

    from coldstream.engine.tokenizer.tokenizer import Tokenizer
    from coldstream.engines.vllm.engine import Served
    from coldstream.engines.vllm.handover import LoadReport
    from coldstream.engines.vllm.launch import Launch
    from coldstream.weights.checkpoint.checkpoint import Checkpoint

_log = logging.getLogger(__name__)

_LOOK = 0.1
"""Seconds between two looks at how far the other process is."""


class VllmSteps:
    """Made on the event loop of the load."""

    def __init__(self, model: ModelSettings, settings: Settings, context: LoadContext, closing: Closing) -> None:
        self._model, self._settings, self._closing = model, settings, closing
        self._state, self._threads, self._timeline = context.state, context.threads, context.timeline
        self._workers, self._turns = context.workers, context.turns

    async def run(
        self,
        checkpoint: Checkpoint,
        plan: RunPlan,
        torch: Task[None],
        tokenizer: Task[Tokenizer],
        accepting: Callable[[LoadedModel], None] | None,
    ) -> LoadedModel:
        """The engine, running, with all its weights; then requests are taken.

        Raises:
            ColdstreamError: what the loader failed with, or vLLM.
        """
        from coldstream.engines.vllm.launch import check_settings

        check_settings(self._model, self._settings.engine, device=plan.device)
        self._turns.leave(self._state)  # its processes fetch by themselves
        folder = await self._folder(checkpoint)
        await torch
        served = await self._served(self._launch(folder, checkpoint, plan), folder)
        made = await tokenizer
        loaded = await self._threads.run_answering(lambda: self._engine(served, made, checkpoint, plan))
        if accepting is not None:
            accepting(loaded)
        return loaded

    async def _folder(self, checkpoint: Checkpoint) -> Path:
        from coldstream.engines.vllm import folder
        from coldstream.engines.vllm.handover import ModelSource

        with self._timeline.span("files for vLLM", model=self._model.name):
            made = await folder.write_folder(checkpoint)
        self._closing.add(lambda: folder.remove(made))
        folder.remove_at_exit(made)  # where a closer before it fails: the folder is memory
        ModelSource.of(self._model.uri, checkpoint.revision, self._model.weights, self._settings.load).write(made)
        return made

    def _launch(self, folder: Path, checkpoint: Checkpoint, plan: RunPlan) -> Launch:
        from coldstream.engines.vllm.launch import Launch

        others = self._settings.models.values()
        sharing = sum(model.engine == self._model.engine and model.device == self._model.device for model in others)
        return Launch(folder, self._model, self._settings.engine, plan.device, _positions(checkpoint), max(1, sharing))

    async def _served(self, wanted: Launch, folder: Path) -> Served:
        """Start it on a thread, and meanwhile pass on what the process that loads says."""
        from coldstream.engines.vllm.handover import LoadReport

        def start() -> Served:
            with self._timeline.span("import vLLM", model=self._model.name):
                complete()
                from coldstream.engines.vllm.launch import launch
            with self._timeline.span("vLLM starts", model=self._model.name):
                return launch(wanted)

        begun = asyncio.ensure_future(self._threads.run("vllm", start))
        try:
            while not begun.done():
                await asyncio.wait({begun}, timeout=_LOOK)
                self._hear(LoadReport.read(folder))
            return begun.result()
        except ColdstreamError as exc:
            said = LoadReport.read(folder)
            cause = said.raised() if said is not None else None
            raise (cause or exc) from exc

    def _hear(self, said: LoadReport | None) -> None:
        if said is not None and self._state.progress is not None:
            said.into(self._state.progress)

    def _engine(self, served: Served, tokenizer: Tokenizer, checkpoint: Checkpoint, plan: RunPlan) -> LoadedModel:
        from coldstream.engines.vllm.engine import VllmEngine
        from coldstream.engines.vllm.images import MarkedImages

        engine = VllmEngine(served, tokenizer, workers=self._workers, name=self._model.name)
        self._closing.add(engine.stop)
        tokenizer.bound(engine.max_context)
        images = MarkedImages(served.marker, tokenizer) if served.marker is not None else None
        plan = self._state.plan = replace(plan, dtype=served.dtype)
        name, uri = self._model.name, self._model.uri
        _log.info("model %s: vLLM computes in %s, context %d", name, served.dtype, engine.max_context)
        return LoadedModel(name, uri, checkpoint.revision, plan, tokenizer, engine, images, self._closing)


def _positions(checkpoint: Checkpoint) -> int | None:
    """The longest context that the config names."""
    nested = checkpoint.config.get("text_config")
    for place in (checkpoint.config, nested if isinstance(nested, dict) else {}):
        value = place.get("max_position_embeddings")
        if isinstance(value, int):
            return value
    return None
