"""What stands in a stranger's files commands no terminal, and breaks no JSON."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from typer.testing import CliRunner

import coldstream.demo
from coldstream.cli import inspect
from coldstream.cli.terminal import PrintableConsole
from coldstream.errors import ColdstreamError, printable

MODEL = Path(coldstream.demo.__file__).parent / "sql_model"
EVIL = "Evil\x1b[2J\x9b31m\u202e\ud800"


@given(st.text(st.characters(), max_size=30))
def test_every_error_says_what_can_be_printed_and_text_says_itself(text) -> None:
    said = str(ColdstreamError(text))
    assert all(letter.isprintable() or not letter.isascii() or letter in "\n\t" for letter in said)
    said.encode()
    if text.isprintable():
        assert said == text
    assert printable(said) == said


def test_a_table_holds_no_commands_of_others() -> None:
    out = io.StringIO()
    table = Table()
    table.add_row(EVIL)
    PrintableConsole(file=out, width=80).print(table)
    assert "\\x1b[2J" in out.getvalue()
    assert not any(letter in out.getvalue() for letter in "\x1b\x9b\u202e\ud800")


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_inspect_shows_a_name_without_obeying_it(tmp_path, options) -> None:
    folder = shutil.copytree(MODEL, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": [EVIL], "model_type": EVIL}))
    app = typer.Typer()
    inspect.register(app)
    said = CliRunner().invoke(app, [str(folder), *options])
    assert "Evil" in said.output
    assert not any(letter in said.output for letter in "\x1b\x9b\u202e")
