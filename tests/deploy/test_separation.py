"""deploy/ is a wing of its own: it loads neither torch nor the server, and no Google client before it is used."""

from __future__ import annotations

import subprocess
import sys

READS_A_CONFIG = {
    f"coldstream.model.{name}"
    for name in ("config", "architecture", "fields", "foreign", "memory", "rope_config", "vision_config")
}
"""The part of another room that the plan needs: what a config.json means, and what its model takes of memory."""


def loaded(code: str) -> set[str]:
    """The modules that a fresh interpreter has after some code."""
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


WHOLE_WING = """
import pkgutil
import coldstream.deploy
for module in pkgutil.iter_modules(coldstream.deploy.__path__):
    __import__(f"coldstream.deploy.{module.name}")
import coldstream.weights.checkpoint.checkpoint
"""


def test_the_whole_wing_imports_neither_torch_nor_the_server() -> None:
    modules = loaded(WHOLE_WING)
    assert "coldstream.deploy.apply" in modules
    assert not modules & {"torch", "fastapi", "starlette", "uvicorn", "transformers"}
    engines = {"coldstream.engines", "coldstream.engines.choice"}  # which engine a service will run, and no engine
    assert {name for name in modules if name.startswith(("coldstream.engine", "coldstream.serve"))} <= engines
    assert {name for name in modules if name.startswith("coldstream.model.")} <= READS_A_CONFIG


def test_importing_the_wing_loads_no_google_client() -> None:
    modules = loaded(WHOLE_WING)
    assert not [name for name in modules if name.startswith(("google.cloud.run", "google.api_core", "grpc"))]


def test_the_commands_import_nothing_heavy_until_they_are_called() -> None:
    modules = loaded("import coldstream.cli.deploy")
    assert not [name for name in modules if name.startswith(("coldstream.deploy", "google.", "rich.table", "torch"))]


def test_without_the_extra_the_message_names_it() -> None:
    """An environment in which Google's clients are not installed."""
    code = """
import sys
sys.modules["google.cloud.run_v2"] = None
from google.oauth2.credentials import Credentials
from coldstream.deploy.google import Google
from coldstream.deploy.evidence import ask
from coldstream.errors import MissingExtra
try:
    ask("services.get", lambda: Google(Credentials(token="x")).service("projects/p/locations/l/services/s"))
except MissingExtra as exc:
    assert "pip install 'coldstream[deploy]'" in str(exc)
else:
    raise SystemExit("no error")
"""
    loaded(code)
