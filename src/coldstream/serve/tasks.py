"""Tasks: what `{"type": NAME}` means. Templates become messages, and tasks describe themselves as JSON Schema. Pure.

A template is operator's text, an input is a user's. Only the template's own braces are read; what a user sends is put
in as it is, once, so `{question}` in somebody's question stays those ten characters.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coldstream.errors import InvalidRequest, UnknownTask
from coldstream.settings import InputSettings, Settings, TaskSettings

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A task's template with its inputs: the user's turn, the system's text, and which inputs took their default."""

    prompt: str
    system: str | None
    defaulted: tuple[str, ...] = ()

    @property
    def messages(self) -> list[Message]:
        """For a model that has a chat template."""
        turns = [{"role": "user", "content": self.prompt}]
        return [{"role": "system", "content": self.system}, *turns] if self.system else turns

    @property
    def folded(self) -> list[Message]:
        """The same for a chat template that knows no system role: its text opens the user's turn."""
        return [{"role": "user", "content": self.text}]

    @property
    def text(self) -> str:
        """For a base model: plain text, to be continued."""
        return f"{self.system}\n\n{self.prompt}" if self.system else self.prompt


def find_task(settings: Settings, name: str | None) -> TaskSettings:
    """The task of that name; the only one where no name is given.

    Raises:
        UnknownTask: there is no such task.
        InvalidRequest: no name, and several tasks.
    """
    names = tuple(sorted(settings.tasks))
    if name is None:
        if len(names) == 1:
            return settings.tasks[names[0]]
        raise InvalidRequest(f"type is missing; the tasks are: {', '.join(names)}", field="type", allowed=names)
    try:
        return settings.tasks[name]
    except KeyError:
        message = f"there is no task {name[:100]!r}; the tasks are: {', '.join(names)}"
        raise UnknownTask(message, field="type", allowed=names) from None


def unknown_model(settings: Settings, name: str) -> UnknownTask:
    """The error for a `model` that is neither a model nor a task."""
    names = tuple(sorted({*settings.models, *settings.tasks}))
    message = f"there is no model or task {name[:100]!r}; there are: {', '.join(names)}"
    return UnknownTask(message, field="model", allowed=names)


def render(task: TaskSettings, prompt: str | None, inputs: Mapping[str, str]) -> Rendered:
    """Fill the task's templates.

    Raises:
        InvalidRequest: an input is missing, unknown, given twice or not one of its choices; it names the field.
    """
    values = _given(task, prompt, inputs)
    defaulted = []
    for name in task.variables:
        if name in values:
            continue
        default = _declared(task, name).default
        if default is None:
            raise _missing(task, name)
        values[name] = default
        defaulted.append(name)
    system = fill(task.system, values) if task.system else None
    return Rendered(fill(task.prompt, values), system, tuple(defaulted))


def fill(template: str, values: Mapping[str, str]) -> str:
    """Put the values in place of `{names}`; `{{` is a literal brace. One pass: values are never read as templates."""
    pieces = []
    for literal, name, _, _ in string.Formatter().parse(template):
        pieces.append(literal)
        if name is not None:
            pieces.append(values[name])
    return "".join(pieces)


def _given(task: TaskSettings, prompt: str | None, inputs: Mapping[str, str]) -> dict[str, str]:
    variables = task.variables
    values = {}
    for name, value in inputs.items():
        if name not in variables:
            message = f"inputs.{name[:100]} is unknown to task {task.name!r}; its inputs are: {', '.join(variables)}"
            raise InvalidRequest(message, field=f"inputs.{name[:100]}", allowed=variables)
        _check_choice(_declared(task, name), value, f"inputs.{name}")
        values[name] = value
    if prompt is not None:
        values[_prompt_variable(task, values)] = prompt
        _check_choice(_declared(task, task.prompt_input), prompt, "prompt")
    return values


def _prompt_variable(task: TaskSettings, values: Mapping[str, str]) -> str:
    name = task.prompt_input
    if name not in task.variables:
        message = f"task {task.name!r} takes no prompt; send its inputs instead: {', '.join(task.variables)}"
        raise InvalidRequest(message, field="prompt", allowed=task.variables)
    if name in values:
        raise InvalidRequest(f"prompt and inputs.{name} say the same thing; send one of them", field="prompt")
    return name


def _check_choice(declared: InputSettings, value: str, field: str) -> None:
    if declared.kind == "choice" and value not in declared.choices:
        message = f"{field} = {value[:60]!r} is not one of: {', '.join(declared.choices)}"
        raise InvalidRequest(message, field=field, allowed=declared.choices)


def _missing(task: TaskSettings, name: str) -> InvalidRequest:
    declared = _declared(task, name)
    hint = f" ({declared.help})" if declared.help else ""
    also = f"; it may also be sent as inputs.{name}" if name == task.prompt_input and name != "prompt" else ""
    field = "prompt" if name == task.prompt_input else f"inputs.{name}"
    return InvalidRequest(
        f"{field} is missing; task {task.name!r} needs it{hint}{also}", field=field, allowed=declared.choices
    )


def _declared(task: TaskSettings, name: str) -> InputSettings:
    return task.inputs.get(name, InputSettings())


def describe(task: TaskSettings) -> dict[str, Any]:
    """A task as the API shows it; `inputs` is a JSON Schema (draft 2020-12) of the request's `inputs`."""
    return {
        "type": task.name,
        "model": task.model,
        "help": task.help,
        "prompt_input": task.prompt_input if task.prompt_input in task.variables else None,
        "images": task.images,
        "inputs": schema(task),
    }


def schema(task: TaskSettings) -> dict[str, Any]:
    """JSON Schema of a task's inputs. Image inputs are told apart by their contentMediaType."""
    names = tuple(dict.fromkeys([*task.variables, *task.inputs]))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {name: _property(_declared(task, name)) for name in names},
        "required": [name for name in task.variables if _declared(task, name).default is None],
        "additionalProperties": False,
    }


def _property(declared: InputSettings) -> dict[str, Any]:
    item: dict[str, Any] = {"type": "string"}
    if declared.kind == "choice":
        item["enum"] = list(declared.choices)
    if declared.kind == "image":
        item["contentMediaType"] = "image/*"
    if declared.default is not None:
        item["default"] = declared.default
    return item | ({"description": declared.help} if declared.help else {})
