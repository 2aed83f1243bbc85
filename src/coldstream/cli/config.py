"""`coldstream config`: what coldstream.toml may hold, and whether a file does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer


def register(app: typer.Typer) -> None:
    """Add `config` with its two commands."""
    group = typer.Typer(no_args_is_help=True, help="Check a coldstream.toml, or print what it may hold.")
    group.command()(check)
    group.command()(reference)
    app.add_typer(group, name="config")


def check(
    path: Annotated[Path, typer.Argument(help="The file to read.")] = Path("coldstream.toml"),
    as_json: Annotated[bool, typer.Option("--json", help="For machines: all of it, with its defaults.")] = False,
) -> None:
    """Read a coldstream.toml as `serve` would, and start nothing. Exit code 2 names the first key that is wrong."""
    from coldstream import settings

    read = settings.load(path)
    if as_json:
        typer.echo(json.dumps(_plain(read), ensure_ascii=False))
        return
    typer.echo(f"{path} is right: models {', '.join(read.models)}; tasks {', '.join(read.tasks)}")
    typer.echo(f"coldstream serve --config {path}")


def reference() -> None:
    """Print every key of coldstream.toml with its type, default and range, as Markdown."""
    from coldstream.settings import reference as written

    typer.echo(written.markdown(), nl=False)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    return {name: _plain(item) for name, item in value.items()} if isinstance(value, Mapping) else value
