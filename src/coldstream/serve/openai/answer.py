"""What a chat's output says: text and calls, whole or as the deltas of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coldstream.engine.request import TokenEvent, TokenLogprob
from coldstream.serve.openai import logprobs, tools
from coldstream.serve.openai.asked import Asked
from coldstream.serve.openai.tool_choice import Tools
from coldstream.serve.requests.inference import Result


def choice(asked: Asked, index: int, result: Result) -> dict[str, Any]:
    """The choice of a finished sequence."""
    text, calls = _split(asked.tools, result)
    message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
    if calls:
        message["tool_calls"] = [call.as_json() for call in calls]
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs.chat(result.logprobs) if asked.body.logprobs else None,
        "finish_reason": _finish(asked.tools, result, calls),
    }


def _split(chosen: Tools, result: Result) -> tuple[str, list[tools.Call]]:
    """What of the output is text, and what are calls."""
    if chosen.named is not None:
        return "", [tools.Call(chosen.named, result.text)]
    if chosen.forced:
        call = tools.forced_call(result.text)
        return ("", [call]) if call else (result.text, [])
    if not chosen.functions:
        return result.text, []
    reader = chosen.reader()
    text = reader.push(result.text)
    rest, calls = reader.end()
    return text + rest, calls if chosen.parallel else calls[:1]


def _finish(chosen: Tools, result: Result, calls: Sequence[tools.Call]) -> str:
    """A named function's call ends in "stop", as OpenAI's do; a call that was cut off ends in "length"."""
    if calls and result.finish_reason == "stop" and chosen.named is None:
        return "tool_calls"
    return str(result.finish_reason)


class Speaker:
    """Turns one sequence's events into the deltas of its choice."""

    def __init__(self, asked: Asked, index: int) -> None:
        self._asked = asked
        self._index = index
        self._reader = asked.tools.reader()
        self._begun = False
        self.result = Result()

    def chunks(self, event: TokenEvent) -> list[dict[str, Any]]:
        """The choices that this event makes, one a chunk."""
        self.result.add(event)
        made: list[dict[str, Any]] = []
        for delta in self._deltas(event.text):
            made.append(self._choice(delta, event.logprobs if not made else ()))
        if not made and event.logprobs:
            made.append(self._choice({}, event.logprobs))
        if event.finish_reason is not None:
            made += self._last()
        return made

    def _deltas(self, text: str) -> list[dict[str, Any]]:
        chosen = self._asked.tools
        opening: list[dict[str, Any]] = []
        if not self._begun:
            self._begun = True
            opening = [{"role": "assistant", "content": None if chosen.forced else "", "refusal": None}]
            if chosen.named is not None:
                opening.append(_call_delta(0, tools.Call(chosen.named, "")))
        if chosen.named is not None:
            return [*opening, _arguments_delta(text)] if text else opening
        certain = "" if chosen.forced else self._reader.push(text) if chosen.functions else text
        return [*opening, {"content": certain}] if certain else opening

    def _last(self) -> list[dict[str, Any]]:
        chosen = self._asked.tools
        calls: list[tools.Call] = []
        made: list[dict[str, Any]] = []
        if chosen.named is None and chosen.functions:
            rest, calls = self._rest()
            if rest:
                made.append(self._choice({"content": rest}))
            made += [self._choice(_call_delta(place, call)) for place, call in enumerate(calls)]
        finish = _finish(chosen, self.result, calls)
        return [*made, self._choice({}, finish=finish)]

    def _rest(self) -> tuple[str, list[tools.Call]]:
        chosen = self._asked.tools
        if chosen.forced:
            call = tools.forced_call(self.result.text)
            return ("", [call]) if call else (self.result.text, [])
        rest, calls = self._reader.end()
        return rest, calls if chosen.parallel else calls[:1]

    def _choice(
        self, delta: dict[str, Any], scored: Sequence[TokenLogprob] = (), *, finish: str | None = None
    ) -> dict[str, Any]:
        shown = logprobs.chat(scored) if self._asked.body.logprobs and scored else None
        return {"index": self._index, "delta": delta, "logprobs": shown, "finish_reason": finish}


def _call_delta(place: int, call: tools.Call) -> dict[str, Any]:
    return {"tool_calls": [{"index": place, **call.as_json()}]}


def _arguments_delta(text: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
