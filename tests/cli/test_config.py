"""`coldstream config`: a file is read as the server would read it, and nothing is started."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from coldstream import cli, starter
from coldstream.errors import SettingsError
from coldstream.settings import reference

MODEL = '[models.a]\nuri = "gs://b/a"\n'


def run(*arguments: str) -> tuple[int, str, BaseException | None]:
    result = CliRunner().invoke(cli._app(["config"]), ["config", *arguments])
    return result.exit_code, result.output, result.exception


def test_a_right_file_names_its_models_and_tasks(tmp_path: Path) -> None:
    path = tmp_path / "coldstream.toml"
    path.write_text(MODEL)
    code, said, _ = run("check", str(path))
    assert (code, "models a; tasks text" in said) == (0, True)


def test_machines_get_all_of_it_with_its_defaults(tmp_path: Path) -> None:
    path = tmp_path / "coldstream.toml"
    path.write_text(starter.starter())
    _, said, _ = run("check", str(path), "--json")
    read = json.loads(said)
    assert read["server"]["port"] == 8080
    assert read["tasks"]["sql"]["inputs"]["question"]["kind"] == "text"
    assert read["deploy"]["region"] == "us-central1"


def test_a_wrong_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "coldstream.toml"
    path.write_text(MODEL + "[server]\nprot = 1\n")
    _, _, raised = run("check", str(path))
    assert isinstance(raised, SettingsError)
    assert "server.prot is unknown" in str(raised)


def test_the_reference_is_printed() -> None:
    assert run("reference")[1] == reference.markdown()
