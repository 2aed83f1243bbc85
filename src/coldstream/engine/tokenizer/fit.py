"""Conversations in the form that a chat template takes. Pure.

OpenAI's API takes turns in any order. Templates differ: some know one system turn, at the beginning, or none at all,
some raise an error unless user and assistant take turns, some take one call a turn or ids of nine characters. What a
template refuses, or leaves out, is tried in the nearest form that it may take, in which no text is lost:

    turns of one speaker in a row      are joined by a blank line
    system turns behind the first one  join it, in their order
    a system turn                      opens the first user's turn
    a conversation that the assistant begins  gets an empty user's turn before it
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

from coldstream.engine.tokenizer.control_tokens import unmarked
from coldstream.errors import InvalidRequest

Turn = dict[str, Any]
"""A message as a chat template reads it."""
Render = Callable[[list[Turn]], str]

_GAP = "\n\n"
_PATIENCE = 2.0
"""Seconds after which no further form is tried: what a template is slow to refuse is no matter of form."""
_CALL_ID = 9
"""Characters of an id that Mistral's templates take."""


def fitted(turns: list[Turn], render: Render) -> str:
    """The prompt's text of the first form that the template takes and in which every system's and user's text stands.

    Raises:
        InvalidRequest: as `render`, for the turns as they are; or the template leaves a text out in every form.
    """
    refusal: InvalidRequest | None = None
    end = time.monotonic() + _PATIENCE
    for form in _forms(turns, render):
        try:
            text = render(form)
        except InvalidRequest as error:
            refusal = refusal or error
            if time.monotonic() > end:
                break
            continue
        lost = _lost(form, text)
        if lost is None:
            return text
        message = f"the model's chat template leaves the text of the {lost}'s turn out of the prompt"
        refusal = refusal or InvalidRequest(message, field="messages")
    assert refusal is not None
    raise refusal


def _forms(turns: list[Turn], render: Render) -> Iterator[list[Turn]]:
    """The turns as they are, then further and further from it."""
    if _takes_system_turns(turns, render):
        yield turns
    else:
        turns = _gathered(turns)
        yield turns
    for change in (_objects, _short_ids, _one_call_a_turn, _joined, _gathered, _folded, _led):
        changed = change(turns)
        if changed != turns:
            turns = changed
            yield turns


def _takes_system_turns(turns: Sequence[Turn], render: Render) -> bool:
    """Whether a system turn may stand where these have one. A template that knows it at the beginning only may take it
    elsewhere without an error, as a speaker that the model has never met.
    """
    if not any(turn["role"] == "system" for turn in turns[1:]):
        return True
    tried = [{"role": role, "content": f"{role} {place}"} for place, role in enumerate(_PROBE)]
    try:
        return _lost(tried, render(tried)) is None
    except InvalidRequest:
        return False


_PROBE = ("system", "system", "user", "assistant", "system", "user")


def _lost(turns: Sequence[Turn], text: str) -> str | None:
    """The role of a system's or user's turn whose text is not in the prompt; templates may change its blanks.

    The prompt is read once, from one text to the next; some templates write a text elsewhere, so that a few are looked
    for in all of it.
    """
    said = [(turn["role"], part) for turn in turns if turn["role"] in _KEPT for part in _texts(turn["content"])]
    text = unmarked(text)
    if _first_missing(said, text, str.strip, elsewhere=0) is None:
        return None
    return _first_missing(said, _packed(text), _packed, elsewhere=_ELSEWHERE)


_KEPT = ("system", "user")
_ELSEWHERE = 16


def _first_missing(
    said: Sequence[tuple[str, str]], text: str, shown: Callable[[str], str], *, elsewhere: int
) -> str | None:
    place = 0
    for role, part in said:
        wanted = shown(part)
        found = text.find(wanted, place)
        if found >= 0:
            place = found + len(wanted)
        elif not elsewhere or wanted not in text:
            return role
        else:
            elsewhere -= 1
    return None


def _packed(text: str) -> str:
    return "".join(text.split())


def _texts(content: str | list[Turn]) -> list[str]:
    return [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]


def _objects(turns: list[Turn]) -> list[Turn]:
    """Arguments that are no JSON object become the only member of one."""

    def changed(call: Turn) -> Turn:
        arguments = call["function"]["arguments"]
        whole = arguments if isinstance(arguments, dict) else {"arguments": arguments}
        return {**call, "function": {**call["function"], "arguments": whole}}

    return _with_calls(turns, changed)


def _short_ids(turns: list[Turn]) -> list[Turn]:
    """Ids of calls, and of their results, in nine characters."""
    renamed = _with_calls(turns, lambda call: {**call, "id": _short(call["id"])})
    return [
        {**turn, "tool_call_id": _short(turn["tool_call_id"])} if "tool_call_id" in turn else turn for turn in renamed
    ]


def _short(number: str) -> str:
    fits = len(number) == _CALL_ID and number.isascii() and number.isalnum()
    return number if fits else hashlib.sha256(number.encode()).hexdigest()[:_CALL_ID]


def _with_calls(turns: list[Turn], change: Callable[[Turn], Turn]) -> list[Turn]:
    return [
        {**turn, "tool_calls": [change(call) for call in turn["tool_calls"]]} if "tool_calls" in turn else turn
        for turn in turns
    ]


def _one_call_a_turn(turns: list[Turn]) -> list[Turn]:
    """Each call in a turn of its own, with its results behind it."""
    made: list[Turn] = []
    for is_result, group in groupby(turns, key=lambda turn: turn["role"] == "tool"):
        if is_result and made and len(made[-1].get("tool_calls", ())) > 1:
            made += _answered_calls(made.pop(), list(group))
        else:
            made += group
    return made


def _answered_calls(turn: Turn, results: list[Turn]) -> list[Turn]:
    by_call: dict[str, list[Turn]] = {call["id"]: [] for call in turn["tool_calls"]}
    left = [result for result in results if result["tool_call_id"] not in by_call]
    for result in results:
        by_call.get(result["tool_call_id"], []).append(result)
    made: list[Turn] = []
    for call in turn["tool_calls"]:
        made.append({**turn, "content": "" if made else turn["content"], "tool_calls": [call]})
        made += by_call.pop(call["id"], ())
    return [*made, *left]


def _joined(turns: list[Turn]) -> list[Turn]:
    """One turn for what one speaker says in a row."""
    made: list[Turn] = []
    for speaker, group in groupby(enumerate(turns), key=lambda item: _speaker(*item)):
        row = [turn for _, turn in group]
        is_alone = len(row) == 1 or isinstance(speaker, int)
        made += row if is_alone else [{**row[0], "content": _together([turn["content"] for turn in row])}]
    return made


def _speaker(place: int, turn: Turn) -> Any:
    """What turns that can be joined have in common; those with calls and results stay alone."""
    return place if "tool_calls" in turn or turn["role"] == "tool" else (turn["role"], turn.get("name"))


def _together(contents: Sequence[Any]) -> Any:
    said = [content for content in contents if content]
    if all(isinstance(content, str) for content in said):
        return _GAP.join(said)
    gap = {"type": "text", "text": _GAP}
    parts = [[gap, *([{"type": "text", "text": item}] if isinstance(item, str) else item)] for item in said]
    return [part for piece in parts for part in piece][1:]


def _gathered(turns: list[Turn]) -> list[Turn]:
    """One system turn, at the beginning, and then one turn for what one speaker says in a row."""
    system = [turn["content"] for turn in turns if turn["role"] == "system"]
    if not system:
        return turns
    others = [turn for turn in turns if turn["role"] != "system"]
    return [{"role": "system", "content": _GAP.join(system)}, *_joined(others)]


def _folded(turns: list[Turn]) -> list[Turn]:
    """For a template without a system role: its text opens the first user's turn, which is made where none begins."""
    if turns[0]["role"] != "system":
        return turns
    system, rest = turns[0], turns[1:]
    if rest and rest[0]["role"] == "user":
        return [{**rest[0], "content": _together([system["content"], rest[0]["content"]])}, *rest[1:]]
    return [{"role": "user", "content": system["content"]}, *rest]


def _led(turns: list[Turn]) -> list[Turn]:
    """The user begins."""
    return turns if turns[0]["role"] == "user" else [{"role": "user", "content": ""}, *turns]
