"""`coldstream serve`: stream a checkpoint into memory and answer over HTTP."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coldstream import settings as configuration
from coldstream.errors import SettingsError
from coldstream.settings import Settings
from coldstream.timeline import Span, Timeline

if TYPE_CHECKING:
    from coldstream.serve.startup import Startup

_DEFAULT_CONFIG = Path("coldstream.toml")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(serve)


def serve(
    uri: Annotated[
        str | None, typer.Argument(help="The checkpoint's folder: gs://, s3://, az://, https:// or a path.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Several models and tasks: a coldstream.toml. Default: ./coldstream.toml.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 0.0.0.0]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 chooses a free one. [default: $PORT or 8080]")] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, float32, bfloat16 or int8; auto picks by the CPU and says why.")
    ] = None,
    timeline: Annotated[
        Path | None, typer.Option(help="Write the start as a trace for ui.perfetto.dev when the server ends.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on the terminal.")] = False,
) -> None:
    """Stream a model out of object storage into memory, and answer POST /generate and the OpenAI API.

    coldstream serve gs://bucket/model

    The port answers at once: GET /readyz says how far the load is, GET /startup.svg draws it. Requests that come early
    wait. Nothing is written to disk. Credentials are Google's application default credentials; STORAGE_EMULATOR_HOST is
    honoured.
    """
    clock = Timeline()
    clock.record(Span("interpreter and command line", 0.0, clock.now(), "MainThread"))
    chosen = _override(_read(uri, config), host=host, port=port, precision=precision)
    from coldstream.serve.listen import serve as serve_process
    from coldstream.serve.logs import configure

    configure()
    try:
        serve_process(chosen, clock, watch=lambda start, bound: _watch(start, chosen, bound, quiet=quiet))
    finally:
        if timeline is not None:
            _write_trace(clock, timeline)


def _read(uri: str | None, config: Path | None) -> Settings:
    if uri is not None and config is not None:
        raise SettingsError("give a URI or --config, not both; models in the file have their own uri")
    if uri is not None:
        return configuration.for_uri(uri)
    if config is None and not _DEFAULT_CONFIG.exists():
        raise SettingsError("what to serve? `coldstream serve gs://bucket/model`, or --config FILE")
    return configuration.load(config or _DEFAULT_CONFIG)


def _override(settings: Settings, *, host: str | None, port: int | None, precision: str | None) -> Settings:
    server = settings.server
    number = port if port is not None else configuration.port_from_environment(os.environ, server.port)
    if not 0 <= number <= 65535:
        raise SettingsError(f"--port {number} is not a port number; choose 0-65535")
    server = dataclasses.replace(server, host=host or server.host, port=number)
    models = settings.models
    if precision is not None:
        known = configuration.check_precision(precision)
        models = {name: dataclasses.replace(model, precision=known) for name, model in models.items()}
    return dataclasses.replace(settings, server=server, models=models)


def _watch(start: Startup, settings: Settings, port: int, *, quiet: bool) -> None:
    """Say where the server listens, and show the load: bars for a person, lines of JSON for a log."""
    if quiet:
        return
    if not sys.stderr.isatty():
        _log("listening", port=port, host=settings.server.host, models=list(settings.models))
        threading.Thread(target=_log_until_ready, args=(start,), name="progress", daemon=True).start()
        return
    from coldstream.cli.progress import show

    threading.Thread(target=show, args=(start, settings, port), name="progress", daemon=True).start()


def _log(message: str, **details: object) -> None:
    """One line of JSON that Cloud Logging understands."""
    sys.stderr.write(json.dumps({"severity": "INFO", "message": message, **details}, ensure_ascii=False) + "\n")
    sys.stderr.flush()


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
    from coldstream.serve.waterfall import perfetto

    try:
        file.write_text(json.dumps(perfetto(clock.spans())), encoding="utf-8")
    except OSError as exc:
        raise SettingsError(f"--timeline {file}: cannot be written ({exc.strerror}); choose another file") from exc
