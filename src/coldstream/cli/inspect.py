"""`coldstream inspect`: what a checkpoint holds and needs, from its headers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(inspect)


def inspect(
    uri: Annotated[str, typer.Argument(help="The checkpoint's folder: gs://, s3://, az://, https:// or a path.")],
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor too.")] = False,
    weights: Annotated[str, typer.Option(help="index, or file: model.safetensors though an index is there.")] = "index",
    packed: Annotated[str, typer.Option(help="Where its packed copy lies: auto, off or a folder.")] = "auto",
) -> None:
    """Show a checkpoint's architecture, tensors and memory needs. Reads headers and small files only."""
    from coldstream.model.summary import summarize
    from coldstream.pack import finding
    from coldstream.settings import check_weights

    found = asyncio.run(finding.find_copy(uri, packed, weights=check_weights(weights)))
    report = summarize(found.checkpoint, tensors=tensors) | {"packed": finding.as_json(found)}
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        _print(report)


def _print(report: Mapping[str, Any]) -> None:
    from rich.filesize import decimal
    from rich.markup import escape
    from rich.table import Table

    from coldstream.cli.terminal import PrintableConsole

    console = PrintableConsole()
    facts = Table(title=report["uri"], show_header=False, title_justify="left")
    for name, value in _facts(report, decimal):
        facts.add_row(name, value)
    console.print(facts)
    shards = Table("shard", "size", "tensors", "checksum in the store", title="What is read", title_justify="left")
    for shard in report["shards"]:
        shards.add_row(
            shard["name"], decimal(shard["bytes"]), str(shard["tensors"]), "yes" if shard["crc32c"] else "no"
        )
    console.print(shards)
    for warning in report["warnings"]:
        console.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False, soft_wrap=True)
    if "tensor_list" in report:
        tensors = Table("tensor", "dtype", "shape", "size", "shard")
        for item in report["tensor_list"]:
            shape = " x ".join(map(str, item["shape"]))
            tensors.add_row(item["name"], item["dtype"], shape, decimal(item["bytes"]), item["shard"])
        console.print(tensors)


def _facts(report: Mapping[str, Any], size: Any) -> list[tuple[str, str]]:
    decoder = report["decoder"]
    tokenizer = report["tokenizer"]
    facts = [
        ("architecture", f"{report['architecture']} ({'native' if decoder['native'] else decoder['why']})"),
        ("parameters", f"{report['parameters']:,} in {report['tensors']} tensors"),
        ("dtypes", ", ".join(f"{name}: {count:,}" for name, count in report["dtypes"].items())),
        ("bytes to read", size(report["bytes_to_read"])),
        ("memory for weights", ", ".join(f"{name} {size(value)}" for name, value in report["memory"].items())),
        (
            "tokenizer",
            f"{tokenizer['file']}, {size(tokenizer['bytes'])}" if tokenizer else "none: upload tokenizer.json",
        ),
        ("chat template", report["chat_template"] or "in tokenizer_config.json, or none"),
        ("revision", report["revision"]),
    ]
    if decoder["native"]:
        attention = ", ".join(f"{count} x {kind}" for kind, count in decoder["attention"].items())
        facts.insert(1, ("layers", f"{decoder['layers']}: {attention}; context {decoder['max_positions']:,} tokens"))
        facts.insert(6, ("keys and values", f"{size(decoder['cache_bytes_per_token'])} a token in float32"))
    if report["packed"] is not None:
        facts.append(("packed copy", _packed(report["packed"], size)))
    if report["files_left_alone"]:
        facts.append(("left alone", ", ".join(report["files_left_alone"])))
    return facts


def _packed(copy: Mapping[str, Any], size: Any) -> str:
    if not copy["fits"]:
        return f"not used: {copy['why_not']}"
    return f"{copy['form']}, {size(copy['bytes'])}, {copy['uri']}"
