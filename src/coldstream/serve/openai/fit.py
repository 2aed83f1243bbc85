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
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from coldstream.errors import InvalidRequest
from coldstream.serve.openai.messages import Turn

Render = Callable[[list[Turn]], str]

_GAP = "\n\n"
_CALL_ID = 9
"""Characters of an id that Mistral's templates take."""


def fitted(turns: list[Turn], render: Render) -> str:
    """The prompt's text of the first form that the template takes and in which every system's and user's text stands.

    Raises:
        InvalidRequest: as `render`, for the turns as they are; or the template leaves a text out in every form.
    """
    refusal: InvalidRequest | None = None
    for form in _forms(turns, render):
        try:
            text = render(form)
        except InvalidRequest as error:
            refusal = refusal or error
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
    """The role of a system's or user's turn whose text is not in the prompt; templates may change its blanks."""
    packed: str | None = None
    for turn in turns:
        for part in _texts(turn["content"]) if turn["role"] in ("system", "user") else ():
            if part.strip() in text:
                continue
            packed = packed if packed is not None else "".join(text.split())
            if "".join(part.split()) not in packed:
                return str(turn["role"])
    return None


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
    """Each call in a turn of its own, with its result behind it."""
    left, made = list(turns), []
    while left:
        turn = left.pop(0)
        calls = turn.get("tool_calls", ())
        if len(calls) < 2:
            made.append(turn)
            continue
        results = []
        while left and left[0]["role"] == "tool":
            results.append(left.pop(0))
        for place, call in enumerate(calls):
            made.append({**turn, "content": turn["content"] if not place else "", "tool_calls": [call]})
            made += [result for result in results if result["tool_call_id"] == call["id"]]
        known = {call["id"] for call in calls}
        made += [result for result in results if result["tool_call_id"] not in known]
    return made


def _joined(turns: list[Turn]) -> list[Turn]:
    """One turn for what one speaker says in a row."""
    made: list[Turn] = []
    for turn in turns:
        if made and _same_speaker(made[-1], turn):
            made[-1] = {**made[-1], "content": _both(made[-1]["content"], turn["content"])}
        else:
            made.append(turn)
    return made


def _same_speaker(one: Turn, other: Turn) -> bool:
    is_plain = not any("tool_calls" in turn or turn["role"] == "tool" for turn in (one, other))
    return is_plain and (one["role"], one.get("name")) == (other["role"], other.get("name"))


def _both(one: Any, other: Any) -> Any:
    if not one or not other:
        return one or other
    if isinstance(one, str) and isinstance(other, str):
        return f"{one}{_GAP}{other}"
    return [*_parts(one), {"type": "text", "text": _GAP}, *_parts(other)]


def _parts(content: Any) -> list[Turn]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


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
        return [{**rest[0], "content": _both(system["content"], rest[0]["content"])}, *rest[1:]]
    return [{"role": "user", "content": system["content"]}, *rest]


def _led(turns: list[Turn]) -> list[Turn]:
    """The user begins."""
    return turns if turns[0]["role"] == "user" else [{"role": "user", "content": ""}, *turns]
