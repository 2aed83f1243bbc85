"""OpenAI's messages as a chat template wants them: plain dicts, text contents, arguments as objects. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from coldstream.errors import InvalidRequest
from coldstream.serve.api.tasks import GivenImage, Rendered, render
from coldstream.serve.openai.common import text_of
from coldstream.serve.openai.schema import AssistantMessage, ImagePart, Message, Part, ToolMessage, UserMessage
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
    rendered = _rendered(task, messages, inputs)
    earlier = turns(messages[:-1], knows_tools=False)
    if earlier and earlier[0]["role"] == "system":
        return [*earlier, {"role": "user", "content": rendered.content}]
    first, *rest = rendered.messages
    return [first, *earlier, *rest] if rest else [*earlier, first]


def _rendered(task: TaskSettings, messages: Sequence[Message], inputs: Mapping[str, str]) -> Rendered:
    last, place = messages[-1], len(messages) - 1
    if not isinstance(last, UserMessage):
        message = f"the last message must be the user's: task {task.name!r} puts it into its template"
        raise InvalidRequest(message, field=f"messages.{place}.role", allowed=("user",))
    prompt = text_of(last.content) if task.prompt_input in task.variables else None
    return render(task, prompt, inputs, _images_of(last, place))


def images(task: TaskSettings | None, messages: Sequence[Message], inputs: Mapping[str, str]) -> list[GivenImage]:
    """The images of all turns in order, as `turns` and `task_turns` put them.

    Raises:
        InvalidRequest: as `task_turns`.
    """
    plain = messages if task is None else messages[:-1]
    found = [image for place, message in enumerate(plain) for image in _images_of(message, place)]
    return found if task is None else [*found, *_rendered(task, messages, inputs).images]


def _images_of(message: Message, place: int) -> list[GivenImage]:
    if isinstance(message.content, str) or not isinstance(message, UserMessage):
        return []
    return [
        GivenImage(f"messages.{place}.content.{index}.image_url.url", part.image_url.url)
        for index, part in enumerate(message.content)
        if isinstance(part, ImagePart)
    ]


def _user_content(message: UserMessage) -> str | list[Turn]:
    if isinstance(message.content, str) or not any(isinstance(part, ImagePart) for part in message.content):
        return text_of(message.content)
    return [
        {"type": "text", "text": part.text} if isinstance(part, Part) else {"type": "image"} for part in message.content
    ]


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
    content, opening = rest[place]["content"], f"{system['content']}\n\n"
    joined = f"{opening}{content}" if isinstance(content, str) else [{"type": "text", "text": opening}, *content]
    rest[place] = {**rest[place], "content": joined}
    return rest


def _turn(message: Message, field: str, knows_tools: bool) -> Turn:
    text = text_of(message.content)
    if isinstance(message, ToolMessage):
        if not knows_tools:
            return {"role": "user", "content": f"Result of {message.tool_call_id}: {text}"}
        return {"role": "tool", "content": text, "tool_call_id": message.tool_call_id}
    role = "system" if message.role == "developer" else message.role
    turn: Turn = {"role": role, "content": _user_content(message) if isinstance(message, UserMessage) else text}
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
