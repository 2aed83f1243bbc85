"""`coldstream pack`: write what a start needs of a model beside it, as a start needs it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from coldstream.pack.pack import PackReport


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(pack)


def pack(
    source: Annotated[str, typer.Argument(help="The model's folder: gs://, s3://, az://, https:// or a path.")],
    destination: Annotated[
        str | None, typer.Argument(help="A folder for the copy: gs:// or a path. [default: SOURCE/packed]")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Also where a copy of this source is there already.")] = False,
    weights: Annotated[str, typer.Option(help="index, or file: model.safetensors though an index is there.")] = "index",
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Write a packed copy of a model: int8 for CPUs, as the kernels read it. `serve` finds it and starts sooner.

    coldstream pack gs://bucket/model

    Needs leave to write there, and little memory. The copy is bound to the source's objects: once one of them is
    replaced, `serve` says so and reads the source, until this has run again. An account that may write to the
    copy's folder decides what is answered: keep it where the model is. `packed` in coldstream.toml names another
    place, or "off".
    """
    from coldstream.cli.byte_line import show_bytes
    from coldstream.pack.pack import pack as pack_checkpoint
    from coldstream.settings import check_weights
    from coldstream.weights.transfer.progress import Progress

    progress = Progress(on_change=show_bytes) if sys.stderr.isatty() and not as_json else Progress()
    report = asyncio.run(
        pack_checkpoint(source, destination, weights=check_weights(weights), again=again, progress=progress)
    )
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(report) | {"total_bytes": report.total_bytes}, indent=2))
    else:
        typer.echo(said(report))


def said(report: PackReport) -> str:
    """A report for people."""
    from rich.filesize import decimal

    sizes = f"{decimal(report.total_bytes)}, from {decimal(report.source_bytes)}"
    if not report.is_new:
        return f"{report.destination}: a copy of revision {report.revision} is there already ({report.form}, {sizes})"
    told = f"{report.destination}: {report.form} of revision {report.revision}, {sizes}, in {report.seconds:.1f} s"
    return "\n".join((told, *(f"not in it: {note}" for note in report.notes)))
