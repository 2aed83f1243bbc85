"""`coldstream init`: a commented coldstream.toml to begin with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(init)


def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("coldstream.toml"),
    model: Annotated[str | None, typer.Option("--model", help="The checkpoint's URI, to be put in.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Write a coldstream.toml with the tasks sql, product and translation, every setting explained."""
    from coldstream.starter import write

    tasks = write(path, model=model, force=force)
    if as_json:
        typer.echo(json.dumps({"path": str(path), "tasks": list(tasks)}))
        return
    typer.echo(f"{path}: a model and the tasks {', '.join(tasks)}")
    if model is None:
        typer.echo("1. Put your checkpoint's URI into [models.main]")
    typer.echo(f"{'1' if model else '2'}. coldstream serve --config {path}")
