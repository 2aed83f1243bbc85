"""Which sampling parameters a request runs with: the model's, over them the task's, over them the request's. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from coldstream.engine.request import SamplingParams
from coldstream.settings import SamplingSettings

Given = Mapping[str, Any]
"""Fields of SamplingParams that were set; None counts as not set."""


def from_generation_config(config: Mapping[str, Any]) -> SamplingParams:
    """A model's own defaults, as transformers reads generation_config.json: without `do_sample`, greedy.

    Values that could not be meant (a negative temperature, text for a number) are left out, not refused: the file came
    with the checkpoint, and its user cannot mend it. Its eos ids are the engine's, and no request's stop ids: those
    hold even where eos is ignored.
    """
    numbers = {key: value for key, value in config.items() if _is_number(value)}
    known: dict[str, Any] = {}
    if config.get("do_sample") is True:
        known["temperature"] = float(numbers["temperature"]) if numbers.get("temperature", -1) >= 0 else 1.0
        known |= {"top_p": float(numbers["top_p"])} if 0 < numbers.get("top_p", 0) <= 1 else {}
        known |= {"min_p": float(numbers["min_p"])} if 0 <= numbers.get("min_p", -1) <= 1 else {}
        known |= {"top_k": int(numbers["top_k"])} if numbers.get("top_k", -1) >= 0 else {}
    if numbers.get("repetition_penalty", 0) > 0:
        known["repetition_penalty"] = float(numbers["repetition_penalty"])
    if numbers.get("max_new_tokens", 0) >= 1:
        known["max_tokens"] = int(numbers["max_new_tokens"])
    return SamplingParams(**known)


def resolve(defaults: SamplingParams, task: SamplingSettings, given: Given, *, room: int) -> SamplingParams:
    """The parameters to run with. `room` is how many tokens still fit in the context: `max_tokens` is at most that.

    Stop strings and stop ids add up: a task's are part of its format, whatever else a request stops at.
    """
    set_by_task = {item.name: getattr(task, item.name) for item in fields(SamplingSettings)}
    stop = tuple(dict.fromkeys([*defaults.stop, *task.stop, *(given.get("stop") or ())]))
    stop_ids = defaults.stop_token_ids | frozenset(given.get("stop_token_ids") or ())
    chosen = {
        key: value
        for layer in (set_by_task, given)
        for key, value in layer.items()
        if value is not None and key not in ("stop", "stop_token_ids")
    }
    merged = replace(defaults, **chosen, stop=stop, stop_token_ids=stop_ids)
    return replace(merged, max_tokens=min(merged.max_tokens, room))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
