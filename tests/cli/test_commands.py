"""The command line as a whole: every command is there, says what it does, and imports only what it needs."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

import coldstream as coldstream_package
from coldstream.cli import _GROUPS, _app

COMMANDS = [command for commands in _GROUPS.values() for command in commands]


def coldstream(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coldstream", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_help_lists_every_command() -> None:
    text = coldstream("--help").stdout
    assert [command for command in COMMANDS if f"\n  {command} " not in text] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    finished = CliRunner().invoke(_app([command]), [command, "--help"], prog_name="coldstream")
    assert finished.exit_code == 0
    assert f"coldstream {command}" in finished.stdout
    assert len(finished.stdout.splitlines()) > 6


def test_the_version_is_the_installed_one() -> None:
    assert coldstream("--version").stdout.strip() == version("coldstream") == coldstream_package.__version__


def test_a_shell_can_complete_commands() -> None:
    command = [sys.executable, "-m", "coldstream", "--show-completion", "bash"]
    named = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # typer looks for the parent's shell otherwise
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=os.environ | named)
    assert "complete -o default" in finished.stdout


def test_an_unknown_command_is_a_usage_error() -> None:
    assert coldstream("sevre").returncode == 2


MAY_BE_IMPORTED = {
    "annotated_doc",
    "click",
    "coldstream",
    "cython_runtime",
    "shellingham",
    "google_crc32c",
    "httptools",
    "obstore",
    "prometheus_client",
    "typer",
    "uvicorn",
    "uvloop",
}


def test_nothing_heavy_is_imported_before_the_first_bytes_are_asked_for() -> None:
    code = (
        "import sys\n"
        "import coldstream.cli.serve, coldstream.serve.main, coldstream.serve.http.server, coldstream.serve.startup\n"
        "import coldstream.serve.observe.metrics, coldstream.serve.state, coldstream.serve.surface\n"
        "import coldstream.weights.checkpoint.checkpoint, coldstream.weights.transfer.stream\n"
        "import coldstream.weights.stores.object_store\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)))\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    imported = {name for name in out.split() if not name.startswith(("_", "sitecustomize"))}
    assert imported - MAY_BE_IMPORTED == set()
