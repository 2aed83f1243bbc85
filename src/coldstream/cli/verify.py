"""`coldstream verify`: stream every byte of a checkpoint against its store's checksums, and keep nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from coldstream.weights.transfer.progress import Progress
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
    packed: Annotated[str, typer.Option(help="Where its packed copy lies: auto, off or a folder.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Read every byte of a checkpoint and of its packed copy, check it against the store's CRC32C, keep nothing.

    Needs about 128 MiB of memory whatever the size. A byte that is wrong is an error that names its file.
    """
    from coldstream.cli.byte_line import show_bytes

    shown = show_bytes if sys.stderr.isatty() and not as_json else None
    reports, why_not = asyncio.run(_verified(uri, packed, shown))
    verified = all(report.verified for report in reports)
    if as_json:
        model, *copies = map(dataclasses.asdict, reports)
        told = {"verified": verified, "packed": copies[0] if copies else None, "packed_why_not": why_not}
        typer.echo(json.dumps(model | told, indent=2))
    else:
        for report in reports:
            _print(report)
        if why_not is not None:
            typer.echo(f"the packed copy was not read: {why_not}")
    if strict and not verified:
        raise typer.Exit(_STRICT_EXIT)


async def _verified(
    uri: str, packed: str, shown: Callable[[Progress], None] | None
) -> tuple[list[VerifyReport], str | None]:
    """Of the checkpoint, and of its copy if there is one that fits; else why there is none."""
    from coldstream.pack.finding import find_copy
    from coldstream.weights.transfer.progress import Progress
    from coldstream.weights.transfer.verify import verify_async

    progress = Progress(on_change=shown) if shown is not None else Progress()
    found = await find_copy(uri, packed, progress=progress)
    reports = [await verify_async(found.checkpoint, progress=progress)]
    if found.copy is not None:
        again = Progress(on_change=shown) if shown is not None else Progress()
        reports.append(await verify_async(found.copy.arriving, progress=again))
    return reports, found.why_not


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
