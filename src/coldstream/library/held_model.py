"""A loaded model for callers without an event loop: its load has a loop and a thread of its own until it is closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import closing
from dataclasses import fields
from typing import Any

from coldstream.errors import SettingsError
from coldstream.loading.context import LoadContext
from coldstream.loading.loaded_model import LoadedModel
from coldstream.loading.loader import load
from coldstream.loading.state import LoadState
from coldstream.progress_line import ProgressLine
from coldstream.settings import EngineSettings, LoadSettings, ModelSettings, Settings
from coldstream.settings.parse import changed
from coldstream.weights.transfer.background import BackgroundIterator
from coldstream.weights.transfer.load_line import described

NAME = "model"
_LOOK = 0.1
"""Seconds between two looks at how far the load is."""


class HeldModel:
    """Returns when the model is loaded and verified. Ends with its last reference, and when the interpreter exits.

    Raises:
        ColdstreamError: what the load failed with.
    """

    def __init__(self, settings: Settings, line: ProgressLine) -> None:
        self._holding = BackgroundIterator(_held(settings.models[NAME], settings, line), name="coldstream-llm")
        self.loaded = next(self._holding)

    def close(self) -> None:
        """End the model's requests, threads and processes. Twice does no harm."""
        self._holding.close()


def settings_of(uri: str, options: Mapping[str, Any]) -> Settings:
    """Options by the names of the file's keys: those of a model, of [engine] and of [load].

    Raises:
        SettingsError: one is unknown, of another type or out of its range.
    """
    model, engine, loads = ModelSettings(NAME, uri), EngineSettings(), LoadSettings()
    left = dict(options)
    taken = [_taken(left, record) for record in (model, engine, loads)]
    if left:
        known = sorted({*_keys(model), *_keys(engine), *_keys(loads)})
        raise SettingsError(f"{min(left)} is unknown; known here: {', '.join(known)}")
    return Settings(
        {NAME: changed(model, taken[0], "")},
        {},
        engine=changed(engine, taken[1], ""),
        load=changed(loads, taken[2], ""),
    )


def _keys(record: ModelSettings | EngineSettings | LoadSettings) -> list[str]:
    return [item.name for item in fields(record) if item.name not in ("name", "uri")]


def _taken(left: dict[str, Any], record: ModelSettings | EngineSettings | LoadSettings) -> dict[str, Any]:
    """Takes the record's options out of those that are left; None counts as not given."""
    found = {name: left.pop(name) for name in _keys(record) if name in left}
    return {name: value for name, value in found.items() if value is not None}


async def _held(model: ModelSettings, settings: Settings, line: ProgressLine) -> AsyncGenerator[LoadedModel, None]:
    context = LoadContext.of_one(model.name, settings)
    try:
        loaded = await _shown(load(model, settings, context=context), context.state, line)
        with closing(loaded):
            yield loaded
    finally:
        await asyncio.to_thread(context.threads.join)  # a thread of the load may still use the workers
        context.workers.close()


async def _shown(loading: Awaitable[LoadedModel], state: LoadState, line: ProgressLine) -> LoadedModel:
    drawing = asyncio.create_task(_draw(state, line))
    try:
        return await loading
    finally:
        drawing.cancel()
        if state.progress is not None:
            line.end(described(state.progress, state.phase))


async def _draw(state: LoadState, line: ProgressLine) -> None:
    while True:
        if (progress := state.progress) is not None:
            line.show(lambda: described(progress, state.phase))
        await asyncio.sleep(_LOOK)
