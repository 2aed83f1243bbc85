"""One model from its URI to a running engine, as tasks that wait for one another where they must.

    open        lists, reads headers and config, plans the run           event loop
    on engine vllm its processes do the rest (loading/vllm_steps.py); on the native one:
    fetch       tensors into the queue, as they land and are verified    event loop
    tokenizer   in a process, which is begun before its file is there    thread
    torch       mapped and imported, where the model needs it            thread
    decoder     without its bytes                                        thread
    assign      from the queue into packed matrices and the decoder      thread
    engine      of tokenizer and decoder; then it takes requests         thread

A request may be submitted as soon as the engine runs; its prefill waits layer by layer for the bytes. Its tokens leave
when every file that holds any of the text model is verified; those of a request with images, when all files are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from coldstream.backends.device import out_of_memory
from coldstream.errors import ColdstreamError, ModelError, OutOfMemory
from coldstream.loading.context import LoadContext
from coldstream.loading.loaded_model import LoadedModel
from coldstream.loading.steps import LoadSteps
from coldstream.loading.vllm_steps import VllmSteps
from coldstream.settings import ModelSettings, Settings


async def load(
    model: ModelSettings | str,
    settings: Settings,
    *,
    context: LoadContext | None = None,
    accepting: Callable[[LoadedModel], None] | None = None,
) -> LoadedModel:
    """Load a model, of its settings or its URI; every byte of what this returns is in its place and verified.

    `accepting` is called before, with the same object and on the event loop, as soon as its engine takes requests:
    they are computed as far as the bytes have come, and answered when those are verified. When the load then fails or
    is cancelled, they end with its error, and the model is the caller's to close.

    Raises:
        ColdstreamError: what failed first. What was not given to `accepting` is closed.
    """
    model = ModelSettings(model, model) if isinstance(model, str) else model
    shared = context or LoadContext.of_one(model.name, settings)
    steps = LoadSteps(model, settings, shared, closes_workers=context is None)
    try:
        async with asyncio.TaskGroup() as tasks:
            begin = tasks.create_task
            torch = begin(steps.import_torch())
            checkpoint, copy, plan = await begin(steps.open())
            process = begin(steps.begin_tokenizer_process(checkpoint))
            files = begin(steps.read_tokenizer_files(checkpoint))
            tokenizer = begin(steps.build_tokenizer(checkpoint, process, files))
            if plan.engine == "vllm":
                on_vllm = VllmSteps(model, settings, shared, steps.closing)
                launched = await on_vllm.run(checkpoint, plan, torch, tokenizer, accepting)
                return steps.ready(launched)
            opened = steps.prepare(checkpoint, copy, plan)
            decoder = begin(steps.build_decoder(opened, torch))
            loaded = begin(steps.start_engine(opened, tokenizer, decoder, files, accepting))
            begin(steps.fetch_tensors(opened))
            begin(steps.assign_tensors(opened))
            begin(steps.tell_engine(opened, loaded))
        return await steps.complete(loaded.result())
    except BaseException as exc:
        error = _by_name(model.uri, exc)
        await steps.give_up(error, join=context is None)
        if isinstance(exc, asyncio.CancelledError | KeyboardInterrupt | SystemExit):
            raise
        raise error from error.__cause__


def _by_name(uri: str, exc: BaseException) -> ColdstreamError:
    """What failed first, as an error that names the model."""
    if isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    if isinstance(exc, ColdstreamError):
        return exc
    if isinstance(exc, asyncio.CancelledError | KeyboardInterrupt | SystemExit):
        return ModelError(f"{uri}: loading was stopped")
    if isinstance(exc, MemoryError):
        return OutOfMemory(f"{uri}: the model does not fit in memory; give the container more")
    lack = out_of_memory(exc, f"{uri}: the model")
    if lack is not None:
        return lack
    error = ModelError(f"{uri}: {type(exc).__name__}: {exc}")
    error.__cause__ = exc
    return error
