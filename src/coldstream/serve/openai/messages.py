"""OpenAI's messages as a chat template wants them: plain dicts, text contents, arguments as objects. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from coldstream.errors import InvalidRequest
from coldstream.serve.openai.common import text_of
from coldstream.serve.openai.schema import AssistantMessage, Message, ToolMessage, UserMessage
from coldstream.serve.tasks import render
from coldstream.settings import TaskSettings

Turn = dict[str, Any]


def turns(messages: Sequence[Message], *, knows_tools: bool) -> list[Turn]:
    """The messages as dicts. A template that does not know tools gets calls and results as text of the two speakers.

    Raises:
        InvalidRequest: the arguments of an earlier call are no JSON object.
    """
    return [_turn(message, f"messages.{place}", knows_tools) for place, message in enumerate(messages)]


def task_turns(task: TaskSettings, messages: Sequence[Message], inputs: Mapping[str, str]) -> list[Turn]:
    """For `model` = a task: the last user's text goes through the task's template, and its system text comes first,
    unless the request brings its own.

    Raises:
        InvalidRequest: the last message is not a user's, or an input is missing.
    """
    last = messages[-1]
    if not isinstance(last, UserMessage):
        message = f"the last message must be the user's: task {task.name!r} puts it into its template"
        raise InvalidRequest(message, field=f"messages.{len(messages) - 1}.role", allowed=("user",))
    prompt = text_of(last.content)
    rendered = render(task, prompt if task.prompt_input in task.variables else None, inputs)
    earlier = turns(messages[:-1], knows_tools=False)
    if earlier and earlier[0]["role"] == "system":
        return [*earlier, {"role": "user", "content": rendered.prompt}]
    first, *rest = rendered.messages
    return [first, *earlier, *rest] if rest else [*earlier, first]


def with_instruction(messages: list[Turn], text: str) -> list[Turn]:
    """The messages with a text added to the system's."""
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def folded(messages: list[Turn]) -> list[Turn]:
    """For a template without a system role: its text opens the first user's turn."""
    system, *rest = messages
    place = next((index for index, turn in enumerate(rest) if turn["role"] == "user"), None)
    if place is None:
        return [{"role": "user", "content": system["content"]}, *rest]
    rest[place] = {**rest[place], "content": f"{system['content']}\n\n{rest[place]['content']}"}
    return rest


def _turn(message: Message, field: str, knows_tools: bool) -> Turn:
    text = text_of(message.content)
    if isinstance(message, ToolMessage):
        if not knows_tools:
            return {"role": "user", "content": f"Result of {message.tool_call_id}: {text}"}
        return {"role": "tool", "content": text, "tool_call_id": message.tool_call_id}
    role = "system" if message.role == "developer" else message.role
    turn: Turn = {"role": role, "content": text}
    if message.name is not None:
        turn["name"] = message.name
    if isinstance(message, AssistantMessage) and message.tool_calls:
        calls = [_call(call, f"{field}.tool_calls.{place}") for place, call in enumerate(message.tool_calls)]
        if knows_tools:
            return turn | {"tool_calls": calls}
        written = "\n".join(json.dumps(call["function"], ensure_ascii=False) for call in calls)
        turn["content"] = f"{text}\n{written}" if text else written
    return turn


def _call(call: Any, field: str) -> Turn:
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError) as exc:
        raise InvalidRequest(f"{field}.function.arguments is not valid JSON: {exc}", field=field) from exc
    if not isinstance(arguments, dict):
        raise InvalidRequest(f"{field}.function.arguments must be a JSON object", field=field)
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}
