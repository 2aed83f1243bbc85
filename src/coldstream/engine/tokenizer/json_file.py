"""The JSON files of a checkpoint, by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from coldstream.errors import TokenizerError


def json_object(files: Mapping[str, bytes], name: str, source: str) -> dict[str, Any]:
    """The object in the file; empty where there is no such file. `source` is the checkpoint's URI.

    Raises:
        TokenizerError: it is not a JSON object.
    """
    raw = files.get(name)
    if raw is None:
        return {}
    try:
        value = json.loads(bytes(raw))
    except (ValueError, RecursionError) as exc:
        raise TokenizerError(f"{source}/{name} is not valid JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise TokenizerError(f"{source}/{name} must be a JSON object, not {type(value).__name__}")
    return value
