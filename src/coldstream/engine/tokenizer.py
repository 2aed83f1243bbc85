"""Text <-> token ids, and chat messages -> prompt text, from a checkpoint's own files.

The files are those that transformers writes: tokenizer.json (the `tokenizers` library's format), tokenizer_config.json,
special_tokens_map.json, generation_config.json, config.json and the chat template (chat_template.jinja,
chat_template.json or inside tokenizer_config.json). transformers itself is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from coldstream.engine.template import ChatTemplate
from coldstream.engine.tokenizer_files import TOKENIZER_FILES as TOKENIZER_FILES
from coldstream.engine.turns import turn_ends
from coldstream.engine.vocabulary import Vocabulary, vocabulary
from coldstream.errors import InvalidRequest, TokenizerError


class Encoding(Protocol):
    """What comes out of `Backend.encode`."""

    @property
    def ids(self) -> list[int]: ...


class Backend(Protocol):
    """The part of `tokenizers.Tokenizer` that we use; tokenizer_process.py has it in another process."""

    def encode(self, sequence: str, *, add_special_tokens: bool = True) -> Encoding: ...
    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...
    def token_to_id(self, token: str) -> int | None: ...
    def id_to_token(self, id: int) -> str | None: ...
    def get_vocab_size(self, *, with_added_tokens: bool = True) -> int: ...
    def vocabulary(self) -> Vocabulary: ...


def build_backend(tokenizer_json: bytes, *, source: str) -> Backend:
    """Build it in this process. Holds the GIL: for a second and more where the vocabulary is large.

    Raises:
        TokenizerError: it is not a tokenizer.json that the library can read.
    """
    import tokenizers

    try:
        backend = tokenizers.Tokenizer.from_buffer(tokenizer_json)
    except Exception as exc:  # the library raises plain Exception
        raise TokenizerError(f"{source}/tokenizer.json cannot be read by tokenizers: {exc}") from exc
    backend.no_truncation()
    backend.no_padding()
    return _Here(backend, source)


class _Here:
    """A `tokenizers.Tokenizer` with its vocabulary."""

    def __init__(self, backend: Any, source: str) -> None:
        self._backend, self._source = backend, source

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def vocabulary(self) -> Vocabulary:
        try:
            return vocabulary(self._backend)
        except ValueError as exc:
            raise TokenizerError(f"{self._source}/tokenizer.json: {exc}") from exc


class Tokenizer:
    """The tokenizer of one model. Safe to use from several threads: nothing in it changes after `load`.

    `bos`, `eos` are the texts of the special tokens, None where the model has none; `stop_ids` are the ids that end a
    generation: those of generation_config.json, of config.json, the tokenizer's own eos token, and what the chat
    template ends a turn with, together, since many checkpoints name one of them in one place only.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        special_tokens: Mapping[str, str],
        stop_ids: frozenset[int],
        template: ChatTemplate | None,
        generation_defaults: Mapping[str, Any],
        source: str,
    ) -> None:
        self.backend = backend
        self.special_tokens = dict(special_tokens)
        self.stop_ids = stop_ids
        self.generation_defaults = dict(generation_defaults)
        self.source = source
        self._template = template

    @classmethod
    def load(
        cls,
        files: Mapping[str, bytes],
        *,
        source: str = "checkpoint",
        build: Callable[..., Backend] = build_backend,
    ) -> Tokenizer:
        """Build it from the bytes of the files named in `TOKENIZER_FILES`; all but tokenizer.json may be absent.

        `source` is the checkpoint's URI, for messages. `build` says where the tokenizer lives.

        Raises:
            TokenizerError: tokenizer.json is missing or broken, or another file is not what it should be.
        """
        raw = files.get("tokenizer.json")
        if raw is None:
            raise TokenizerError(
                f"{source}: there is no tokenizer.json; save the tokenizer with transformers' "
                "AutoTokenizer.from_pretrained(...).save_pretrained(...) and upload its files"
            )
        backend = build(raw, source=source)
        config = _json(files, "tokenizer_config.json", source)
        special = _special_tokens(_json(files, "special_tokens_map.json", source), config)
        generation = _json(files, "generation_config.json", source)
        made = cls(
            backend,
            special_tokens=special,
            stop_ids=_stop_ids(backend, special, generation, _json(files, "config.json", source)),
            template=_template(files, config, source),
            generation_defaults=generation,
            source=source,
        )
        made.stop_ids |= turn_ends(made)
        return made

    @property
    def bos(self) -> str | None:
        """The text of the token that begins a prompt."""
        return self.special_tokens.get("bos_token")

    @property
    def eos(self) -> str | None:
        """The text of the token that ends a turn or a document."""
        return self.special_tokens.get("eos_token")

    @property
    def bos_id(self) -> int | None:
        """The id of `bos`."""
        return self.backend.token_to_id(self.bos) if self.bos else None

    @property
    def vocab_size(self) -> int:
        """How many ids the tokenizer knows, added tokens included; the model's own vocabulary may be larger."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def has_chat_template(self) -> bool:
        """Whether `apply_chat_template` can work."""
        return self._template is not None

    @property
    def chat_template(self) -> str | None:
        """The template's text."""
        return self._template.text if self._template is not None else None

    @property
    def template_uses_tools(self) -> bool:
        """Whether the chat template looks at `tools` at all."""
        return self._template is not None and "tools" in self._template.variables

    def vocabulary(self) -> Vocabulary:
        """The bytes of all tokens. Slow: not for an event loop.

        Raises:
            TokenizerError: tokens of this kind of tokenizer have no bytes of their own.
        """
        return self.backend.vocabulary()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of the text. A chat template writes its own <bos>: encode its result without special tokens."""
        return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of the ids; bytes that are no UTF-8 become U+FFFD. Ids beyond the vocabulary have no text."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token_text(self, token_id: int) -> str:
        """The text of one token by itself, special tokens by their names; for logprobs."""
        return self.decode((token_id,), skip_special_tokens=False)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt's text, special tokens written out; encode it with `add_special_tokens=False`.

        Raises:
            InvalidRequest: the model has no template, or the template refuses these messages.
        """
        if self._template is None:
            raise InvalidRequest(
                f"{self.source} has no chat template; send a plain prompt to /v1/completions or /generate",
                field="messages",
            )
        return self._template.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            variables={**self.special_tokens, **(variables or {})},
        )


def _json(files: Mapping[str, bytes], name: str, source: str) -> dict[str, Any]:
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


def _special_tokens(*configs: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token` and its like; a value is a text or an object with `content`. Later files win."""
    found: dict[str, str] = {}
    for config in configs:
        for key, value in config.items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                found[key] = text
    return found


def _stop_ids(
    backend: Backend,
    special: Mapping[str, str],
    generation: Mapping[str, Any],
    config: Mapping[str, Any],
) -> frozenset[int]:
    text_config = config.get("text_config")
    nested = text_config if isinstance(text_config, dict) else {}
    ids = [item for place in (generation, config, nested) for item in _ids(place.get("eos_token_id"))]
    own = backend.token_to_id(special["eos_token"]) if "eos_token" in special else None
    return frozenset(ids) | (frozenset() if own is None else {own})


def _ids(value: Any) -> list[int]:
    items: Iterable[Any] = value if isinstance(value, list) else (value,)
    return [item for item in items if isinstance(item, int) and not isinstance(item, bool)]


def _template(files: Mapping[str, bytes], config: Mapping[str, Any], source: str) -> ChatTemplate | None:
    raw = files.get("chat_template.jinja")
    if raw is not None:
        try:
            text: Any = bytes(raw).decode("utf-8")
        except UnicodeDecodeError as exc:
            raise TokenizerError(f"{source}/chat_template.jinja is not UTF-8: {exc}") from exc
    else:
        text = _json(files, "chat_template.json", source).get("chat_template", config.get("chat_template"))
    if isinstance(text, list):
        named = {item.get("name"): item.get("template") for item in text if isinstance(item, dict)}
        text = named.get("default")
    return ChatTemplate(text, source=source) if isinstance(text, str) else None
