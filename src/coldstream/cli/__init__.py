"""The command line: one file a command group; parses, calls, prints; holds no logic.

`serve` is the cold path: what is imported here is imported before the first byte is asked for. So a plain `serve` is
read without typer, and else only the group of the command that was given is imported; all of them for `--help`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, NoReturn

from coldstream.errors import ColdstreamError

if TYPE_CHECKING:
    import typer

_GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "serve": ("serve",),
        "init": ("init",),
        "config": ("config",),
        "inspect": ("inspect",),
        "verify": ("verify",),
        "pack": ("pack",),
        "demo": ("demo",),
        "chat": ("chat",),
        "bench": ("bench",),
        "deploy": ("doctor", "plan", "deploy", "job", "status", "logs", "token", "rollback", "destroy", "export"),
    }
)
"""Module of this package -> the commands that it registers."""


def _app(arguments: Sequence[str]) -> typer.Typer:
    import typer

    def root(
        debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error, not only its message."),
        version: bool = typer.Option(False, "--version", is_eager=True, callback=_version, help="Print the version."),
    ) -> None:
        if debug:
            os.environ["COLDSTREAM_DEBUG"] = "1"

    app = typer.Typer(
        name="coldstream",
        help="From gs://bucket/model to the first token, in the time the bytes need to cross the wire.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(root)
    command = next((word for word in arguments if not word.startswith("-")), None)
    chosen = [group for group, commands in _GROUPS.items() if command in commands]
    for group in chosen or _GROUPS:
        import_module(f"coldstream.cli.{group}").register(app)
    return app


def _version(asked: bool) -> None:
    import typer

    if asked:
        from coldstream import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line. Exits with the error's own code (see coldstream.errors), one line on stderr."""
    try:
        if not _serve_plainly(sys.argv[1:]):
            _app(sys.argv[1:])()
    except ColdstreamError as exc:
        if os.environ.get("COLDSTREAM_DEBUG"):
            raise
        sys.stderr.write(f"error: {exc}\n")
        _leave(exc.exit_code)


def _serve_plainly(arguments: Sequence[str]) -> bool:
    """False when this is another command, or one that typer should read."""
    if list(arguments[:1]) != ["serve"]:
        return False
    from coldstream.cli.serving import read_plain, run

    command = read_plain(arguments[1:])
    if command is None:
        return False
    run(command)
    return True


def _leave(code: int) -> NoReturn:
    """Exit at once: threads may be inside `import torch` or a store's runtime, and have nothing to save."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
