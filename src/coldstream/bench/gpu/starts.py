"""From exec to the first token, and the load's bytes a second, each in a process of its own."""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from coldstream.engine.request import TokenEvent
from coldstream.loading.context import LoadContext
from coldstream.loading.loaded_model import LoadedModel
from coldstream.loading.loader import load
from coldstream.settings import Device, EngineSettings, ModelSettings, Precision, Settings

_LIMIT = 120.0


@dataclass(frozen=True, slots=True)
class MeasuredStart:
    """Seconds since exec; `fetched` from the listing to all bytes in their places.

    `nbytes` of weights; `peak`: the most bytes that the host held.
    """

    first_token: float
    ready: float
    fetched: float
    nbytes: int
    peak: int


def measure(uri: str, *, device: Device, precision: Precision) -> MeasuredStart:
    """One start, in a child.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    command = [sys.executable, "-m", "coldstream.bench.gpu.starts", uri, device, precision]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-2000:]}")
    return MeasuredStart(**json.loads(done.stdout.splitlines()[-1]))


async def _start(uri: str, device: Device, precision: Precision) -> MeasuredStart:
    model = ModelSettings("start", uri, engine="native", device=device, precision=precision)
    settings = Settings(models={"start": model}, engine=EngineSettings())
    context = LoadContext.of_one("start", settings)
    timeline, told, moments = context.timeline, threading.Event(), [0.0]

    def deliver(event: TokenEvent) -> None:
        if event.token_ids and not told.is_set():
            moments[0] = timeline.now()
            told.set()
        if event.finish_reason is not None:
            told.set()

    def accepting(loaded: LoadedModel) -> None:
        from coldstream.bench.gpu.served import request

        loaded.engine.submit(request("first", range(3, 19), 2), deliver)

    loaded = await load(model, settings, context=context, accepting=accepting)
    ready = timeline.now()
    await asyncio.to_thread(told.wait)
    spans = [span for span in timeline.spans() if span.name == "tensors assigned"]
    fetched = max(span.end for span in spans) - min(span.start for span in spans) if spans else 0.0
    loaded.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    progress = context.state.progress
    nbytes = progress.landed_bytes if progress is not None else 0
    return MeasuredStart(moments[0], ready, fetched, nbytes, peak)


def main(arguments: Sequence[str]) -> None:
    """The child: a line of JSON."""
    uri, device, precision = arguments
    print(json.dumps(asdict(asyncio.run(_start(uri, device, precision)))))  # type: ignore[arg-type]


if __name__ == "__main__":
    main(sys.argv[1:])
