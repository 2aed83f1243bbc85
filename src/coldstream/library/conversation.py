"""Messages as a chat template wants them. Text only: pictures and tools are asked for over HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coldstream.engine.tokenizer.fit import Turn, fitted
from coldstream.engine.tokenizer.tokenizer import Tokenizer
from coldstream.errors import InvalidRequest

_ROLES = ("system", "developer", "user", "assistant")
_KEYS = ("role", "content", "name")


def prompt_text(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> str:
    """The prompt's text, special tokens written out; encode it with `add_special_tokens=False`.

    Raises:
        InvalidRequest: a message is none that can be read here, or the template takes them in no form.
    """
    if not messages:
        raise InvalidRequest("messages is empty; send at least one", field="messages")
    said = [_turn(message, f"messages[{place}]") for place, message in enumerate(messages)]
    return fitted(said, tokenizer.apply_chat_template) if tokenizer.has_chat_template else _refused(tokenizer, said)


def _refused(tokenizer: Tokenizer, said: list[Turn]) -> str:
    try:
        return tokenizer.apply_chat_template(said)
    except InvalidRequest as exc:
        raise InvalidRequest(f"{tokenizer.source} has no chat template; use generate", field="messages") from exc


def _turn(message: Mapping[str, Any], where: str) -> Turn:
    if not isinstance(message, Mapping):
        raise InvalidRequest(f"{where} must be a dict with role and content, not {message!r}", field="messages")
    for key in message.keys() - set(_KEYS):
        text = f"{where}.{key} has no effect here; known: {', '.join(_KEYS)}. Tools are for a server's chat completions"
        raise InvalidRequest(text, field=f"{where}.{key}", allowed=_KEYS)
    role = message.get("role")
    if role not in _ROLES:
        raise InvalidRequest(f"{where}.role = {role!r}; allowed: {', '.join(_ROLES)}", field="messages", allowed=_ROLES)
    turn: Turn = {**message, "role": "system" if role == "developer" else role}
    return turn | {"content": _text(message.get("content"), f"{where}.content")}


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    if not all(_is_text(part) for part in parts):
        message = f"{where} must be text, or a list of text parts; for pictures ask a server's chat completions"
        raise InvalidRequest(message, field=where)
    return "".join(part["text"] for part in parts)


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
