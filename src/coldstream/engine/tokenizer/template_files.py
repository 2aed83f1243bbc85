"""Where a checkpoint keeps its chat templates: their texts by name, uncompiled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coldstream.engine.tokenizer.json_file import json_object
from coldstream.errors import TokenizerError
from coldstream.weights.checkpoint.file_names import TEMPLATES_BELOW

DEFAULT, TOOL_USE = "default", "tool_use"


def read_templates(files: Mapping[str, bytes], config: Mapping[str, Any], source: str) -> dict[str, str]:
    """The texts of the templates by name, in transformers' order: chat_template.jinja replaces what JSON says.

    Raises:
        TokenizerError: a template is no text.
    """
    apart = {name.rpartition("/")[2].removesuffix(".jinja"): name for name in TEMPLATES_BELOW if name in files}
    if "chat_template.jinja" in files:
        apart[DEFAULT] = "chat_template.jinja"
    found = {name: _utf8(files[file], f"{source}/{file}") for name, file in apart.items()}
    if DEFAULT in found:
        return found
    own = json_object(files, "chat_template.json", source).get("chat_template")
    inside, where = (
        (config.get("chat_template"), "tokenizer_config.json") if own is None else (own, "chat_template.json")
    )
    return {**_named(inside, f"{source}/{where}: chat_template"), **found}


def default_text(texts: Mapping[str, str]) -> str | None:
    """The text of the default template, or of the first one; None where there is none."""
    return texts.get(DEFAULT) or next(iter(texts.values()), None)


def _named(value: Any, where: str) -> dict[str, str]:
    """Templates by name, from a text, from a list of objects with a name each, or from an object."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT: value}
    try:
        found = {item["name"]: item["template"] for item in value} if isinstance(value, list) else dict(value)
    except (TypeError, KeyError, ValueError) as exc:
        raise TokenizerError(f"{where} must be a text, or a list of objects with name and template") from exc
    for name, text in found.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise TokenizerError(f"{where}: the template {name!r} is no text")
    return found


def _utf8(raw: bytes, where: str) -> str:
    try:
        return bytes(raw).decode("utf-8")
    except UnicodeDecodeError as exc:
        raise TokenizerError(f"{where} is not UTF-8: {exc}") from exc
