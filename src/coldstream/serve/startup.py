"""The cold start: everything that has to happen before the first token, side by side, and how far it is.

    stream thread       lists, reads headers, fetches ranges; needs neither torch nor the GIL for long
    tokenizer process   builds the tokenizer on a core of its own (engine/tokenizer_process.py)
    libtorch thread     maps torch's libraries without holding the GIL (serve/libtorch.py)
    model threads       import torch, put each model together as tensors land, start its engine (serve/model_start.py)
    application thread  imports FastAPI and builds the application
    main thread         the event loop; until all is settled, probes are answered by the front (serve/front.py)

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
from coldstream.serve.making import TorchImport
from coldstream.serve.model_start import ModelStart
from coldstream.serve.order import Order
from coldstream.serve.priority import give_way, rename_thread
from coldstream.settings import Settings
from coldstream.timeline import Timeline

_SHORTEST_WAIT, _LONGEST_WAIT = 1.0, 120.0
_STREAM = "stream"
"""The kernel name of the stream's thread, and of those that check its bytes."""


class Startup:
    """Every model's start. Threads are started by `begin`, and `end` waits for them.

    `on_change` is called, on any thread, when a model became ready or failed.
    """

    def __init__(self, settings: Settings, timeline: Timeline, *, on_change: Callable[[], None]) -> None:
        self.timeline = timeline
        torch = TorchImport(settings.engine.threads, timeline)
        self.models: Mapping[str, ModelStart] = {
            name: ModelStart(model, settings, timeline, torch=torch, number=number, on_change=self._changed)
            for number, (name, model) in enumerate(settings.models.items())
        }
        self._on_change = on_change
        self._change = threading.Event()
        self._settings = settings
        self._stream_loop: asyncio.AbstractEventLoop | None = None
        self._stream_task: asyncio.Task[None] | None = None
        self._stream = threading.Thread(target=self._run_streams, name="stream", daemon=True)
        self._ended = False

    def begin(self) -> None:
        """Ask for the first bytes, and start everything that runs beside them."""
        self._stream.start()
        for model in self.models.values():
            model.begin()

    def end(self) -> None:
        """Stop what still runs: the streams, the engines, the tokenizers' processes."""
        self._ended = True
        if self._stream_loop is not None and self._stream_task is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: there is nothing left to cancel
                self._stream_loop.call_soon_threadsafe(self._stream_task.cancel)
        self._stream.join()
        for model in self.models.values():
            model.end()

    def wait_for_change(self, timeout: float) -> None:
        """Return when a model became ready or failed, or after `timeout` seconds. For one watcher on a thread."""
        self._change.wait(timeout)
        self._change.clear()

    def _changed(self) -> None:
        loading = [model for model in self.models.values() if model.load.phase not in ("ready", "failed")]
        if loading and any(model.is_ready for model in self.models.values()):
            give_way((_STREAM, *(model.loader for model in loading)))
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
        loading = [model for model in self.models.values() if model.load.phase not in ("ready", "failed")]
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

    def _run_streams(self) -> None:
        rename_thread(_STREAM)
        try:
            with asyncio.Runner() as runner:
                runner.run(self._streams())
        except asyncio.CancelledError:
            pass  # `end` said so

    async def _streams(self) -> None:
        self._stream_loop, self._stream_task = asyncio.get_running_loop(), asyncio.current_task()
        if self._ended:
            return
        order = Order(tuple(model.load for model in self.models.values()))
        await asyncio.gather(*(model.stream(order) for model in self.models.values()))
