"""The coldstream.toml that `coldstream init` writes, checked before it is written.

starter.toml beside this file is what it says by itself; a line `#: SECTION` stands for the keys of that table, which
come from the schema.
"""

from __future__ import annotations

import json
import re
import tempfile
from importlib.resources import files
from pathlib import Path

from coldstream import settings
from coldstream.errors import SettingsError
from coldstream.settings import reference

_PLACEHOLDER = '"gs://my-bucket/my-model"'
_SECTION = re.compile(r"^#: (\S+)(?: without (.+))?$", re.MULTILINE)


def write(path: Path, *, model: str | None = None, force: bool = False) -> tuple[str, ...]:
    """Write it, with the checkpoint's URI where one is given; returns the tasks' names.

    Raises:
        SettingsError: there is such a file and not `force`, or it cannot be written.
    """
    text = starter()
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


def starter() -> str:
    """The whole text: every key that is commented out is shown with its default, or with an example."""
    text = files("coldstream").joinpath("starter.toml").read_text(encoding="utf-8")
    return _SECTION.sub(lambda found: reference.commented(found[1], without=_names(found[2])), text)


def _names(text: str | None) -> frozenset[str]:
    return frozenset((text or "").split(", "))


def _tasks(text: str) -> tuple[str, ...]:
    """The tasks of what will be written, as the server will read it."""
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "coldstream.toml"
        trial.write_text(text, encoding="utf-8")
        return tuple(settings.load(trial, environ={}).tasks)
