"""coldstream.toml and the environment -> Settings; read once, by the cli only."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from coldstream.errors import SettingsError
from coldstream.settings.parse import record, table_of
from coldstream.settings.schema import (
    DEFAULT_PORT,
    DeploySettings,
    InputSettings,
    ModelSettings,
    Settings,
    TaskSettings,
)
from coldstream.settings.template import template_variables


def load(path: Path, *, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read coldstream.toml; `$PORT` overrides the port, as Cloud Run wants it.

    Raises:
        SettingsError: the file cannot be read, or a key in it is unknown, missing, of the wrong type or out of range.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise SettingsError(f"{path}: cannot be read ({exc.strerror}); name a file with --config") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path}: is not valid TOML: {exc}") from exc
    try:
        return _with_image_files(_settings(data, environ), path.absolute().parent)
    except SettingsError as exc:
        raise SettingsError(f"{path}: {exc}") from exc


def port_from_environment(environ: Mapping[str, str], default: int = DEFAULT_PORT) -> int:
    """`$PORT`, or the default.

    Raises:
        SettingsError: `$PORT` is not a port number.
    """
    text = environ.get("PORT", "")
    if not text:
        return default
    if not text.isascii() or not text.isdecimal() or not 0 <= int(text) <= 65535:
        raise SettingsError(f"PORT={text!r} is not a port number; set it to 0-65535")
    return int(text)


def _settings(data: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    settings = record(Settings, _with_the_only_model(data), "")
    if not settings.models:
        raise SettingsError('no [models.NAME] table; add one with uri = "gs://bucket/model"')
    tasks = settings.tasks or {"text": TaskSettings(name="text", model=next(iter(settings.models)))}
    for task in tasks.values():
        _check_task(task, settings.models)
    _check_instances(settings.deploy)
    port = port_from_environment(environ, settings.server.port)
    return replace(settings, tasks=tasks, server=replace(settings.server, port=port))


def _with_the_only_model(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """A task need not name its model where there is one."""
    models, tasks = table_of(data.get("models", {}), "models"), table_of(data.get("tasks", {}), "tasks")
    if len(models) != 1:
        return data
    named = {"model": next(iter(models))}
    return {**data, "tasks": {name: {**named, **table_of(task, f"tasks.{name}")} for name, task in tasks.items()}}


def _check_task(task: TaskSettings, models: Mapping[str, ModelSettings]) -> None:
    where = f"tasks.{task.name}"
    if task.model not in models:
        raise SettingsError(f"{where}.model = {task.model!r}, but the models are: {', '.join(sorted(models))}")
    try:
        variables, in_system = task.variables, template_variables(task.system or "")
    except SettingsError as exc:
        raise SettingsError(f"{where}: {exc}") from exc
    if task.sql_schema is not None and task.sql_schema not in variables:
        there = ", ".join(variables)
        raise SettingsError(f"{where}.sql_schema = {task.sql_schema!r} is not in the template; it has {there}")
    for name, item in task.inputs.items():
        _check_choice(item, f"{where}.inputs.{name}")
        if item.kind == "image" and name in in_system:
            raise SettingsError(f"{where}.system: an image cannot stand in the system text; put {{{name}}} into prompt")
        if item.kind != "image" and name not in variables:
            raise SettingsError(f"{where}.inputs.{name}: no {{{name}}} in the template; it has {', '.join(variables)}")
    for title, example in task.examples.items():
        _check_example(task, example, f"{where}.examples.{title}")


def _check_example(task: TaskSettings, example: Mapping[str, str], where: str) -> None:
    for name, value in example.items():
        item = task.inputs.get(name, InputSettings())
        if name not in task.variables or item.kind == "image":
            raise SettingsError(f"{where}.{name}: no text input of the task; those are {', '.join(task.variables)}")
        if item.kind == "choice" and value not in item.choices:
            raise SettingsError(f"{where}.{name} = {value!r} is not one of its choices: {', '.join(item.choices)}")


def _check_instances(deploy: DeploySettings) -> None:
    most = deploy.max_instances
    if most is not None and deploy.min_instances > most:
        raise SettingsError(f"deploy.min_instances = {deploy.min_instances} is more than max_instances = {most}")


def _check_choice(item: InputSettings, where: str) -> None:
    if item.kind == "choice" and not item.choices:
        raise SettingsError(f'{where}: kind "choice" needs choices = ["...", "..."]')
    if item.kind == "choice" and item.default is not None and item.default not in item.choices:
        raise SettingsError(f"{where}.default = {item.default!r} is not one of its choices")


def _with_image_files(settings: Settings, folder: Path) -> Settings:
    """Defaults of image inputs that are files, relative to coldstream.toml, as absolute paths that exist."""
    tasks = {
        name: replace(task, inputs={key: _with_file(item, folder, name, key) for key, item in task.inputs.items()})
        for name, task in settings.tasks.items()
    }
    return replace(settings, tasks=tasks)


def _with_file(item: InputSettings, folder: Path, task: str, name: str) -> InputSettings:
    if item.kind != "image" or item.default is None or item.default.startswith(("https://", "gs://", "data:")):
        return item
    path = folder / item.default
    if not path.is_file():
        raise SettingsError(f"tasks.{task}.inputs.{name}.default: there is no file {path}")
    return replace(item, default=str(path))
