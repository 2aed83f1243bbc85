"""Text <-> token ids, and chat messages -> prompt text, from a checkpoint's own files.

The files are those that transformers writes: tokenizer.json (the `tokenizers` library's format), tokenizer_config.json,
special_tokens_map.json, added_tokens.json, generation_config.json, config.json and the chat templates
(chat_template.jinja, chat_template.json, additional_chat_templates/ or inside tokenizer_config.json). transformers
itself is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

from coldstream.engine.tokenizer.added_tokens import Declared
from coldstream.engine.tokenizer.json_file import json_object
from coldstream.engine.tokenizer.library import LibraryTokenizer
from coldstream.engine.tokenizer.template_files import read_templates
from coldstream.engine.tokenizer.turns import turn_ends
from coldstream.engine.tokenizer.vocabulary import Vocabulary
from coldstream.errors import PromptTooLong, TokenizerError


class TokenizerBackend(Protocol):
    """What a tokenizer does; library.py has it in this process, process.py in another one.

    `special_ids` are the control tokens, which have no text of their own; `added_tokens` are all tokens that are found
    in a text before it is cut into words, by their texts.
    """

    @property
    def special_ids(self) -> frozenset[int]: ...
    @property
    def added_tokens(self) -> Mapping[str, int]: ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text, which may hold the marks of `control_tokens`.

        Raises:
            InvalidRequest: a marked control token cannot be written as text.
        """

    def offsets(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The character of the text at which each of its tokens begins."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of the ids; those that are not in the vocabulary have none."""

    def token_to_id(self, token: str) -> int | None:
        """The id of a token by its exact name."""

    def id_to_token(self, id: int) -> str | None:
        """The name of a token."""

    def token_bytes(self, id: int) -> bytes | None:
        """The bytes that a token stands for; None where tokens of this tokenizer have none of their own."""

    def learn(self, ids: Sequence[int]) -> None:
        """These tokens are about to be asked for one by one."""

    def get_vocab_size(self, *, with_added_tokens: bool = True) -> int:
        """How many tokens there are."""

    def longest_token(self) -> int | None:
        """How many characters a token covers at most; None where there is no limit. Slow the first time."""

    def vocabulary(self) -> Vocabulary:
        """The bytes of all tokens. Slow.

        Raises:
            TokenizerError: tokens of this kind of tokenizer have no bytes of their own.
        """


def build_backend(tokenizer_json: bytes, declared: Declared, *, source: str) -> TokenizerBackend:
    """Build it in this process. Holds the GIL: for a second and more where the vocabulary is large.

    Raises:
        TokenizerError: it is not a tokenizer.json that the library can read.
    """
    return LibraryTokenizer(tokenizer_json, declared, source=source)


class Renders(Protocol):
    """What chat templates do; `chat_templates` has it in this process, `templates_apart` in another one."""

    def __bool__(self) -> bool: ...
    @property
    def text(self) -> str | None:
        """The text of the default template, or of the only one."""

    @property
    def uses_tools(self) -> bool:
        """Whether the template for requests with tools looks at `tools` at all."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        special: Mapping[str, str],
        variables: Mapping[str, Any],
    ) -> str:
        """See `ChatTemplates.render`."""


def build_templates(texts: Mapping[str, str], **options: Any) -> Renders:
    """Compile them in this process, which waits for whatever they compute: only for templates that are trusted.

    Raises:
        TokenizerError: a text is not a Jinja template.
    """
    from coldstream.engine.tokenizer.chat_templates import ChatTemplates

    return ChatTemplates(texts, **options)


class Tokenizer:
    """The tokenizer of one model. Safe to use from several threads: nothing in it changes after `load` and `bound`.

    `bos`, `eos` are the texts of the special tokens, None where the model has none; `stop_ids` are the ids that end a
    generation: those of generation_config.json, of config.json, the tokenizer's own eos token, and what the chat
    template ends a turn with, together, since many checkpoints name one of them in one place only.
    """

    def __init__(
        self,
        backend: TokenizerBackend,
        *,
        special_tokens: Mapping[str, str],
        stop_ids: frozenset[int],
        templates: Renders,
        generation_defaults: Mapping[str, Any],
        source: str,
    ) -> None:
        self.backend = backend
        self.special_tokens = dict(special_tokens)
        self.stop_ids = stop_ids
        self.generation_defaults = dict(generation_defaults)
        self.source = source
        self._templates = templates
        self._context: int | None = None

    @classmethod
    def load(
        cls,
        files: Mapping[str, bytes],
        *,
        source: str = "checkpoint",
        build: Callable[..., TokenizerBackend] = build_backend,
        templates: Callable[..., Renders] = build_templates,
        keeps_control_tokens: bool = False,
    ) -> Tokenizer:
        """Build it from the bytes of the files named in `file_names.TOKENIZER` and `TEMPLATES_BELOW`; all but
        tokenizer.json may be absent.

        `source` is the checkpoint's URI, for messages. `build` says where the tokenizer lives, `templates` where the
        chat templates do: in this process only where both are trusted. With
        `keeps_control_tokens` those in a message's text are control tokens.

        Raises:
            TokenizerError: tokenizer.json is missing or broken, or another file is not what it should be.
        """
        raw = files.get("tokenizer.json")
        if raw is None:
            raise TokenizerError(
                f"{source}: there is no tokenizer.json; save the tokenizer with transformers' "
                "AutoTokenizer.from_pretrained(...).save_pretrained(...) and upload its files"
            )
        declared = Declared.from_files(files, source=source)
        backend = build(raw, declared, source=source)
        return cls.around(
            backend,
            files,
            special_tokens=declared.texts,
            source=source,
            templates=templates,
            keeps_control_tokens=keeps_control_tokens,
        )

    @classmethod
    def around(
        cls,
        backend: TokenizerBackend,
        files: Mapping[str, bytes],
        *,
        special_tokens: Mapping[str, str],
        source: str = "checkpoint",
        templates: Callable[..., Renders] = build_templates,
        keeps_control_tokens: bool = False,
    ) -> Tokenizer:
        """Around a tokenizer that is made, of the other files; `special_tokens` are the texts of those with a name.

        Raises:
            TokenizerError: a file is not what it should be.
        """
        special = dict(special_tokens)
        generation = json_object(files, "generation_config.json", source)
        made_templates = templates(
            read_templates(files, json_object(files, "tokenizer_config.json", source), source),
            special=(text for text, number in backend.added_tokens.items() if number in backend.special_ids),
            added=backend.added_tokens,
            keeps_control_tokens=keeps_control_tokens,
            source=source,
        )
        made = cls(
            backend,
            special_tokens=special,
            stop_ids=_stop_ids(backend, special, generation, json_object(files, "config.json", source)),
            templates=made_templates,
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
        """Whether there is a template for `apply_chat_template`."""
        return bool(self._templates)

    @property
    def chat_template(self) -> str | None:
        """The text of the template for requests without tools, or of the only one."""
        return self._templates.text

    @property
    def template_uses_tools(self) -> bool:
        """Whether the chat template looks at `tools` at all."""
        return self._templates.uses_tools

    @cached_property
    def special_texts(self) -> Mapping[str, int]:
        """The control tokens by their names."""
        special = self.backend.special_ids
        return {text: number for text, number in self.backend.added_tokens.items() if number in special}

    def bound(self, context: int) -> None:
        """Refuse texts that no `context` tokens can hold, before they are encoded: that takes a second a megabyte."""
        self._context = context

    def longest_text(self, tokens: int) -> int | None:
        """How many characters so many tokens can hold at most; None where there is no limit. Slow the first time."""
        longest = self.backend.longest_token()
        return None if longest is None else tokens * longest

    def vocabulary(self) -> Vocabulary:
        """The bytes of all tokens. Slow: not for an event loop.

        Raises:
            TokenizerError: tokens of this kind of tokenizer have no bytes of their own.
        """
        return self.backend.vocabulary()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of the text. A chat template writes its own <bos>: encode its result without special tokens.

        Raises:
            PromptTooLong: it has more characters than the context can hold, whatever they are.
            InvalidRequest: a control token of a message cannot be written as text.
        """
        self._check_length(text)
        return self.backend.encode(text, add_special_tokens=add_special_tokens)

    def offsets(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The character of the text at which each of its tokens begins."""
        return self.backend.offsets(text, add_special_tokens=add_special_tokens)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of the ids; bytes that are no UTF-8 become U+FFFD. Ids beyond the vocabulary have no text."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def _check_length(self, text: str) -> None:
        if self._context is None or len(text) <= self._context:
            return
        limit = self.longest_text(self._context)
        if limit is not None and len(text) > limit:
            raise PromptTooLong(
                f"the prompt has {len(text)} characters, but the model's context holds {self._context} tokens, which "
                f"are {limit} characters at most",
                field="prompt",
            )

    def learn(self, token_ids: Sequence[int]) -> None:
        """The bytes of these tokens are about to be asked for: in another process they are fetched together."""
        self.backend.learn(token_ids)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token by itself, special tokens by their names; for logprobs."""
        own = self.backend.token_bytes(token_id)
        return self.decode((token_id,), skip_special_tokens=False).encode() if own is None else own

    def token_text(self, token_id: int) -> str:
        """The text of one token by itself, special tokens by their names; bytes that are no UTF-8 become U+FFFD."""
        return self.token_bytes(token_id).decode(errors="replace")

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt's text, special tokens written out; encode it with `add_special_tokens=False`.

        Control tokens in the messages' own texts are marked, so that encoding takes them as text.

        Raises:
            InvalidRequest: the model has no template, or the template refuses these messages or leaves a text out.
        """
        return self._templates.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            special=self.special_tokens,
            variables=variables or {},
        )


def _stop_ids(
    backend: TokenizerBackend,
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
