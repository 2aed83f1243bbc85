"""The cold start: everything that has to happen before the first token, side by side, and how far it is.

    loader thread       the event loop of all loads: lists, reads headers, fetches ranges (loading/loader.py)
    its loads' threads  map and import torch, build tokenizer and decoder, take tensors in, start the engine
    tokenizer process   builds the tokenizer on a core of its own (engine/tokenizer/process.py)
    application thread  imports FastAPI and builds the application
    main thread         the event loop, which answers from the first turn on (serve/main.py)

Only the standard library is imported at the top: importing this file is on the way to the first byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from coldstream.errors import ColdstreamError
from coldstream.host.threads import give_way, rename_thread
from coldstream.loading.torch_import import TorchImport
from coldstream.loading.turns import Turns
from coldstream.serve.starting_model import StartingModel
from coldstream.settings import Settings
from coldstream.timeline import Timeline
from coldstream.workers.workers import Workers

_SHORTEST_WAIT, _LONGEST_WAIT = 1.0, 120.0
_LOADER = "loader"
"""The kernel name of the loader's thread, and of those that read and check its bytes."""


class Startup:
    """Every model's start. Threads are started by `begin`, and `end` waits for them.

    `workers` are for what checkpoints and requests bring that may cost anything; none is started before there is some.

    `on_change` is called, on any thread, when a model became ready or failed.
    """

    def __init__(self, settings: Settings, timeline: Timeline, *, on_change: Callable[[], None]) -> None:
        self.timeline = timeline
        self.workers = Workers()
        self.models: Mapping[str, StartingModel] = {
            name: StartingModel(model, settings, timeline, number=number)
            for number, (name, model) in enumerate(settings.models.items())
        }
        self._on_change = on_change
        self._change = threading.Event()
        self._settings = settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loads: asyncio.Task[None] | None = None
        self._loader = threading.Thread(target=self._run_loader, name=_LOADER, daemon=True)
        self._ended = False

    def begin(self) -> None:
        """Ask for the first bytes, and start everything that runs beside them."""
        for model in self.models.values():
            model.begin()
        self._loader.start()

    def end(self) -> None:
        """Stop what still runs: the loads, the engines, the tokenizers' processes, the workers."""
        self._ended = True
        if self._loop is not None and self._loads is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: there is nothing left to cancel
                self._loop.call_soon_threadsafe(self._loads.cancel)
        self.workers.close()
        self._loader.join()
        for model in self.models.values():
            model.end()

    def wait_for_change(self, timeout: float) -> None:
        """Return when a model became ready or failed, or after `timeout` seconds. For one watcher on a thread."""
        self._change.wait(timeout)
        self._change.clear()

    def _changed(self) -> None:
        loading = [model for model in self.models.values() if model.load.is_loading]
        if loading and any(model.is_ready for model in self.models.values()):
            give_way((_LOADER, *(model.kernel_name for model in loading)))
        self._change.set()
        self._on_change()

    def errors(self) -> list[ColdstreamError]:
        """What the failed models failed with."""
        return [model.load.error for model in self.models.values() if model.load.error is not None]

    @property
    def status(self) -> str:
        """`loading`, `ready`, `degraded` (some models failed, the others serve) or `failed` (nothing can serve)."""
        phases = {model.load.phase for model in self.models.values()}
        if phases <= {"ready"}:
            return "ready"
        if phases == {"failed"}:
            return "failed"
        return "degraded" if phases == {"ready", "failed"} else "loading"

    def retry_after(self) -> float:
        """Seconds until every model is expected to be ready, from the measured rates; at least one."""
        left = max((model.load.seconds_left for model in self.models.values()), default=0.0)
        return min(max(left, _SHORTEST_WAIT), _LONGEST_WAIT)

    def state(self) -> dict[str, Any]:
        """How far the start is, as plain data for JSON. Bytes, seconds, bytes a second."""
        models = {name: model.load.as_json() for name, model in self.models.items()}
        loading = [model for model in self.models.values() if model.load.is_loading]
        rate = sum(model.load.rate for model in loading)
        return {
            "status": self.status,
            "phase": loading[0].load.phase if loading else self.status,
            "bytes": sum(model["bytes"] for model in models.values()),
            "total_bytes": sum(model["total_bytes"] for model in models.values()),
            "rate": round(rate),
            "seconds_left": math.ceil(max((model.load.seconds_left for model in loading), default=0.0)),
            "seconds": round(self.timeline.now(), 3),
            "models": models,
        }

    def spans(self) -> list[dict[str, Any]]:
        """The timeline as plain data for JSON, times in seconds since exec."""
        return [asdict(span) for span in self.timeline.spans()]

    def _run_loader(self) -> None:
        rename_thread(_LOADER)
        with contextlib.suppress(asyncio.CancelledError), asyncio.Runner() as runner:  # cancelled by `end`
            runner.run(self._load_all())

    async def _load_all(self) -> None:
        self._loop, self._loads = asyncio.get_running_loop(), asyncio.current_task()
        if self._ended:
            return
        torch, turns = TorchImport(self._settings.engine.threads, self.timeline), Turns()
        async with asyncio.TaskGroup() as tasks:
            for model in self.models.values():
                tasks.create_task(self._load(model, torch, turns))

    async def _load(self, model: StartingModel, torch: TorchImport, turns: Turns) -> None:
        await model.run(torch, turns, self.workers)
        self._changed()
