"""The command line: one file a command group; parses, calls, prints; holds no logic.

`serve` is the cold path: what is imported here is imported before the first byte is asked for.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import typer

from coldstream.cli import demo, deploy, inspect, serve, verify
from coldstream.errors import ColdstreamError

_GROUPS = (serve, inspect, verify, demo, deploy)


def _app() -> typer.Typer:
    app = typer.Typer(
        name="coldstream",
        help="From gs://bucket/model to the first token, in the time the bytes need to cross the wire.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
        rich_markup_mode=None,
    )
    app.callback()(_root)
    for group in _GROUPS:
        group.register(app)
    return app


def _root(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error, not only its message."),
) -> None:
    if debug:
        os.environ["COLDSTREAM_DEBUG"] = "1"


def main() -> None:
    """Run the command line. Exits with the error's own code (see coldstream.errors), one line on stderr."""
    try:
        _app()()
    except ColdstreamError as exc:
        if os.environ.get("COLDSTREAM_DEBUG"):
            raise
        sys.stderr.write(f"error: {exc}\n")
        _leave(exc.exit_code)


def _leave(code: int) -> NoReturn:
    """Exit at once: threads may be inside `import torch` or a store's runtime, and have nothing to save."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
