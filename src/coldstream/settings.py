"""coldstream.toml, the environment and the command line, as frozen dataclasses; read once, by the cli only.

    [server]                      # all optional
    host = "0.0.0.0"
    port = 8080

    [models.gemma]
    uri = "gs://bucket/gemma"

    [tasks.sql]
    model = "gemma"
    prompt = "Schema: {context}\\nQuestion: {question}"
    [tasks.sql.inputs.question]
    help = "What to ask of the database"
    [tasks.sql.sampling]
    temperature = 0.0

Standard library only: this is read before anything else is imported.
"""

from __future__ import annotations

import os
import string
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from coldstream.errors import SettingsError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Precision = Literal["auto", "float32", "bfloat16", "int8"]
InputKind = Literal["text", "choice", "image"]

DEFAULT_PORT = 8080

_Record = TypeVar("_Record", bound="DataclassInstance")
_TYPE_NAMES = {str: "string", int: "whole number", float: "number", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """Sampling defaults of a task; None leaves the model's generation_config in force."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class InputSettings:
    """One variable of a task's template. Without a default it must be given."""

    kind: InputKind = "text"
    default: str | None = None
    choices: tuple[str, ...] = ()
    help: str = ""


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """A checkpoint to serve. `max_context` is in tokens; None means the model's own limit, as memory allows."""

    name: str
    uri: str
    precision: Precision = "auto"
    max_context: int | None = None


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """What `{"type": NAME}` means: a model, a template, sampling defaults.

    `prompt_input` is the variable that the request's `prompt` field fills.
    """

    name: str
    model: str
    prompt: str = "{prompt}"
    system: str | None = None
    prompt_input: str = "prompt"
    images: int = 0
    help: str = ""
    inputs: Mapping[str, InputSettings] = field(default_factory=lambda: MappingProxyType({}))
    sampling: SamplingSettings = SamplingSettings()

    @property
    def variables(self) -> tuple[str, ...]:
        """The names in the system text and the prompt template, each once, in order of appearance."""
        names = [*template_variables(self.system or ""), *template_variables(self.prompt)]
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How the HTTP server listens, limits and protects itself. Times in seconds, sizes in bytes.

    API keys come from the environment variable or the file that is named here, never from this file itself.
    `api_keys_secret` is the Secret Manager secret that `coldstream deploy` mounts as such a variable.
    """

    host: str = "0.0.0.0"  # noqa: S104  Cloud Run reaches the container from outside; IAM guards the door
    port: int = DEFAULT_PORT
    max_queue: int = 64
    max_queue_tokens: int = 65536
    max_body_bytes: int = 32 * 1024 * 1024
    request_timeout: float = 300.0
    grace: float = 10.0
    api_keys_env: str | None = None
    api_keys_file: str | None = None
    api_keys_secret: str | None = None
    cors_origins: tuple[str, ...] = ()
    playground: bool = True
    log_prompts: bool = False


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """Which images a request may carry, and from where. Sizes in bytes and pixels, times in seconds.

    Nothing is fetched unless it is named here: `url_hosts` ("images.example.com", "*.example.com", "host:8443"; "*" is
    every public host) for https URLs, `buckets` for gs:// objects. `decoders` pictures are decoded at a time.
    """

    max_count: int = 8
    max_bytes: int = 20 * 1024 * 1024
    max_pixels: int = 50_000_000
    formats: tuple[str, ...] = ("jpeg", "png", "webp", "gif")
    url_hosts: tuple[str, ...] = ()
    buckets: tuple[str, ...] = ()
    fetch_seconds: float = 10.0
    decoders: int = 2


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """How bytes are fetched. None lets the plan choose."""

    max_bytes_in_flight: int | None = None
    concurrency: int | None = None
    deadline: float = 1800.0


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How many sequences run together, and how much memory their keys and values may take (bytes; None: by cgroup)."""

    max_sequences: int = 16
    step_tokens: int = 512
    kv_bytes: int | None = None
    prefix_cache: bool = True
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """All of coldstream.toml."""

    models: Mapping[str, ModelSettings]
    tasks: Mapping[str, TaskSettings]
    server: ServerSettings = ServerSettings()
    load: LoadSettings = LoadSettings()
    engine: EngineSettings = EngineSettings()
    images: ImageSettings = ImageSettings()
    deploy: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


def for_uri(uri: str) -> Settings:
    """The settings of `coldstream serve URI` without a file: one model, and the one task `text`."""
    model = ModelSettings(name="default", uri=uri)
    return Settings(models={"default": model}, tasks={"text": TaskSettings(name="text", model="default")})


def load(path: Path, *, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read coldstream.toml; `$PORT` overrides the port, as Cloud Run wants it.

    Raises:
        SettingsError: the file cannot be read, or a key in it is unknown, missing or of the wrong type.
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


def check_precision(text: str) -> Precision:
    """A precision's name as given on the command line.

    Raises:
        SettingsError: there is none of that name.
    """
    precision: Precision = _fit(text, Precision, "--precision")
    return precision


def template_variables(template: str) -> tuple[str, ...]:
    """The names in `{braces}`; `{{` and `}}` are literal braces.

    Raises:
        SettingsError: something other than a plain name stands in the braces.
    """
    names: list[str] = []
    try:
        for _, name, spec, conversion in string.Formatter().parse(template):
            if name is None:
                continue
            if not name.isidentifier() or spec or conversion:
                raise SettingsError(f"{{{name}}} in a template: only plain names stand in braces; write {{{{ for {{")
            names.append(name)
    except ValueError as exc:
        raise SettingsError(f"a template has unbalanced braces ({exc}); write {{{{ for a literal {{") from exc
    return tuple(dict.fromkeys(names))


def _settings(data: dict[str, Any], environ: Mapping[str, str]) -> Settings:
    _refuse_unknown(data, {item.name for item in fields(Settings)}, "")
    models = {
        name: _record(ModelSettings, _table(value, f"models.{name}"), f"models.{name}", name=name)
        for name, value in _table(data.get("models", {}), "models").items()
    }
    if not models:
        raise SettingsError('no [models.NAME] table; add one with uri = "gs://bucket/model"')
    tasks = {
        name: _task(name, _table(value, f"tasks.{name}"), models)
        for name, value in _table(data.get("tasks", {}), "tasks").items()
    }
    if not tasks:
        tasks = {"text": TaskSettings(name="text", model=next(iter(models)))}
    server = _record(ServerSettings, _table(data.get("server", {}), "server"), "server")
    return Settings(
        models=models,
        tasks=tasks,
        server=replace(server, port=port_from_environment(environ, server.port)),
        load=_record(LoadSettings, _table(data.get("load", {}), "load"), "load"),
        engine=_record(EngineSettings, _table(data.get("engine", {}), "engine"), "engine"),
        images=_images(data),
        deploy=_table(data.get("deploy", {}), "deploy"),
    )


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


def _images(data: Mapping[str, Any]) -> ImageSettings:
    item = _record(ImageSettings, _table(data.get("images", {}), "images"), "images")
    known = ImageSettings().formats
    for name in item.formats:
        if name not in known:
            raise SettingsError(f"images.formats: {name!r} is unknown; known here: {', '.join(known)}")
    for key in ("max_count", "max_bytes", "max_pixels", "fetch_seconds", "decoders"):
        if getattr(item, key) <= 0:
            raise SettingsError(f"images.{key} = {getattr(item, key)} must be more than 0")
    return item


def _task(name: str, table: dict[str, Any], models: Mapping[str, ModelSettings]) -> TaskSettings:
    where = f"tasks.{name}"
    plain = {key: value for key, value in table.items() if key not in ("inputs", "sampling")}
    if "model" not in plain and len(models) == 1:
        plain["model"] = next(iter(models))
    inputs = {
        key: _input(_table(value, f"{where}.inputs.{key}"), f"{where}.inputs.{key}")
        for key, value in _table(table.get("inputs", {}), f"{where}.inputs").items()
    }
    sampling = _record(SamplingSettings, _table(table.get("sampling", {}), f"{where}.sampling"), f"{where}.sampling")
    task = _record(TaskSettings, plain, where, name=name, inputs=inputs, sampling=sampling)
    if task.model not in models:
        raise SettingsError(f"{where}.model = {task.model!r}, but the models are: {', '.join(sorted(models))}")
    try:
        variables = task.variables
    except SettingsError as exc:
        raise SettingsError(f"{where}: {exc}") from exc
    for key in template_variables(task.system or ""):
        if key in inputs and inputs[key].kind == "image":
            raise SettingsError(f"{where}.system: an image cannot stand in the system text; put {{{key}}} into prompt")
    for key, value in inputs.items():
        if key not in variables and value.kind != "image":
            raise SettingsError(f"{where}.inputs.{key}: no {{{key}}} in the template; it has {', '.join(variables)}")
    return task


def _input(table: dict[str, Any], where: str) -> InputSettings:
    item = _record(InputSettings, table, where)
    if item.kind == "choice" and not item.choices:
        raise SettingsError(f'{where}: kind "choice" needs choices = ["...", "..."]')
    if item.kind == "choice" and item.default is not None and item.default not in item.choices:
        raise SettingsError(f"{where}.default = {item.default!r} is not one of its choices")
    return item


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SettingsError(f"{where} must be a table, not {value!r}")
    return value


def _refuse_unknown(table: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in table:
        if key not in known:
            place = f"{where}.{key}" if where else key
            raise SettingsError(f"{place} is unknown; known here: {', '.join(sorted(known))}")


def _record(cls: type[_Record], table: Mapping[str, Any], where: str, **given: Any) -> _Record:
    """A frozen dataclass from a table: unknown keys, missing keys and wrong types are refused by name."""
    hints = get_type_hints(cls)
    known = {item.name for item in fields(cls)} - given.keys()
    _refuse_unknown(table, known, where)
    values = {key: _fit(value, hints[key], f"{where}.{key}") for key, value in table.items()}
    for item in fields(cls):
        if item.name in known - values.keys() and item.default is MISSING and item.default_factory is MISSING:
            raise SettingsError(f"{where}.{item.name} is missing")
    return cls(**values, **given)


def _fit(value: Any, hint: Any, where: str) -> Any:
    """The value, as the annotated type wants it: a list becomes a tuple, an int will do for a float."""
    if get_origin(hint) in (Union, UnionType):
        hint = next(item for item in get_args(hint) if item is not NoneType)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise SettingsError(f"{where} = {value!r}; allowed: {', '.join(map(str, get_args(hint)))}")
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise SettingsError(f"{where} must be a list of strings, not {value!r}")
        return tuple(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise SettingsError(f"{where} must be a {_TYPE_NAMES[hint]}, not {value!r}")
    return value
