"""The short way to `coldstream serve` reads what it reads exactly as typer does, and leaves the rest to it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from coldstream import cli
from coldstream.cli.serving import Command, read_plain

PLAIN = [
    ["gs://bucket/model"],
    ["gs://bucket/모델", "--host", "127.0.0.1", "--port", "0", "--quiet"],
    ["--port", "8080", "-q", "/models/one", "--precision", "int8", "--weights", "file"],
    ["/models/one", "--device", "cuda", "--engine", "vllm"],
    ["--config", "my.toml", "--timeline", "/tmp/t.json"],
    ["--port", "1", "--port", "2"],
    [],
]
WORDS = st.sampled_from(
    [
        "a",
        "",
        "-q",
        "--quiet",
        "--port",
        "7",
        "--host",
        "x",
        "--config",
        "-",
        "--",
        "--no-quiet",
        "--port=1",
        "-1",
        "+1",
    ]
)


def by_typer(words: list[str]) -> Command | None:
    command = typer.main.get_command(cli._app(["serve"])).commands["serve"]  # type: ignore[attr-defined]
    try:
        return Command(**command.make_context("serve", list(words)).params)
    except Exception as exc:
        if "UsageError" not in [kind.__name__ for kind in type(exc).__mro__]:  # typer does not publish its click
            raise
        return None


@pytest.mark.parametrize("words", PLAIN)
def test_a_plain_line_is_read_as_typer_reads_it(words: list[str]) -> None:
    assert read_plain(words) is not None
    assert read_plain(words) == by_typer(words)


@pytest.mark.parametrize("words", [["--help"], ["--port", "x"], ["--port=1"], ["a", "b"], ["--prot", "1"], ["--port"]])
def test_the_rest_is_typers(words: list[str]) -> None:
    assert read_plain(words) is None


@given(words=st.lists(WORDS, max_size=6))
def test_no_line_is_read_differently(words: list[str]) -> None:
    plain = read_plain(words)
    assert plain is None or plain == by_typer(words)


def test_the_port_opens_before_anything_but_the_standard_library_is_imported() -> None:
    code = (
        "import sys\n"
        "import coldstream.cli, coldstream.cli.serving, coldstream.serve.main\n"
        "found = {name.split('.')[0] for name in sys.modules}\n"
        "print(*sorted(found - set(sys.stdlib_module_names)), 'asyncio' in found)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    imported = {name for name in out.split() if not name.startswith(("_", "sitecustomize"))}
    assert imported == {"coldstream", "False"}
