"""`coldstream serve`: stream a checkpoint into memory and answer over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coldstream.cli.serving import Command, run


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
    device: Annotated[
        str | None, typer.Option(help="auto, cpu or cuda; auto takes a GPU where torch can use it and says why.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="auto, native or vllm (pip install 'coldstream[vllm]'); auto says why.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, float32, bfloat16 or int8; auto picks by the CPU and says why.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="index, or file: model.safetensors though an index lies beside it.")
    ] = None,
    packed: Annotated[
        str | None, typer.Option(help="auto, off, or the folder of a packed copy (see `coldstream pack`).")
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
    run(Command(uri, config, host, port, device, engine, precision, weights, packed, timeline, quiet))
