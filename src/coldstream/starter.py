"""The coldstream.toml that `coldstream init` writes: starter.toml beside this file, checked before it is written."""

from __future__ import annotations

import json
import tempfile
from importlib.resources import files
from pathlib import Path

from coldstream import settings
from coldstream.errors import SettingsError

_PLACEHOLDER = '"gs://my-bucket/my-model"'


def write(path: Path, *, model: str | None = None, force: bool = False) -> tuple[str, ...]:
    """Write it, with the checkpoint's URI where one is given; returns the tasks' names.

    Raises:
        SettingsError: there is such a file and not `force`, or it cannot be written.
    """
    text = files("coldstream").joinpath("starter.toml").read_text(encoding="utf-8")
    if model is not None:
        text = text.replace(_PLACEHOLDER, json.dumps(model, ensure_ascii=False))
    tasks = _tasks(text)
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as exc:
        raise SettingsError(f"{path}: is there already; write to another file, or replace it with --force") from exc
    except OSError as exc:
        raise SettingsError(f"{path}: cannot be written ({exc.strerror}); name another file") from exc
    return tasks


def _tasks(text: str) -> tuple[str, ...]:
    """The tasks of what will be written, as the server will read it."""
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "coldstream.toml"
        trial.write_text(text, encoding="utf-8")
        return tuple(settings.load(trial, environ={}).tasks)
