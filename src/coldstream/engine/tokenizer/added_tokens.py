"""What the files beside tokenizer.json say of tokens, put into the library's tokenizer as transformers 5 puts it.

Fine-tuning adds tokens, and not every tool writes them into tokenizer.json: they lie in `added_tokens_decoder`,
`extra_special_tokens` or `additional_special_tokens` of tokenizer_config.json, in special_tokens_map.json or in
added_tokens.json, which may also change a token's flags. Where they are not the vocabulary's, ids follow its last one,
in order: what a file calls a token's id is only its place in that order. `add_bos_token` and `add_eos_token` are not
read where there is a tokenizer.json, whose post-processor says it.

The rules are those of transformers' `PreTrainedTokenizerBase._from_pretrained` and `TokenizersBackend.__init__`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

from coldstream.engine.tokenizer.json_file import json_object
from coldstream.errors import TokenizerError

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The special tokens that every tokenizer may have; other keys that end in `_token` name tokens of one model."""

_EXTRA, _ADDITIONAL = "extra_special_tokens", "additional_special_tokens"
_FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")
# What a class of transformers calls its tokens where tokenizer_config.json does not.
_END = "<|endoftext|>"
_DEFAULTS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "LlamaTokenizer": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
        "GemmaTokenizer": {
            "unk_token": "<unk>",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
        "Qwen2Tokenizer": {"unk_token": _END, "eos_token": _END, "pad_token": _END},
        "GPT2Tokenizer": {"unk_token": _END, "bos_token": _END, "eos_token": _END},
    }
)


@dataclass(frozen=True, slots=True)
class Token:
    """An added token, with the flags that `tokenizers.AddedToken` has; `normalized` None is what `special` is not."""

    content: str
    special: bool = True
    normalized: bool | None = None
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True, slots=True)
class Declared:
    """What the files say: `named` by their names, `extra` special tokens, `listed` by what they call the id.

    `adds_to_own`: the tokens of tokenizer.json count beside `listed`, and before them. `splits_special`: special tokens
    in a text are text (`split_special_tokens`).
    """

    named: Mapping[str, Token]
    extra: tuple[Token, ...] = ()
    listed: Mapping[int, Token] = field(default_factory=lambda: MappingProxyType({}))
    adds_to_own: bool = True
    splits_special: bool = False

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], *, source: str) -> Declared:
        """From a checkpoint's files.

        Raises:
            TokenizerError: a file is no JSON object, or as `of`.
        """
        names = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
        return cls.of(*(json_object(files, name, source) for name in names), source=source)

    @classmethod
    def of(
        cls,
        config: Mapping[str, Any],
        special_map: Mapping[str, Any],
        added: Mapping[str, Any],
        *,
        source: str = "checkpoint",
    ) -> Declared:
        """From the contents of tokenizer_config.json, special_tokens_map.json and added_tokens.json.

        Raises:
            TokenizerError: a token in them is none; names file and key.
        """
        listed = config.get("added_tokens_decoder")
        splits = bool(config.get("split_special_tokens"))
        if listed is not None:  # then the older files are not read
            where = f"{source}/tokenizer_config.json: added_tokens_decoder"
            found = _special(config, {}, source)
            return cls(found.named, found.extra, dict(_by_id(listed, where)), adds_to_own=False, splits_special=splits)
        found = _special(config, special_map, source)
        special = {token.content for name, token in found.named.items() if name in NAMED}
        special |= {item for items in _extra_lists(config, special_map) for item in items if isinstance(item, str)}
        where = f"{source}/added_tokens.json"
        older = {
            _id(number, where): Token(_text(text, where), special=text in special) for text, number in added.items()
        }
        return cls(found.named, found.extra, older, splits_special=splits)

    @property
    def texts(self) -> dict[str, str]:
        """The named tokens as a chat template knows them."""
        return {name: token.content for name, token in self.named.items()}

    def as_json(self) -> dict[str, Any]:
        """Plain data, for another process."""
        return {
            "named": {name: asdict(token) for name, token in self.named.items()},
            "extra": [asdict(token) for token in self.extra],
            "listed": [[number, asdict(token)] for number, token in self.listed.items()],
            "adds_to_own": self.adds_to_own,
            "splits_special": self.splits_special,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Declared:
        """What `as_json` wrote."""
        return cls(
            {name: Token(**token) for name, token in data["named"].items()},
            tuple(Token(**token) for token in data["extra"]),
            {number: Token(**token) for number, token in data["listed"]},
            data["adds_to_own"],
            data["splits_special"],
        )


def declare(backend: Any, declared: Declared) -> frozenset[int]:
    """Tell a `tokenizers.Tokenizer` of the tokens; the ids of all special ones, which it leaves out when decoding."""
    from tokenizers import AddedToken

    before = _specials(backend)
    own = {number: _own(token) for number, token in backend.get_added_tokens_decoder().items()}
    wanted = [AddedToken(**_set(token)) for token in _wanted(declared, own)]
    if wanted:
        backend.add_tokens(wanted)
    backend.encode_special_tokens = declared.splits_special
    return before | _specials(backend)  # the library never takes a token's being special back


def _wanted(declared: Declared, own: Mapping[int, Token]) -> Iterator[Token]:
    """All tokens to add, in order; one that is there already only changes its flags."""
    listed = {**declared.listed, **own} if declared.adds_to_own else dict(declared.listed)
    flags = {token.content: token for token in (*declared.listed.values(), *listed.values())}
    special = {token.content for token in declared.named.values()}
    for _, token in sorted(listed.items()):
        yield replace(token, special=token.special or token.content in special)
    known = {token.content for token in (*own.values(), *listed.values())}
    named = [flags.get(token.content, token) if name in NAMED else token for name, token in declared.named.items()]
    for token in dict.fromkeys((*named, *declared.extra)):
        if token.content not in known:
            yield replace(token, special=token.special or token.content in special)


def _set(token: Token) -> dict[str, Any]:
    return {name: value for name, value in asdict(token).items() if value is not None}


def _own(token: Any) -> Token:
    return Token(token.content, token.special, token.normalized, token.lstrip, token.rstrip, token.single_word)


def _specials(backend: Any) -> frozenset[int]:
    return frozenset(number for number, token in backend.get_added_tokens_decoder().items() if token.special)


def _special(config: Mapping[str, Any], special_map: Mapping[str, Any], source: str) -> Declared:
    """Named and extra tokens; what special_tokens_map.json says goes before tokenizer_config.json."""
    wheres = dict.fromkeys(config, f"{source}/tokenizer_config.json")
    wheres |= dict.fromkeys(special_map, f"{source}/special_tokens_map.json")
    names: dict[str, Any] = dict(_DEFAULTS.get(str(config.get("tokenizer_class")).removesuffix("Fast"), {}))
    names |= {key: value for key, value in (*config.items(), *special_map.items()) if _names_token(key, value)}
    extra = _extra(config, special_map)
    for given in (config.get(_EXTRA), special_map.get(_EXTRA)):
        names |= given if isinstance(given, dict) else {}
    ordered = [*(name for name in NAMED if name in names), *(name for name in names if name not in NAMED)]
    named = {
        name: _token(names[name], f"{wheres.get(name, wheres.get(_EXTRA))}: {name}")
        for name in ordered
        if names[name] is not None
    }
    where = wheres.get(_EXTRA) or wheres.get(_ADDITIONAL) or source
    return Declared(named, tuple(_token(item, f"{where}: special tokens") for item in extra))


def _extra(config: Mapping[str, Any], special_map: Mapping[str, Any]) -> list[Any]:
    """Special tokens without a name. The older key counts where the newer one has no list."""
    lists = _extra_lists(config, special_map)
    if not lists or (config.get(_EXTRA, ()) is None and not config.get(_ADDITIONAL)):
        lists = [special_map.get(_ADDITIONAL, config.get(_ADDITIONAL)) or []]
    return [item for items in lists for item in items]


def _extra_lists(config: Mapping[str, Any], special_map: Mapping[str, Any]) -> list[list[Any]]:
    given = [config.get(_EXTRA) or config.get(_ADDITIONAL), special_map.get(_EXTRA)]
    return [value for value in given if isinstance(value, list)]


def _names_token(key: str, value: Any) -> bool:
    if key in NAMED:
        return True
    return key.endswith("_token") and (isinstance(value, str) or (isinstance(value, dict) and "content" in value))


def _by_id(listed: Any, where: str) -> Iterator[tuple[int, Token]]:
    if not isinstance(listed, dict):
        raise TokenizerError(f"{where} must be an object of ids and tokens, not {type(listed).__name__}")
    for number, value in listed.items():
        if not isinstance(value, dict):
            raise TokenizerError(f"{where}.{number} must be an object, not {type(value).__name__}")
        yield _id(number, where), _token({"special": False, **value}, f"{where}.{number}")


def _id(number: Any, where: str) -> int:
    try:
        found = int(number)
    except (TypeError, ValueError) as exc:
        raise TokenizerError(f"{where}: {number!r} is no token id") from exc
    if found < 0 or isinstance(number, (bool, float)):
        raise TokenizerError(f"{where}: {number!r} is no token id")
    return found


def _token(value: Any, where: str) -> Token:
    """A token from a text or from an object with flags. It is special, if AddedToken itself did not write otherwise."""
    if isinstance(value, str):
        return Token(_text(value, where))
    if not isinstance(value, dict):
        raise TokenizerError(f"{where} must be a text or an object with `content`, not {type(value).__name__}")
    flags = {key: value[key] for key in _FLAGS if value.get(key) is not None}
    if "__type" in value:
        flags = {"special": False, **flags}
    wrong = [key for key, flag in flags.items() if not isinstance(flag, bool)]
    if wrong:
        raise TokenizerError(f"{where}.{wrong[0]} must be true or false")
    return Token(_text(value.get("content"), where), **flags)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise TokenizerError(f"{where} has no text of its own (`content`)")
    return value
