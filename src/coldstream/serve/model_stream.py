"""The strand of a model's start that runs on the stream's event loop: from the URI to tensors in the landing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from coldstream.serve.landing import Landing
from coldstream.serve.load_state import LoadState
from coldstream.serve.making import RunPlan, begin_packing, plan_run, text_files
from coldstream.serve.order import Order
from coldstream.serve.promise import settle
from coldstream.settings import ModelSettings, Settings
from coldstream.timeline import Timeline

if TYPE_CHECKING:
    from coldstream.model.packing import Packing
    from coldstream.weights.checkpoint import Checkpoint
    from coldstream.weights.progress import Progress
    from coldstream.weights.stream import StreamOptions

_CONVERTED_AHEAD = 32 * 1024 * 1024
"""Bytes that may be in flight, and again that may wait, for conversion: the wire is faster than any conversion."""


class ModelStream:
    """Opens the checkpoint, says how it will run, and fetches it.

    It settles `opened` and `files` (by name); `packing` is there before `opened`, where matrices are packed. `failed`
    is told the first error; `text_landed` is called on the landing's reader, behind the last tensor that text rests on,
    where others are still to come.
    """

    def __init__(
        self,
        model: ModelSettings,
        settings: Settings,
        timeline: Timeline,
        *,
        load: LoadState,
        landing: Landing,
        failed: Callable[[BaseException], None],
        text_landed: Callable[[], None],
    ) -> None:
        self.opened: Future[Checkpoint] = Future()
        self.files: Future[dict[str, bytes]] = Future()
        self.packing: Packing | None = None
        self._model, self._settings, self._timeline = model, settings, timeline
        self._load, self._landing = load, landing
        self._failed, self._text_landed = failed, text_landed
        self._text_files: frozenset[str] = frozenset()

    async def run(self, order: Order) -> None:
        """Fetch everything: small files as soon as they are known, tensors when it is this model's turn."""
        try:
            await self._run(order)
        except asyncio.CancelledError:
            raise
        except BaseException as exc:
            self._failed(exc)
        finally:
            self._load.all_landed = True

    async def _run(self, order: Order) -> None:
        with self._timeline.span("import the streamer", model=self._model.name):
            from coldstream.weights.checkpoint import open_checkpoint_async
            from coldstream.weights.progress import Progress
            from coldstream.weights.retry import RetryPolicy
            from coldstream.weights.stream import StreamOptions
        retry = RetryPolicy(deadline=self._settings.load.deadline)
        progress = self._load.progress = Progress(on_change=self._noticed)
        uri, timeline = self._model.uri, self._timeline
        checkpoint = await open_checkpoint_async(uri, retry=retry, progress=progress, timeline=timeline)
        plan = self._plan(checkpoint)
        load = self._settings.load
        options = StreamOptions(
            max_bytes_in_flight=load.max_bytes_in_flight or (_CONVERTED_AHEAD if plan.converts else None),
            concurrency=load.concurrency,
            retry=retry,
            verify="required" if load.verify == "required" else True,
        )
        files = asyncio.create_task(self._fetch_files(checkpoint))
        try:
            if await self._fetch_tensors(checkpoint, options, progress, order):
                self._landing.end()
                await files
        finally:
            files.cancel()

    def _plan(self, checkpoint: Checkpoint) -> RunPlan:
        plan = self._load.plan = plan_run(checkpoint, self._model)
        self._landing.capacity = _CONVERTED_AHEAD if plan.converts else None
        self._text_files = text_files(checkpoint)
        self.packing = begin_packing(
            checkpoint,
            plan,
            threads=self._settings.engine.threads,
            failed=self._failed,
        )
        settle(self.opened, checkpoint)
        return plan

    async def _fetch_tensors(
        self, checkpoint: Checkpoint, options: StreamOptions, progress: Progress, order: Order
    ) -> bool:
        """Put every tensor into the landing; False where the start has failed meanwhile."""
        from coldstream.weights.stream import stream

        pieces = self.packing.pieces if self.packing is not None else None
        tensors = stream(checkpoint, pieces=pieces, options=options, progress=progress, timeline=self._timeline)
        async for landed in tensors:
            if self._load.error is not None:
                return False
            await self._landing.put(landed)
            del landed  # the landing has it; kept here, it would outlive its conversion
            await order.turn(self._load)
        return True

    def _noticed(self, progress: Progress) -> None:
        """Once the files that text rests on are here: say so to the model's thread, behind their tensors."""
        if self._text_files and self._text_files <= progress.settled:
            self._text_files = frozenset()
            self._landing.then(self._text_landed)

    async def _fetch_files(self, checkpoint: Checkpoint) -> None:
        from coldstream.engine.tokenizer_files import TOKENIZER_FILES

        names = [name for name in TOKENIZER_FILES if name in checkpoint.files]
        try:
            with self._timeline.span("tokenizer files", model=self._model.name):
                contents = await asyncio.gather(*(checkpoint.read_file(name) for name in names))
        except BaseException as exc:
            self._failed(exc)
            raise
        settle(self.files, dict(zip(names, contents, strict=True)))
