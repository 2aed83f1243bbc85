"""What a model's chat template writes as tokens: what ends a turn, and whether the model has them all."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from coldstream.errors import InvalidRequest, TokenizerError, TooCostly

Messages = Sequence[Mapping[str, Any]]

_ANSWER = "Zanswer"
"""A word that no template writes of itself."""
_MARKUP = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
_SYSTEM, _USER = {"role": "system", "content": "Hello"}, {"role": "user", "content": "Hello"}
_CONVERSATIONS: Sequence[Messages] = (
    [_USER],
    [_SYSTEM, _USER],
    [_USER, {"role": "assistant", "content": _ANSWER}, _USER],
)


class ChatTokenizer(Protocol):
    """The part of `tokenizer.Tokenizer` that is asked."""

    @property
    def has_chat_template(self) -> bool: ...
    @property
    def source(self) -> str: ...
    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...
    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...
    def apply_chat_template(self, messages: Messages, *, add_generation_prompt: bool = True) -> str: ...


def turn_ends(tokenizer: ChatTokenizer) -> frozenset[int]:
    """The token that the chat template writes behind an assistant's text: the model was trained to end with it.

    Only a special token counts, or one that is a tag by its text; ordinary text behind a turn is no sign of its end.
    """
    text = _rendered(tokenizer, [_USER, {"role": "assistant", "content": _ANSWER}], add_generation_prompt=False)
    if text is None or _ANSWER not in text:
        return frozenset()
    behind = text.rpartition(_ANSWER)[2].lstrip()
    ids = tokenizer.encode(behind, add_special_tokens=False)[:1] if behind else []
    return frozenset(ids if ids and _is_tag(tokenizer, ids) else ())


def refuse_unknown_ids(tokenizer: ChatTokenizer, vocab_size: int) -> None:
    """Check that the embedding has a row for whatever stands in every prompt.

    Raises:
        TokenizerError: the chat template, or the tokenizer by itself, writes an id beyond it.
    """
    for where, ids in _written(tokenizer):
        beyond = [number for number in ids if number >= vocab_size]
        if beyond:
            token = tokenizer.decode(beyond[:1], skip_special_tokens=False)
            raise TokenizerError(
                f"{tokenizer.source}: the {where} writes {token!r} (id {beyond[0]}), but the model's embedding has "
                f"{vocab_size} rows; upload the tokenizer that belongs to the model, or resize its embedding "
                "(model.resize_token_embeddings(len(tokenizer))) and train it"
            )


def _written(tokenizer: ChatTokenizer) -> Iterator[tuple[str, list[int]]]:
    yield "tokenizer", tokenizer.encode("")
    for messages in _CONVERSATIONS:
        text = _rendered(tokenizer, messages, add_generation_prompt=True)
        if text is not None:
            yield "chat template", tokenizer.encode(text, add_special_tokens=False)


def _rendered(tokenizer: ChatTokenizer, messages: Messages, *, add_generation_prompt: bool) -> str | None:
    """None where there is no template, or it refuses such a conversation."""
    if not tokenizer.has_chat_template:
        return None
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt)
    except InvalidRequest:
        return None
    except TooCostly as exc:
        raise TokenizerError(
            f"{tokenizer.source}: {exc}, with {len(messages)} short messages; mend it, or upload another one"
        ) from exc


def _is_tag(tokenizer: ChatTokenizer, ids: Sequence[int]) -> bool:
    named, plain = tokenizer.decode(ids, skip_special_tokens=False).strip(), tokenizer.decode(ids).strip()
    return bool(named) and (not plain or _MARKUP.fullmatch(named) is not None)
