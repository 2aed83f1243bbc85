"""OpenAI's messages as a chat template wants them: plain dicts, text contents, arguments as objects. Pure.

A template that knows no tools gets them as text, in the form that Hermes models are trained on and others can read:

    system:     ... <tools> a JSON object a line </tools> ...
    assistant:  <tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>
    user:       <tool_response>{"name": "f", "content": "what f answered"}</tool_response>
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from coldstream.engine.tokenizer.fit import Turn
from coldstream.errors import InvalidRequest
from coldstream.serve.api.tasks import GivenImage, Rendered, render
from coldstream.serve.openai.common import text_of
from coldstream.serve.openai.schema import (
    AssistantMessage,
    CalledFunction,
    FunctionMessage,
    ImagePart,
    Message,
    Part,
    ToolMessage,
    UserMessage,
)
from coldstream.settings import TaskSettings


def turns(messages: Sequence[Message], *, knows_tools: bool) -> list[Turn]:
    """The messages as dicts; calls and results as text, where the template does not know tools."""
    names = _called(messages)
    return [_turn(message, place, names, knows_tools) for place, message in enumerate(messages)]


def task_turns(
    task: TaskSettings, messages: Sequence[Message], inputs: Mapping[str, str], *, knows_tools: bool
) -> list[Turn]:
    """For `model` = a task: the last user's text goes through the task's template, and its system text comes first,
    unless the request brings its own.

    Raises:
        InvalidRequest: the last message is not a user's, or an input is missing.
    """
    rendered = _rendered(task, messages, inputs)
    earlier = turns(messages[:-1], knows_tools=knows_tools)
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


def with_instruction(messages: list[Turn], text: str) -> list[Turn]:
    """The messages with a text added to the system's."""
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


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


def _called(messages: Sequence[Message]) -> dict[str, str]:
    """The name of the function by the id of its call."""
    assistants = [message for message in messages if isinstance(message, AssistantMessage)]
    return {call.id: call.function.name for message in assistants for call in message.tool_calls or ()}


def _turn(message: Message, place: int, names: Mapping[str, str], knows_tools: bool) -> Turn:
    if isinstance(message, ToolMessage | FunctionMessage):
        return _result(message, names, knows_tools)
    if isinstance(message, AssistantMessage):
        return _answer(message, place, knows_tools)
    role = "system" if message.role == "developer" else message.role
    content = _user_content(message) if isinstance(message, UserMessage) else text_of(message.content)
    return _named({"role": role, "content": content}, message.name)


def _named(turn: Turn, name: str | None) -> Turn:
    return turn if name is None else turn | {"name": name}


def _result(message: ToolMessage | FunctionMessage, names: Mapping[str, str], knows_tools: bool) -> Turn:
    text = text_of(message.content)
    number = message.tool_call_id if isinstance(message, ToolMessage) else _OLD_ID
    name = message.name or names.get(number)
    if knows_tools:
        return _named({"role": "tool", "content": text, "tool_call_id": number}, name)
    written = json.dumps({"name": name or number, "content": text}, ensure_ascii=False)
    return {"role": "user", "content": f"<tool_response>\n{written}\n</tool_response>"}


def _answer(message: AssistantMessage, place: int, knows_tools: bool) -> Turn:
    text = text_of(message.content) or message.refusal or ""
    turn = _named({"role": "assistant", "content": text}, message.name)
    if message.reasoning_content:
        turn["reasoning_content"] = message.reasoning_content
    calls = [_call(call.id, call.function) for call in message.tool_calls or ()]
    if message.function_call is not None:
        calls.append(_call(_OLD_ID, message.function_call))
    if not calls:
        return turn
    if knows_tools:
        return turn | {"tool_calls": calls}
    written = [f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>" for call in calls]
    return turn | {"content": "\n".join([*([text] if text else []), *written])}


_OLD_ID = "call_000000000"
"""Calls in the older form have no id, and there is one at a time."""


def _call(number: str, function: CalledFunction) -> Turn:
    called = {"name": function.name, "arguments": _arguments(function.arguments)}
    return {"id": number, "type": "function", "function": called}


def _arguments(given: str | dict[str, Any] | None) -> Any:
    """An object, as templates want it; what is none is what the model wrote, and passed on as it stands."""
    if not given or isinstance(given, dict):
        return given or {}
    try:
        value = json.loads(given)
    except (ValueError, RecursionError):
        return given
    return value if isinstance(value, dict) else given
