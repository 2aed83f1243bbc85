"""What may be said of how an answer is drawn, by the names of the HTTP API. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, get_type_hints

from coldstream.engine.request import Grammar, SamplingParams
from coldstream.engine.sampling import resolve
from coldstream.errors import InvalidRequest, SettingsError
from coldstream.settings import SamplingSettings
from coldstream.settings.parse import fit


class SamplingOptions(TypedDict, total=False):
    """As `SamplingParams`, and what the output must obey: one of `json_schema` (a JSON Schema, or a pydantic model's
    class), `regex` (Rust's syntax), `choice` (texts) and `grammar` (Lark).
    """

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    logprobs: int
    logit_bias: Mapping[int, float]
    json_schema: Any
    regex: str
    choice: Sequence[str]
    grammar: str


_CONSTRAINTS = ("json_schema", "regex", "choice", "grammar")
_HINTS = get_type_hints(SamplingOptions)


def read(options: Mapping[str, Any]) -> tuple[Mapping[str, Any], Grammar | None]:
    """Values for `SamplingParams`, each of its type, and the grammar. None counts as not given.

    Raises:
        InvalidRequest: an option is unknown or of another type, or there are two constraints.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name in given.keys() - _HINTS.keys():
        known = tuple(sorted(_HINTS))
        raise InvalidRequest(f"{name} is unknown; known here: {', '.join(known)}", field=name, allowed=known)
    asked = [name for name in _CONSTRAINTS if name in given]
    if len(asked) > 1:
        raise InvalidRequest(f"{asked[0]} and {asked[1]} exclude each other", field=asked[1])
    grammar = _grammar(asked[0], given[asked[0]]) if asked else None
    return {name: _value(name, value) for name, value in given.items() if name not in _CONSTRAINTS}, grammar


def sampling(
    defaults: SamplingParams, given: Mapping[str, Any], grammar: Grammar | None, *, room: int, fills: bool
) -> SamplingParams:
    """The parameters of one prompt. `room`: tokens that are left for its answer; with `fills` that is the default."""
    wanted = {"max_tokens": room, **given} if fills else given
    return resolve(defaults, SamplingSettings(), {**wanted, "grammar": grammar}, room=room)


def _value(name: str, value: Any) -> Any:
    match name:
        case "stop":
            return _texts(name, [value] if isinstance(value, str) else value)
        case "stop_token_ids":
            return frozenset(_typed(name, number, int) for number in _items(name, value))
        case "logit_bias":
            if not isinstance(value, Mapping):
                raise InvalidRequest(f"logit_bias maps token ids to numbers, not {value!r}", field=name)
            return tuple((_typed(name, key, int), _typed(name, bias, float)) for key, bias in value.items())
        case _:
            return _typed(name, value, _HINTS[name])


def _typed(name: str, value: Any, hint: Any) -> Any:
    try:
        return fit(value, hint, name)
    except SettingsError as exc:
        raise InvalidRequest(str(exc), field=name) from None


def _items(name: str, value: Any) -> Sequence[Any]:
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
        raise InvalidRequest(f"{name} must be a list, not {value!r}", field=name)
    return list(value)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    return tuple(_typed(name, text, str) for text in _items(name, value))


def _grammar(name: str, value: Any) -> Grammar:
    match name:
        case "json_schema":
            return Grammar("json_schema", _schema(value), name)
        case "regex":
            return Grammar("regex", _typed(name, value, str), name)
        case "choice":
            return Grammar("choice", _texts(name, value), name)
        case _:
            return Grammar("lark", _typed(name, value, str), name)


def _schema(value: Any) -> str:
    """A schema's text; `model_json_schema` is pydantic's."""
    made = value.model_json_schema() if hasattr(value, "model_json_schema") else value
    if not isinstance(made, Mapping | bool):
        message = f"json_schema is a JSON Schema as a dict, or a pydantic model's class, not {value!r}"
        raise InvalidRequest(message, field="json_schema")
    try:
        return json.dumps(made, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidRequest(f"json_schema is no JSON: {exc}", field="json_schema") from exc
