"""Tasks: what `{"type": NAME}` means. Templates become messages, and tasks describe themselves as JSON Schema. Pure.

A template is operator's text, an input is a user's. Only the template's own braces are read; what a user sends is put
in as it is, once, so `{question}` in a user's question stays those ten characters.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from coldstream.errors import InvalidRequest, UnknownTask
from coldstream.settings import InputSettings, SamplingSettings, Settings, TaskSettings, template_variables

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class GivenImage:
    """An image of a request as it was sent, and where; or an input's default, which is the operator's."""

    field: str
    text: str
    is_default: bool = False


Piece = str | GivenImage
"""A user's turn is a row of texts and images."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A task's template with its inputs: the user's turn, the system's text, and which inputs took their default.

    `values` are the inputs' texts by their names.
    """

    pieces: tuple[Piece, ...]
    system: str | None
    defaulted: tuple[str, ...] = ()
    values: Mapping[str, str] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """The text of the user's turn."""
        return "".join(piece for piece in self.pieces if isinstance(piece, str))

    @property
    def images(self) -> tuple[GivenImage, ...]:
        """The images of the user's turn, in order."""
        return tuple(piece for piece in self.pieces if isinstance(piece, GivenImage))

    @property
    def content(self) -> str | list[Message]:
        """The user's turn as a chat template takes it: a text, or parts where there are images."""
        return _content(self.pieces)

    @property
    def messages(self) -> list[Message]:
        """For a model that has a chat template."""
        turns = [{"role": "user", "content": self.content}]
        return [{"role": "system", "content": self.system}, *turns] if self.system else turns

    @property
    def folded(self) -> list[Message]:
        """The same for a chat template that knows no system role: its text opens the user's turn."""
        opening = (f"{self.system}\n\n",) if self.system else ()
        return [{"role": "user", "content": _content((*opening, *self.pieces))}]

    @property
    def text(self) -> str:
        """For a base model: plain text, to be continued."""
        return f"{self.system}\n\n{self.prompt}" if self.system else self.prompt

    def marked(self, marker: str) -> str:
        """For a base model that sees: the same with `marker` where the images stand."""
        turn = "".join(piece if isinstance(piece, str) else marker for piece in self.pieces)
        return f"{self.system}\n\n{turn}" if self.system else turn


def _content(pieces: Sequence[Piece]) -> str | list[Message]:
    if all(isinstance(piece, str) for piece in pieces):
        return "".join(map(str, pieces))
    return [
        {"type": "image"} if isinstance(piece, GivenImage) else {"type": "text", "text": piece}
        for piece in pieces
        if piece
    ]


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


def render(
    task: TaskSettings, prompt: str | None, inputs: Mapping[str, str], images: Sequence[GivenImage] = ()
) -> Rendered:
    """Fill the task's templates. `images` fill the image inputs that `inputs` leaves open, then the unnamed places.

    An image stands where the template names it; one that it does not name stands before the text.

    Raises:
        InvalidRequest: an input is missing, unknown, given twice or not one of its choices; it names the field.
    """
    values = _given(task, prompt, inputs)
    seen, unnamed = _images_given(task, values, images)
    defaulted = []
    for name in dict.fromkeys((*task.variables, *image_inputs(task))):
        if name in values or name in seen:
            continue
        default = _declared(task, name).default
        if default is None:
            raise _missing(task, name)
        defaulted.append(name)
        if name in image_inputs(task):
            seen[name] = GivenImage(f"inputs.{name}", default, is_default=True)
        else:
            values[name] = default
    system = fill(task.system, values) if task.system else None
    leading = [image for name, image in seen.items() if name not in template_variables(task.prompt)]
    pieces = (*leading, *unnamed, *_filled(task.prompt, values, seen))
    return Rendered(pieces, system, tuple(defaulted), values)


def fill(template: str, values: Mapping[str, str]) -> str:
    """Put the values in place of `{names}`; `{{` is a literal brace. One pass: values are never read as templates."""
    return "".join(str(piece) for piece in _filled(template, values, {}))


def image_inputs(task: TaskSettings) -> tuple[str, ...]:
    """The names of the task's image inputs, in the order in which a request's images fill them."""
    return tuple(name for name, declared in task.inputs.items() if declared.kind == "image")


def unnamed_images(task: TaskSettings) -> int:
    """How many images the task takes beside its named ones."""
    return max(0, task.images - len(image_inputs(task)))


def _filled(template: str, values: Mapping[str, str], images: Mapping[str, GivenImage]) -> list[Piece]:
    pieces: list[Piece] = []
    text = ""
    for literal, name, _, _ in string.Formatter().parse(template):
        text += literal
        if name is not None and name in images:
            pieces += [text, images[name]] if text else [images[name]]
            text = ""
        elif name is not None:
            text += values[name]
    return [*pieces, text] if text else pieces


def _images_given(
    task: TaskSettings, values: dict[str, str], images: Sequence[GivenImage]
) -> tuple[dict[str, GivenImage], tuple[GivenImage, ...]]:
    """The images by the input that they fill, and those for the unnamed places; takes image inputs out of `values`."""
    names, unnamed = image_inputs(task), unnamed_images(task)
    seen = {name: GivenImage(f"inputs.{name}", values.pop(name)) for name in names if name in values}
    left = [name for name in names if name not in seen]
    if len(images) > len(left) + unnamed:
        most = len(names) + unnamed
        what = f"takes {most} image{'s' if most > 1 else ''}" if most else "takes no image"
        raise InvalidRequest(f"task {task.name!r} {what}, but {len(images) + len(seen)} came", field=images[-1].field)
    rest = list(images)
    for name in left:
        if rest:
            seen[name] = rest.pop(0)
    if len(rest) < unnamed:
        raise InvalidRequest(
            f"image is missing; task {task.name!r} takes {task.images}, of which {len(images) + len(names)} came",
            field="image",
            schema=schema(task),
        )
    return {name: seen[name] for name in names if name in seen}, tuple(rest)


def _given(task: TaskSettings, prompt: str | None, inputs: Mapping[str, str]) -> dict[str, str]:
    variables = tuple(dict.fromkeys((*task.variables, *image_inputs(task))))
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
        f"{field} is missing; task {task.name!r} needs it{hint}{also}",
        field=field,
        allowed=declared.choices,
        schema=schema(task),
    )


def _declared(task: TaskSettings, name: str) -> InputSettings:
    return task.inputs.get(name, InputSettings())


def describe(task: TaskSettings) -> dict[str, Any]:
    """A task as the API shows it; `inputs` is a JSON Schema (draft 2020-12) of the request's `inputs`.

    `sampling` holds the defaults that a request's own values replace.
    """
    return {
        "type": task.name,
        "model": task.model,
        "help": task.help,
        "help_in": dict(task.help_in),
        "answer": task.answer,
        "examples": [{"name": name, "inputs": dict(inputs)} for name, inputs in task.examples.items()],
        "prompt_input": task.prompt_input if task.prompt_input in task.variables else None,
        "images": unnamed_images(task),
        "inputs": schema(task),
        "sampling": _sampling(task.sampling),
    }


def _sampling(chosen: SamplingSettings) -> dict[str, Any]:
    """What the task sets; what it leaves out is the model's own."""
    values = {item.name: getattr(chosen, item.name) for item in fields(chosen)}
    return {name: list(value) if name == "stop" else value for name, value in values.items() if value not in (None, ())}


def schema(task: TaskSettings) -> dict[str, Any]:
    """JSON Schema of a task's inputs. Image inputs are told apart by their contentMediaType.

    Their defaults are files of the server: that there is one is said by `x-has-default`.
    """
    names = tuple(dict.fromkeys([*task.variables, *task.inputs]))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {name: _property(_declared(task, name)) for name in names},
        "required": [name for name in names if _declared(task, name).default is None],
        "additionalProperties": False,
    }


def _property(declared: InputSettings) -> dict[str, Any]:
    item: dict[str, Any] = {"type": "string"}
    if declared.kind == "choice":
        item["enum"] = list(declared.choices)
    if declared.kind == "image":
        item |= {"contentMediaType": "image/*", "x-has-default": declared.default is not None}
    elif declared.default is not None:
        item["default"] = declared.default
    if declared.help_in:
        item["x-description-in"] = dict(declared.help_in)
    return item | ({"description": declared.help} if declared.help else {})


def sample(settings: Settings, task: str, name: str) -> GivenImage:
    """The image that stands for an image input of a task when none is sent.

    Raises:
        UnknownTask: there is no such task, no such image input, or it has no default; it names the field.
    """
    found = find_task(settings, task)
    names = tuple(key for key in image_inputs(found) if found.inputs[key].default is not None)
    if name not in names:
        which = f"; those of the task are: {', '.join(names)}" if names else ""
        message = f"task {found.name!r} has no image input {name[:100]!r} with a sample{which}"
        raise UnknownTask(message, field="name", allowed=names)
    return GivenImage(name, found.inputs[name].default or "", is_default=True)
