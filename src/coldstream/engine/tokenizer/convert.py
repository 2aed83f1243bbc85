"""tokenizer.json -> converted form. Takes some seconds for a large vocabulary: done once, where a model is packed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coldstream.engine.tokenizer import form
from coldstream.engine.tokenizer.added_tokens import AddedToken, Declared, declare
from coldstream.engine.tokenizer.check_texts import check_texts
from coldstream.engine.tokenizer.converted import (
    PARTS,
    ConvertedTokenizer,
    Description,
    MakeMerges,
    declarations,
    finder,
    refusal,
)
from coldstream.engine.tokenizer.json_file import json_object
from coldstream.errors import TokenizerError
from coldstream.weights.transfer.checksum import crc32c

_RULES = ("ignore_merges", "byte_fallback", "fuse_unk")
_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))


def convert(files: Mapping[str, bytes], *, source: str, merges: MakeMerges) -> bytes:
    """The converted form of files["tokenizer.json"], for a checkpoint whose other files are `files`.

    It is made, held against the library on a thousand texts, and loaded once. `source` is the checkpoint's URI.

    Raises:
        TokenizerError: there is no tokenizer.json that the library reads, or it is of a kind that is not converted; the
            message says why.
    """
    raw = files.get("tokenizer.json")
    if raw is None:
        raise TokenizerError(f"{source}: there is no tokenizer.json to convert")
    where = f"{source}/tokenizer.json"
    written = json_object(files, "tokenizer.json", source)
    declared = Declared.from_files(files, source=source)
    made = _Reference.of(bytes(raw), declared, where)
    names, records, model = _tables(written, where)
    parts = {name: written.get(name) for name in PARTS}
    reason = refusal(parts, made.added.values()) or ("special tokens are split" if declared.splits_special else None)
    if reason is not None:
        raise _unfit(where, reason)
    before, behind = made.around(where)
    checks = tuple((text, made.ids(text)) for text in check_texts(made.added.values(), names))
    about = Description(
        made_of=(len(raw), crc32c(memoryview(raw))),
        declared=declarations(files),
        named=declared.texts,
        unknown=model["unknown"],
        rules=tuple(name for name in _RULES if model[name]),
        parts=parts,
        added={number: token.content for number, token in made.added.items()},
        special=made.special,
        before=before,
        behind=behind,
        sizes=(made.backend.get_vocab_size(False), made.backend.get_vocab_size(True)),
        checks=checks,
    )
    data = form.write(about.as_json(), finder(made.added), names, records)
    _compare(ConvertedTokenizer(data, None, source=source, merges=merges), made, checks, where)
    return data


@dataclass(frozen=True, slots=True)
class _Reference:
    """What `tokenizers` makes of the file."""

    backend: Any
    added: Mapping[int, AddedToken]
    special: frozenset[int]

    @classmethod
    def of(cls, raw: bytes, declared: Declared, where: str) -> _Reference:
        import tokenizers

        try:
            backend = tokenizers.Tokenizer.from_buffer(raw)
            backend.no_truncation()
            backend.no_padding()
            special = declare(backend, declared)
        except Exception as exc:  # the library raises plain Exception
            raise TokenizerError(f"{where} cannot be read by tokenizers: {exc}") from exc
        added = {
            number: AddedToken(
                token.content, token.special, token.normalized, token.lstrip, token.rstrip, token.single_word
            )
            for number, token in sorted(backend.get_added_tokens_decoder().items())
        }
        return cls(backend, added, special)

    def ids(self, text: str, *, special: bool = False) -> list[int]:
        found: list[int] = self.backend.encode(text, add_special_tokens=special).ids
        return found

    def around(self, where: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What is set before and behind a text."""
        bare, whole = self.ids("a"), self.ids("a", special=True)
        more = len(whole) - len(bare)
        for place in range(more + 1):
            if bare and whole[place : place + len(bare)] == bare:
                return tuple(whole[:place]), tuple(whole[place + len(bare) :])
        raise _unfit(where, "its post-processor does more than to set tokens around a text")


def _tables(
    written: Mapping[str, Any], where: str
) -> tuple[list[bytes | None], list[tuple[int, int, int]], dict[str, Any]]:
    """Names by their ids, merges in order, and how the model treats what has no name."""
    model = written.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise _unfit(where, f"its model is {model.get('type') if isinstance(model, dict) else model!r}, not BPE")
    vocabulary: dict[str, int] = model["vocab"]
    if model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _unfit(where, "its model has a dropout, a prefix of continued words or a suffix of their ends")
    if len(set(vocabulary.values())) != len(vocabulary) or max(vocabulary.values()) >= form.MOST_NAMES:
        raise _unfit(where, "two names have one id, or an id is too large")
    names: list[bytes | None] = [None] * (1 + max(vocabulary.values()))
    for name, number in vocabulary.items():
        names[number] = name.encode()
    if max(len(name) for name in names if name is not None) > form.LONGEST_NAME:
        raise _unfit(where, "a name is too long")
    if model.get("byte_fallback") and not vocabulary.keys() >= _BYTES:
        raise _unfit(where, "it falls back on bytes and does not have all of them")
    unknown = model.get("unk_token")
    if unknown is not None and unknown not in vocabulary:
        raise _unfit(where, "its unknown token is not in its vocabulary")
    settings: dict[str, Any] = {name: bool(model.get(name)) for name in _RULES}
    settings["unknown"] = None if unknown is None else vocabulary[unknown]
    return names, _records(model["merges"], vocabulary), settings


def _records(merges: list[Any], vocabulary: Mapping[str, int]) -> list[tuple[int, int, int]]:
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    # Of a pair that is written twice the last counts, as where the library puts them into a table.
    ranks = {
        (vocabulary[left], vocabulary[right]): (rank, vocabulary[left + right])
        for rank, (left, right) in enumerate(pairs)
    }
    return [(*pair, made) for pair, (_, made) in sorted(ranks.items(), key=lambda item: item[1])]


def _compare(
    found: ConvertedTokenizer, made: _Reference, checks: tuple[tuple[str, list[int]], ...], where: str
) -> None:
    for text, ids in checks:
        whole = made.backend.encode(text, add_special_tokens=True)
        same = (
            found.ids(text, add_special_tokens=False) == ids
            and found.ids(text, add_special_tokens=True) == whole.ids
            and found.decode(ids, skip_special_tokens=False) == made.backend.decode(ids, skip_special_tokens=False)
        )
        if not same:
            raise _unfit(where, f"converted, it makes other ids of {text[:40]!r}")


def _unfit(where: str, reason: str) -> TokenizerError:
    return TokenizerError(f"{where} cannot be converted: {reason}; it is used as it is")
