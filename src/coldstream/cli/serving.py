"""What `coldstream serve` does, and the short way to it: a plain command line is read without typer.

typer, with pydantic behind it, takes longer to import than the port takes to open. Whatever is not plain (--help, a
mistake, an abbreviation) is typer's, which reads every line the same way and says what is wrong with it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from coldstream import settings as configuration
from coldstream.errors import SettingsError
from coldstream.progress_line import is_terminal
from coldstream.settings import Settings
from coldstream.timeline import Span, Timeline

if TYPE_CHECKING:
    from coldstream.serve.startup import Startup

_logger = logging.getLogger(__name__)
_DEFAULT_CONFIG = Path("coldstream.toml")
_OF_MODELS = ("--device", "--engine", "--precision", "--weights", "--packed")
_WITH_VALUE = ("--config", "--host", "--port", *_OF_MODELS, "--timeline")


@dataclass(frozen=True, slots=True)
class Command:
    """The command line of `coldstream serve`."""

    uri: str | None = None
    config: Path | None = None
    host: str | None = None
    port: int | None = None
    device: str | None = None
    engine: str | None = None
    precision: str | None = None
    weights: str | None = None
    packed: str | None = None
    timeline: Path | None = None
    quiet: bool = False


def read_plain(words: Sequence[str]) -> Command | None:
    """The command that these words after `serve` mean; None where that takes a closer look."""
    found: dict[str, str] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        name = "uri" if not word.startswith("-") else "--quiet" if word in ("--quiet", "-q") else word
        if name in _WITH_VALUE and left and not left[0].startswith("-"):
            word = left.pop(0)
        elif name not in ("uri", "--quiet"):
            return None
        if not word or (name == "uri" and name in found):
            return None
        found[name] = word
    port = found.get("--port")
    if port is not None and not (port.isascii() and port.isdigit()):
        return None
    return Command(
        uri=found.get("uri"),
        config=Path(found["--config"]) if "--config" in found else None,
        host=found.get("--host"),
        port=int(port) if port is not None else None,
        device=found.get("--device"),
        engine=found.get("--engine"),
        precision=found.get("--precision"),
        weights=found.get("--weights"),
        packed=found.get("--packed"),
        timeline=Path(found["--timeline"]) if "--timeline" in found else None,
        quiet="--quiet" in found,
    )


def run(command: Command) -> None:
    """Serve until the process is asked to end.

    Raises:
        ColdstreamError: the settings are wrong, the port is taken, or every model failed.
    """
    clock = Timeline()
    clock.record(Span("interpreter and command line", 0.0, clock.now(), "MainThread"))
    chosen = _override(_read(command.uri, command.config), command)
    from coldstream.serve.main import serve

    try:
        serve(chosen, clock, watch=lambda start, bound: _watch(start, chosen, bound, quiet=command.quiet))
    finally:
        if command.timeline is not None:
            _write_trace(clock, command.timeline)


def _read(uri: str | None, config: Path | None) -> Settings:
    if uri is not None and config is not None:
        raise SettingsError("give a URI or --config, not both; models in the file have their own uri")
    if uri is not None:
        return configuration.for_uri(uri)
    if config is None and not _DEFAULT_CONFIG.exists():
        raise SettingsError("what to serve? `coldstream serve gs://bucket/model`, or --config FILE")
    return configuration.load(config or _DEFAULT_CONFIG)


def _override(settings: Settings, command: Command) -> Settings:
    server = settings.server
    wanted = command.port
    number = wanted if wanted is not None else configuration.port_from_environment(os.environ, server.port)
    if not 0 <= number <= 65535:
        raise SettingsError(f"--port {number} is not a port number; choose 0-65535")
    server = dataclasses.replace(server, host=command.host or server.host, port=number)
    models = settings.models
    if command.device is not None:
        device = configuration.check_device(command.device)
        models = {name: dataclasses.replace(model, device=device) for name, model in models.items()}
    if command.engine is not None:
        engine = configuration.check_engine(command.engine)
        models = {name: dataclasses.replace(model, engine=engine) for name, model in models.items()}
    if command.precision is not None:
        known = configuration.check_precision(command.precision)
        models = {name: dataclasses.replace(model, precision=known) for name, model in models.items()}
    if command.weights is not None:
        chosen = configuration.check_weights(command.weights)
        models = {name: dataclasses.replace(model, weights=chosen) for name, model in models.items()}
    if command.packed is not None:
        models = {name: dataclasses.replace(model, packed=command.packed) for name, model in models.items()}
    return dataclasses.replace(settings, server=server, models=models)


def _watch(start: Startup, settings: Settings, port: int, *, quiet: bool) -> None:
    """Say where the server listens, and show the load: bars for a person, lines for a log."""
    from coldstream.serve.observe.logs import configure, is_json

    form = settings.server.log_format
    configure(form=form, access_log=settings.server.access_log)
    if quiet:
        return
    if is_json(form, sys.stderr) or not is_terminal(sys.stderr):
        _log("listening", port=port, host=settings.server.host, models=list(settings.models))
        threading.Thread(target=_log_until_ready, args=(start,), name="progress", daemon=True).start()
        return
    threading.Thread(target=_show, args=(start, settings, port), name="progress", daemon=True).start()


def _show(start: Startup, settings: Settings, port: int) -> None:
    from coldstream.cli.progress import show  # on this thread, which nothing waits for

    show(start, settings, port)


def _log(message: str, **details: object) -> None:
    _logger.info(message, extra={"fields": details})


def _log_until_ready(start: Startup) -> None:
    said: dict[str, str] = {}
    while True:
        settled = start.status != "loading"
        for name, model in start.state()["models"].items():
            if said.get(name) != model["phase"]:
                said[name] = model["phase"]
                _log(f"model {name}: {model['phase']}", model=name, **{key: model[key] for key in ("bytes", "rate")})
        if settled:
            _log(f"server is {start.status}", seconds=round(start.timeline.now(), 3))
            return
        start.wait_for_change(0.25)


def _write_trace(clock: Timeline, file: Path) -> None:
    from coldstream.serve.observe.waterfall import perfetto

    try:
        file.write_text(json.dumps(perfetto(clock.spans())), encoding="utf-8")
    except OSError as exc:
        raise SettingsError(f"--timeline {file}: cannot be written ({exc.strerror}); choose another file") from exc
