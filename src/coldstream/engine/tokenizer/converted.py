"""A tokenizer from its converted form: what takes the time with tokenizer.json, its merges, lies ready.

All else is done by the parts of the `tokenizers` library that are made in milliseconds: added tokens are found, texts
are normalized and cut into words, names are joined to texts by the very code that does it for tokenizer.json. Only the
merging of a word's letters is not the library's: `Merges` does it, by the same list in the same order.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from coldstream.engine.tokenizer import control_tokens, form
from coldstream.engine.tokenizer.added_tokens import AddedToken
from coldstream.engine.tokenizer.bounded import unbounded
from coldstream.engine.tokenizer.library import bytes_of, spell_of, starts, words_of
from coldstream.engine.tokenizer.vocabulary import Names, Vocabulary, longest, vocabulary
from coldstream.errors import ConvertedUnfit, TokenizerError

CHECKED = 64
"""Of the texts in a form, how many are encoded before it is used; evenly spread over all of them."""
PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
DECLARING = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
BETWEEN = ""
"""What the finder calls all that is no added token."""


class Merging(Protocol):
    """Byte-pair encoding over a form's tables (`backends.cpu.merges.Merges`)."""

    def encode(self, words: Sequence[str]) -> list[int]:
        """The ids of the words, one after the other."""

    def pieces(self, word: str) -> list[tuple[int, int]]:
        """The ids of one word, and how many bytes of its UTF-8 each of them covers."""

    def find(self, name: str) -> int | None:
        """The id that has this name."""

    def name(self, id: int) -> str | None:
        """The name of an id."""


MakeMerges = Callable[..., Merging]
"""`Merges`: takes the form's bytes, its three ranges, `unknown`, `rules`, `seed` and `source`."""


@dataclass(frozen=True, slots=True)
class Description:
    """What a form says beside its tables.

    `made_of` are size and CRC32C of its tokenizer.json, `declared` the digest of the files that declare more tokens.
    `unknown` and `rules` are those of `Merges`, `parts` the library's own descriptions of PARTS. `added` are the added
    tokens' texts by their ids, `named` the special tokens' texts by their names, `special` all ids of control tokens,
    `before` and `behind` the ids that `add_special_tokens` sets around a text. `sizes` is the vocabulary's size without
    and with added tokens. `checks` are texts with their ids.
    """

    made_of: tuple[int, int]
    declared: str
    named: Mapping[str, str]
    unknown: int | None
    rules: Sequence[str]
    parts: Mapping[str, Any]
    added: Mapping[int, str]
    special: frozenset[int]
    before: Sequence[int]
    behind: Sequence[int]
    sizes: Sequence[int]
    checks: Sequence[tuple[str, Sequence[int]]]

    def as_json(self) -> dict[str, Any]:
        """Plain data, for a form."""
        return {
            "made_of": self.made_of,
            "declared": self.declared,
            "named": self.named,
            "unknown": self.unknown,
            "rules": self.rules,
            "parts": self.parts,
            "added": [list(self.added.keys()), list(self.added.values())],
            "special": sorted(self.special),
            "before": self.before,
            "behind": self.behind,
            "sizes": self.sizes,
            "checks": self.checks,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Description:
        """What `as_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        numbers, texts = data["added"]
        size, checksum = data["made_of"]
        without, whole = _ids(data["sizes"])
        checks = data["checks"][:: max(1, len(data["checks"]) // CHECKED)]
        return cls(
            made_of=(int(size), int(checksum)),
            declared=_texts([data["declared"]])[0],
            named=dict(zip(_texts(list(data["named"])), _texts(list(data["named"].values())), strict=True)),
            unknown=None if data["unknown"] is None else _ids([data["unknown"]])[0],
            rules=_texts(data["rules"]),
            parts={name: data["parts"][name] for name in PARTS},
            added=dict(zip(_ids(numbers), _texts(texts), strict=True)),
            special=frozenset(_ids(data["special"])),
            before=_ids(data["before"]),
            behind=_ids(data["behind"]),
            sizes=(without, whole),
            checks=[(_texts([text])[0], _ids(ids)) for text, ids in checks],
        )


class ConvertedTokenizer:
    """See `TokenizerBackend`; in this process, and safe to call from any thread.

    `declared` is `declarations` of the checkpoint's files, None where the same form was made before; `source` is its
    URI. Encoding holds the interpreter's lock while words are cut, which is most of its time.

    Raises:
        ConvertedUnfit: the form is damaged, of another version or of other declarations, or does not make the ids that
            it says the library made.
    """

    def __init__(self, data: bytes, declared: str | None, *, source: str, merges: MakeMerges) -> None:
        self._form = form.read(data, source=source)
        self._where = f"{source}: the converted tokenizer"
        try:
            about = self._about = Description.from_json(self._form.description)
            if (reason := unbounded(about.parts) or _more_than_finds(self._form.finder)) is not None:
                raise ConvertedUnfit(f"{self._where} cannot be used: {reason}")
            self._shell = _Shell(about, self._form.finder)
        except ConvertedUnfit:
            raise
        except Exception as exc:  # the library raises plain Exception
            raise ConvertedUnfit(f"{self._where} describes none that can be made ({exc}); convert it again") from exc
        if declared is not None and about.declared != declared:
            raise ConvertedUnfit(
                f"{self._where} was made beside another {', '.join(DECLARING)} than lie here; convert it again"
            )
        parts = self._form
        self._merges = merges(
            parts.data,
            sizes=parts.sizes,
            names=parts.names,
            records=parts.records,
            unknown=about.unknown,
            rules=about.rules,
            seed=secrets.randbits(64),
            source=source,
        )
        self.made_of = about.made_of
        self.special_tokens = dict(about.named)
        self.special_ids = about.special
        self.added_tokens: dict[str, int] = {text: number for number, text in about.added.items()}
        self.decoder: dict[str, Any] = about.parts["decoder"] or {}
        self._spell = spell_of(self.decoder)
        self._check()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """See `Backend.encode`."""
        return control_tokens.encode(self, text, add_special_tokens=add_special_tokens)

    def ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """See `Spelling.ids`."""
        found: list[int] = []
        for piece in self._shell.pieces(text):
            if piece.id is not None:
                found.append(piece.id)
            else:
                found += self._merges.encode(self._shell.words(piece))
        return [*self._about.before, *found, *self._about.behind] if add_special_tokens else found

    def bare(self, text: str) -> list[int]:
        """See `Spelling.bare`."""
        return self._merges.encode(self._shell.words(TextPiece(None, 0, text)))

    def offsets(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """See `Backend.offsets`."""
        found: list[tuple[int, int]] = []
        for piece in self._shell.pieces(text):
            if piece.id is not None:
                found.append((piece.start, piece.start + len(piece.text)))
            else:
                inside = self._shell.offsets(piece, is_first=not found, tokens=self._tokens)
                found += [(piece.start + start, piece.start + end) for start, end in inside]
        if add_special_tokens:
            found = [*((0, 0) for _ in self._about.before), *found, *((0, 0) for _ in self._about.behind)]
        return starts(found)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """See `Backend.decode`."""
        names = (self.id_to_token(number) for number in ids if not (skip_special_tokens and number in self.special_ids))
        return self._shell.join([name for name in names if name is not None])

    def token_to_id(self, token: str) -> int | None:
        """See `Backend.token_to_id`."""
        return self.added_tokens[token] if token in self.added_tokens else self._merges.find(token)

    def id_to_token(self, id: int) -> str | None:
        """See `Backend.id_to_token`."""
        return self._about.added[id] if id in self._about.added else self._merges.name(id)

    def token_bytes(self, id: int) -> bytes | None:
        """See `Backend.token_bytes`."""
        return bytes_of(self.id_to_token(id), self.added_tokens, self._spell)

    def learn(self, ids: Sequence[int]) -> None:
        """See `Backend.learn`: they are here."""

    def get_vocab_size(self, *, with_added_tokens: bool = True) -> int:
        """See `Backend.get_vocab_size`."""
        return self._about.sizes[with_added_tokens]

    def longest_token(self) -> int | None:
        """See `Backend.longest_token`."""
        return longest(self._names())

    def vocabulary(self) -> Vocabulary:
        """See `Backend.vocabulary`."""
        try:
            return vocabulary(self._names(), self.special_ids)
        except ValueError as exc:
            raise TokenizerError(f"{self._where}: {exc}") from exc

    def _names(self) -> Names:
        named = ((number, self._merges.name(number)) for number in range(len(self._form.sizes) // 2))
        own = {number: name for number, name in named if name is not None}
        return Names(own, self._about.added, self.decoder)

    def _tokens(self, word: str) -> list[tuple[int, str, int]]:
        """Id and name of each token of a word, and how many bytes of it it covers."""
        return [(number, self._merges.name(number) or "", size) for number, size in self._merges.pieces(word)]

    def _check(self) -> None:
        for text, ids in self._about.checks:
            try:
                found = self.ids(text, add_special_tokens=False)
            except Exception as exc:  # the library raises plain Exception
                raise ConvertedUnfit(f"{self._where} cannot encode ({exc}); convert it again") from exc
            if found != ids:
                raise ConvertedUnfit(
                    f"{self._where} makes other ids than its source of {text[:40]!r}; convert it again"
                )


@dataclass(frozen=True, slots=True)
class TextPiece:
    """A part of a text, from its character `start` on: an added token by its id, or what stands between them."""

    id: int | None
    start: int
    text: str


class _Shell:
    """Tokenizers of the library with the parts of this one and no vocabulary: what stands around the merges.

    Raises whatever the library raises where it cannot make the parts.
    """

    def __init__(self, about: Description, finder: bytes) -> None:
        import tokenizers

        self._library = tokenizers
        parts = about.parts
        self._finder = tokenizers.Tokenizer.from_buffer(finder)
        self._between = self._finder.token_to_id(BETWEEN)
        made = _made(normalizer=parts["normalizer"], decoder=parts["decoder"])
        self._normalizer, decoder = made.normalizer, made.decoder
        # What is said of a text's beginning holds for its first piece alone.
        cutters = (parts["pre_tokenizer"], _with(parts["pre_tokenizer"], "prepend_scheme", "first", "never"))
        posts = (parts["post_processor"], _with(parts["post_processor"], "add_prefix_space", True, False))
        self._cutters = [_made(pre_tokenizer=part).pre_tokenizer for part in cutters]
        self._posts = [_made(post_processor=part) for part in posts]
        # As Gemma's: what the library does to a text of any length is then done at once.
        self._replaced = _replacement(parts["normalizer"])
        self._cut_at = _string(parts["pre_tokenizer"], "Split")
        self.join: Callable[[list[str]], str] = decoder.decode if decoder is not None else " ".join

    def pieces(self, text: str) -> list[TextPiece]:
        """The text cut at its added tokens."""
        found = self._finder.encode(text, add_special_tokens=False)
        ids = found.ids
        if len(ids) == 1 and ids[0] == self._between:
            return [TextPiece(None, 0, text)]
        return [
            TextPiece(None if number == self._between else number, start, text[start:end])
            for number, (start, end) in zip(ids, found.offsets, strict=True)
        ]

    def words(self, piece: TextPiece) -> list[str]:
        """What the model gets of a piece."""
        text, normalizer, cutter = piece.text, self._normalizer, self._cutters[piece.start > 0]
        if self._replaced is not None:
            text, normalizer = text.replace(*self._replaced), None
            if text and self._cut_at is not None and self._cut_at not in text:
                return [text]
        return words_of(text, normalizer, cutter)

    def offsets(
        self, piece: TextPiece, *, is_first: bool, tokens: Callable[[str], list[tuple[int, str, int]]]
    ) -> list[tuple[int, int]]:
        """The characters of a piece that each of its tokens covers, as the library aligns them."""
        cut = self._library.PreTokenizedString(piece.text)
        if self._normalizer is not None:
            cut.normalize(self._normalizer.normalize)
        if (cutter := self._cutters[piece.start > 0]) is not None:
            cutter.pre_tokenize(cut)

        def tokenized(word: str) -> list[Any]:
            made, place = [], 0
            for number, name, size in tokens(word):
                made.append(self._library.Token(number, name, (place, place + size)))
                place += size
            return made

        cut.tokenize(tokenized)
        encoding = self._posts[not is_first].post_process(cut.to_encoding(), None, add_special_tokens=False)
        offsets: list[tuple[int, int]] = encoding.offsets
        return offsets


def declarations(files: Mapping[str, bytes]) -> str:
    """A digest of the files that say of tokens what tokenizer.json does not."""
    digest = hashlib.sha256()
    for name in DECLARING:
        digest.update(hashlib.sha256(files.get(name, b"")).digest())
    return digest.hexdigest()


def refusal(parts: Mapping[str, Any], added: Collection[AddedToken]) -> str | None:
    """Why a tokenizer with these parts and tokens is not made of pieces that stand by themselves; None where it is."""
    if parts["normalizer"] is not None and any(_is_normalized(token) for token in added):
        return "an added token is looked for in the normalized text"
    return unbounded(parts)


def _is_normalized(token: AddedToken) -> bool:
    return not token.special if token.normalized is None else token.normalized


def _with(part: Any, name: str, old: Any, new: Any) -> Any:
    """A copy of a part's description with another value of this name, wherever it has that one."""
    if isinstance(part, list):
        return [_with(item, name, old, new) for item in part]
    if not isinstance(part, dict):
        return part
    return {key: new if key == name and value == old else _with(value, name, old, new) for key, value in part.items()}


def _string(part: Any, kind: str) -> str | None:
    """The string that a part of this kind looks for, where it is one."""
    pattern = part.get("pattern") if isinstance(part, dict) and part.get("type") == kind else None
    string = pattern.get("String") if isinstance(pattern, dict) else None
    return string if isinstance(string, str) and string else None


def _replacement(part: Any) -> tuple[str, str] | None:
    """What a normalizer replaces by what, where it does nothing else."""
    string = _string(part, "Replace")
    return None if string is None else (string, part["content"])


def finder(added: Mapping[int, AddedToken]) -> bytes:
    """A tokenizer.json that finds these tokens, by their ids; all that stands between two of them is one more token."""
    tokens = [
        {**asdict(token), "id": number, "normalized": _is_normalized(token)} for number, token in sorted(added.items())
    ]
    vocabulary = {token.content: number for number, token in added.items()}
    return _json(_model({**vocabulary, BETWEEN: 1 + max(added, default=0)}), tokens)


def _more_than_finds(finder: bytes) -> str | None:
    """Why this is no tokenizer that finds added tokens and does nothing else to a text; None where it is one."""
    written = json.loads(finder)
    finds = not any(written.get(name) for name in PARTS) and written["model"]["type"] == "WordLevel"
    return None if finds else "what finds its added tokens does more than that"


def _made(**parts: Any) -> Any:
    import tokenizers

    return tokenizers.Tokenizer.from_buffer(_json(_model({BETWEEN: 0}), [], **parts))


def _json(model: Mapping[str, Any], added: Sequence[Mapping[str, Any]], **parts: Any) -> bytes:
    nothing = dict.fromkeys(("truncation", "padding", *PARTS))
    return json.dumps(
        {"version": "1.0", **nothing, **parts, "added_tokens": added, "model": model}, separators=(",", ":")
    ).encode()


def _model(vocabulary: Mapping[str, int]) -> dict[str, Any]:
    return {"type": "WordLevel", "vocab": vocabulary, "unk_token": BETWEEN}


def _ids(values: Any) -> list[int]:
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < form.MOST_NAMES for value in values):
        raise ValueError("there is a list that is not of ids")
    return values


def _texts(values: Any) -> list[str]:
    if not isinstance(values, list) or not all(type(value) is str for value in values):
        raise ValueError("there is a list that is not of texts")
    return values
