"""`coldstream verify`: stream every byte of a checkpoint against its store's checksums, and keep nothing."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from coldstream.weights.transfer.verify import VerifyReport

_STRICT_EXIT = 3


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(verify)


def verify(
    uri: Annotated[str, typer.Argument(help="The checkpoint's folder: gs://, s3://, az://, https:// or a path.")],
    strict: Annotated[
        bool, typer.Option("--strict", help=f"Exit {_STRICT_EXIT} when a file has no checksum to hold it against.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Read every byte of a checkpoint, check it against the CRC32C in the store, keep nothing.

    Needs about 128 MiB of memory whatever the size. A byte that is wrong is an error that names its file.
    """
    from coldstream.cli.byte_line import show_bytes
    from coldstream.weights.transfer.verify import verify as verify_checkpoint

    report = verify_checkpoint(uri, progress=show_bytes if sys.stderr.isatty() and not as_json else None)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(report) | {"verified": report.verified}, indent=2))
    else:
        _print(report)
    if strict and not report.verified:
        raise typer.Exit(_STRICT_EXIT)


def _print(report: VerifyReport) -> None:
    from rich.filesize import decimal
    from rich.table import Table

    from coldstream.cli.terminal import PrintableConsole

    table = Table("file", "size", "CRC32C", "verdict", title=f"{report.uri} (revision {report.revision})")
    for file in report.files:
        checksum = "-" if file.crc32c is None else f"{file.crc32c:08x}"
        table.add_row(file.name, decimal(file.size), checksum, file.verdict)
    console = PrintableConsole()
    console.print(table)
    counters = {name: count for name, count in dataclasses.asdict(report.counters).items() if count}
    happened = ", ".join(f"{name} {count}" for name, count in counters.items())
    rate = report.total_bytes / report.seconds / 1e9 if report.seconds else 0.0
    console.print(
        f"{decimal(report.total_bytes)} in {report.seconds:.1f} s ({rate:.2f} GB/s); {happened}", highlight=False
    )
