"""`coldstream init` writes a coldstream.toml that the server can read, and never over one that is there."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
from typer.testing import CliRunner

from coldstream import cli, settings, starter
from coldstream.errors import SettingsError
from coldstream.settings.parse import element, record


def test_the_file_has_the_three_tasks_and_the_given_model(tmp_path: Path) -> None:
    path = tmp_path / "coldstream.toml"
    assert starter.write(path, model="gs://b/모델") == ("sql", "product", "translation")
    loaded = settings.load(path, environ={})
    assert loaded.models["main"].uri == "gs://b/모델"
    assert loaded.tasks["product"].images == 1
    assert loaded.tasks["translation"].inputs["language"].kind == "choice"


def test_a_file_that_is_there_stays_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "coldstream.toml"
    path.write_text("mine")
    with pytest.raises(SettingsError, match="--force"):
        starter.write(path)
    assert path.read_text() == "mine"
    starter.write(path, force=True)
    assert settings.load(path, environ={}).tasks


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="nowhere"):
        starter.write(tmp_path / "nowhere" / "coldstream.toml")


@pytest.mark.parametrize("table", ["images", "server", "engine", "load", "deploy"])
def test_every_key_of_a_table_is_there_and_may_be_uncommented(table: str) -> None:
    section = starter.starter().split(f"\n[{table}]\n")[1].split("\n\n")[0]
    shown = tomllib.loads(re.sub(r"^# ", "", section, flags=re.MULTILINE))
    defaults = getattr(settings.for_uri("gs://b/m"), table)
    hints = get_type_hints(type(defaults))
    tables = {name for name, hint in hints.items() if is_dataclass(element(hint))}
    assert set(shown) == {item.name for item in fields(defaults)} - tables
    assert record(type(defaults), shown, table)
    for key, value in shown.items():
        default = getattr(defaults, key)
        if default not in ((), None, {}):
            assert value == (list(default) if isinstance(default, tuple) else default)


def test_the_command_says_what_to_do_next(tmp_path: Path) -> None:
    path = tmp_path / "made.toml"
    result = CliRunner().invoke(cli._app(["init"]), ["init", str(path)])
    assert result.exit_code == 0, result.output
    assert "sql, product, translation" in result.output
    assert "coldstream serve --config" in result.output
    assert path.is_file()
