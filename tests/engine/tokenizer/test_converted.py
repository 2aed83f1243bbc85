"""A converted tokenizer answers as the library does of its tokenizer.json, on any text, or is refused by name."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstream.backends.cpu.merges import Merges
from coldstream.engine.tokenizer import form
from coldstream.engine.tokenizer.added_tokens import Declared
from coldstream.engine.tokenizer.control_tokens import ControlTokens
from coldstream.engine.tokenizer.converted import ConvertedTokenizer
from coldstream.engine.tokenizer.library import LibraryTokenizer
from coldstream.engine.tokenizer.near import NEAR, NearTokenizer
from coldstream.engine.tokenizer.tokenizer import Tokenizer, TokenizerBackend
from coldstream.errors import ConvertedUnfit, InvalidRequest, TokenizerError
from coldstream.loading import converted_tokenizer as converted
from coldstream.weights.checkpoint.file_names import CONVERTED
from coldstream.weights.stores.store import Pin
from tests.support.parts import tokenizer_files

CORPUS = [
    "the quick brown fox doesn't jump over 12345 lazy dogs, don't they? the other the other",
    "안녕하세요 세계 안녕 안녕하세요  你好世界 你好 こんにちは こんにちは",
    "def f(x):\n\treturn x  # aaaaaaaa\n\n\nabababab the",
    "नमस्ते दुनिया नमस्ते é e\u0301 ñ 🙂🙂 👩‍👩‍👧",
] * 3
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<unk>", "<s>", "</s>", "<|turn|>"]
PARTS = tokenizers.pre_tokenizers


def trained(backend: tokenizers.Tokenizer, *, alphabet: list[str] | None = None) -> tokenizers.Tokenizer:
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=700, special_tokens=SPECIAL, show_progress=False, initial_alphabet=alphabet or [], min_frequency=1
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def byte_level(*before: Any, normalizer: Any = None, whole: bool = True) -> tokenizers.Tokenizer:
    """As Llama 3, Qwen, SmolLM2 and Mistral's Tekken cut; not `whole`: bytes that were not trained on have no token."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=not before))
    backend.normalizer = normalizer
    level = PARTS.ByteLevel(add_prefix_space=False, use_regex=not before)
    backend.pre_tokenizer = PARTS.Sequence([*before, level])
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True)
    return trained(backend, alphabet=PARTS.ByteLevel.alphabet() if whole else None)


def sentence_piece(pre_tokenizer: Any, *normalizers: Any) -> tokenizers.Tokenizer:
    """As Gemma and Llama 2: blanks are letters, and what has no name is written in bytes."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    several = len(normalizers) > 1
    backend.normalizer = (
        tokenizers.normalizers.Sequence(list(normalizers)) if several else next(iter(normalizers), None)
    )
    backend.pre_tokenizer = PARTS.Metaspace(prepend_scheme="first", split=True)
    trained(backend)
    state = json.loads(backend.to_str())
    state["model"]["vocab"] |= {f"<0x{byte:02X}>": 1000 + byte for byte in range(256)}
    backend = tokenizers.Tokenizer.from_str(json.dumps(state))
    backend.pre_tokenizer = pre_tokenizer
    decoders = tokenizers.decoders
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in ("▁▁", "\n\n", "[x]")])
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return backend


def plain(*, fuse: bool) -> tokenizers.Tokenizer:
    """What has no name is the unknown token; added tokens take the blanks beside them along."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", fuse_unk=fuse))
    backend.pre_tokenizer = PARTS.Whitespace()
    trained(backend)
    token = tokenizers.AddedToken
    backend.add_tokens(
        [token("<m>", lstrip=True, rstrip=True), token("whole", single_word=True), token("<n>", normalized=True)]
    )
    return backend


replace = tokenizers.normalizers.Replace(" ", "▁")
KINDS: Mapping[str, Callable[[], tokenizers.Tokenizer]] = {
    "llama 3": lambda: byte_level(PARTS.Split(tokenizers.Regex(LLAMA3), behavior="isolated")),
    "qwen": lambda: byte_level(
        PARTS.Split(tokenizers.Regex(LLAMA3), "isolated"), normalizer=tokenizers.normalizers.NFC()
    ),
    "smollm2": lambda: byte_level(PARTS.Digits(individual_digits=True), whole=False),
    "gpt-2": byte_level,
    "gemma": lambda: sentence_piece(PARTS.Split(" ", "merged_with_previous"), replace),
    "replaced, then cut": lambda: sentence_piece(PARTS.Split("e", "isolated"), replace),
    "llama 2": lambda: sentence_piece(None, tokenizers.normalizers.Prepend("▁"), replace),
    "mistral": lambda: sentence_piece(PARTS.Metaspace(prepend_scheme="first", split=False)),
    "unknown, fused": lambda: plain(fuse=True),
    "unknown": lambda: plain(fuse=False),
}
CONFIG = {"bos_token": "<s>", "eos_token": "</s>", "extra_special_tokens": ["<|new|>"]}
TEXTS = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.sampled_from(
            [*SPECIAL, *CORPUS, "<|new|>", "[x]", "▁▁", "\n\n", "<m>", "whole", "<n>", " ", "  ", "▁", "Ġ", "<0x0A>"]
        ),
        st.text("the otr안녕 \u0301é'12\x04\u05c8\u0591", max_size=12),
    ),
    max_size=8,
).map("".join)


@cache
def files_of(kind: str) -> Mapping[str, bytes]:
    return {"tokenizer.json": KINDS[kind]().to_str().encode(), "tokenizer_config.json": json.dumps(CONFIG).encode()}


@cache
def both(kind: str) -> tuple[LibraryTokenizer, ConvertedTokenizer]:
    files = files_of(kind)
    reference = LibraryTokenizer(
        files["tokenizer.json"], Declared.from_files(files, source="gs://b/m"), source="gs://b/m"
    )
    return reference, converted.load({**files, CONVERTED: converted.convert(files)})


@cache
def made() -> bytes:
    return converted.convert(tokenizer_files())


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS, ids=st.lists(st.integers(0, 1300), max_size=12), special=st.booleans())
def test_it_answers_as_the_library_does(kind: str, text: str, ids: list[int], special: bool) -> None:
    there, here = both(kind)
    wanted = there.encode(text, add_special_tokens=special)
    assert here.encode(text, add_special_tokens=special) == wanted
    assert here.offsets(text, add_special_tokens=special) == there.offsets(text, add_special_tokens=special)
    for numbers in (wanted, ids):
        assert here.decode(numbers, skip_special_tokens=special) == there.decode(numbers, skip_special_tokens=special)
    for number in ids:
        assert here.id_to_token(number) == there.id_to_token(number)
        assert here.token_bytes(number) == there.token_bytes(number)
    assert here.token_to_id(text) == there.token_to_id(text)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_a_users_control_tokens_are_text_as_with_the_library(kind: str, texts: list[str]) -> None:
    there, here = both(kind)
    control = ControlTokens(SPECIAL)
    marked = "<|turn|>".join(control.mark(text) for text in texts)

    def said(tokenizer: TokenizerBackend) -> list[int] | str:
        try:
            return tokenizer.encode(marked, add_special_tokens=False)
        except InvalidRequest as exc:
            return str(exc)

    assert said(here) == said(there)


@pytest.mark.parametrize("kind", KINDS)
def test_its_vocabulary_is_the_librarys(kind: str) -> None:
    there, here = both(kind)
    assert (here.special_ids, here.added_tokens, here.decoder) == (there.special_ids, there.added_tokens, there.decoder)
    assert here.longest_token() == there.longest_token()
    for added in (True, False):
        assert here.get_vocab_size(with_added_tokens=added) == there.get_vocab_size(with_added_tokens=added)
    if here.longest_token() is not None:
        assert here.vocabulary() == there.vocabulary()


def unigram() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer(tokenizers.models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0))


def nothing_unknown() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="[none]"))


def suffixed() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer(tokenizers.models.BPE({"a</w>": 0}, [], end_of_word_suffix="</w>"))


def normalized_token() -> tokenizers.Tokenizer:
    backend = sentence_piece(None, replace)
    backend.add_tokens([tokenizers.AddedToken("a b", normalized=True)])
    return backend


def not_all_bytes() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "<0x00>": 1}, [], byte_fallback=True))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (unigram, "its model is 'Unigram', not BPE"),
        (suffixed, "a suffix of their ends"),
        (normalized_token, "looked for in the normalized text"),
        (not_all_bytes, "does not have all of them"),
    ],
)
def test_a_kind_that_is_not_converted_is_refused_by_name(make: Any, why: str) -> None:
    with pytest.raises(TokenizerError, match=f"gs://b/m/tokenizer.json cannot be converted: .*{why}"):
        converted.convert({"tokenizer.json": make().to_str().encode()}, source="gs://b/m")


def test_it_is_used_beside_what_it_was_made_of_alone() -> None:
    files = {**tokenizer_files(), CONVERTED: made()}
    pin = Pin("tokenizer.json", len(files["tokenizer.json"]))
    assert converted.load(files, made_of=pin).encode("a b") == Tokenizer.load(files).encode("a b")
    other = files["tokenizer.json"].replace(b"<pad>", b"<pat>")
    with pytest.raises(ConvertedUnfit, match=r"made of another tokenizer\.json"):
        converted.load({**files, "tokenizer.json": other}, made_of=pin)
    without = {name: data for name, data in files.items() if name != "tokenizer.json"}
    with pytest.raises(ConvertedUnfit, match=r"made of another tokenizer\.json"):
        converted.load(without, made_of=Pin("tokenizer.json", pin.size, crc32c=1))
    with pytest.raises(ConvertedUnfit, match=r"another tokenizer_config\.json"):
        converted.load({**files, "tokenizer_config.json": b"{}"})


def sealed(body: bytes, version: int = form.VERSION) -> bytes:
    """With the checksum that it ought to have."""
    return form.MAGIC + struct.pack("<II", version, zlib.crc32(body)) + body


def changed(finder: bytes | None = None, **changes: Any) -> bytes:
    """A form whose description, or finder, says something else."""
    found = form.read(made(), source="x")
    about = json.dumps({**found.description, **changes}).encode()
    rest = [
        finder or found.finder,
        *(found.data[part.start : part.stop] for part in (found.sizes, found.names, found.records)),
    ]
    return sealed(struct.pack("<5I", len(about), *map(len, rest)) + about + b"".join(rest))


def with_other_ids() -> bytes:
    return changed(checks=[[text, [*ids, 1]] for text, ids in form.read(made(), source="x").description["checks"]])


def replacing(string: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": string}, "content": content}


def splitting(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def with_part(kind: str, *steps: dict[str, Any]) -> dict[str, Any]:
    """The parts of a form, one of them other steps."""
    name = {"pre_tokenizer": "pretokenizers"}.get(kind, f"{kind}s")
    part = steps[0] if len(steps) == 1 else {"type": "Sequence", name: list(steps)}
    parts: dict[str, Any] = {**form.read(made(), source="x").description["parts"], kind: part}
    return parts


def finding(normalizer: dict[str, Any]) -> bytes:
    """A finder that does more to a text than to find."""
    return json.dumps({**json.loads(form.read(made(), source="x").finder), "normalizer": normalizer}).encode()


ATTACKS = [
    (lambda: b"", "is none"),
    (lambda: b"{}", "is none"),
    (lambda: made()[:-1], "damaged or truncated"),
    (lambda: sealed(made()[16:], version=2), "has version 2"),
    (lambda: sealed(struct.pack("<5I", *(5 * [0xFFFFFFFF]))), "damaged or truncated"),
    (lambda: sealed(struct.pack("<5I", 2, 0, 1, 0, 0) + b"{}\0"), "impossible sizes"),
    (lambda: sealed(struct.pack("<5I", 5, 0, 0, 0, 0) + b"[1,2]"), "no object"),
    (lambda: sealed(struct.pack("<5I", 200_000, 0, 0, 0, 0) + b"[" * 200_000), "no JSON"),
    (lambda: changed(added=[[1], ["a", "b"]]), "describes none"),
    (lambda: changed(added=[[-1], ["a"]]), "describes none"),
    (lambda: changed(special="x"), "describes none"),
    (lambda: changed(parts={}), "describes none"),
    (lambda: changed(unknown=1 << 21), "unknown token has no name"),
    (lambda: changed(finder=b"{}"), "describes none"),
    (lambda: changed(finder=unigram().to_str().encode()), "cannot be used: what finds its added tokens does more"),
    (lambda: changed(finder=finding({"type": "Replace", "pattern": {"String": "a"}, "content": "b"})), "does more"),
    (lambda: changed(parts=with_part("normalizer", replacing("a", "a" * 65))), "cannot be used: .* 65 times as long"),
    (lambda: changed(parts=with_part("normalizer", *(7 * [replacing("a", "aa")]))), "normalizer .* 128 times as long"),
    (lambda: changed(parts=with_part("normalizer", {"type": "Precompiled"})), "type 'Precompiled', which may make"),
    (lambda: changed(parts=with_part("normalizer", *(40 * [{"type": "Lowercase"}]))), "more than 32 parts"),
    (lambda: changed(parts=with_part("decoder", replacing("a", "a" * 65))), "decoder .* 65 times as long"),
    (lambda: changed(parts=with_part("pre_tokenizer", splitting("(a+)+$"))), "a pattern whose cost is not known"),
    (lambda: changed(finder=nothing_unknown().to_str().encode()), "cannot encode"),
    (with_other_ids, "makes other ids"),
]


@pytest.mark.parametrize(("attack", "why"), ATTACKS)
def test_a_form_that_is_wrong_is_refused_by_name(attack: Callable[[], bytes], why: str) -> None:
    with pytest.raises(ConvertedUnfit, match=f"^gs://b/m: the converted tokenizer .*{why}"):
        converted.load({**tokenizer_files(), CONVERTED: attack()}, source="gs://b/m")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_form_with_any_byte_changed_is_refused_or_answers(data: st.DataObject) -> None:
    body = bytearray(made()[16:])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = converted.load({**tokenizer_files(), CONVERTED: sealed(bytes(body))})
    except ConvertedUnfit:
        return
    text = data.draw(TEXTS)
    found.decode(found.encode(text))
    found.offsets(text)


@given(
    names=st.lists(st.none() | st.text("ab안", max_size=3).map(str.encode), min_size=1, max_size=12),
    records=st.lists(st.tuples(*(st.integers(0, 14) for _ in range(3))), max_size=12),
    rules=st.sets(st.sampled_from(["ignore_merges", "byte_fallback", "fuse_unk"])),
    text=st.text("ab안x", max_size=20),
)
@settings(max_examples=150, deadline=None)
def test_tables_of_any_content_are_refused_or_encode(
    names: list[bytes | None], records: list[tuple[int, int, int]], rules: set[str], text: str
) -> None:
    read = form.read(form.write({}, b"", names, records), source="x")
    ranges = {"sizes": read.sizes, "names": read.names, "records": read.records}
    try:
        merges = Merges(read.data, **ranges, unknown=0, rules=rules, seed=7, source="x")
    except ConvertedUnfit:
        return
    assert sum(size for _, size in merges.pieces(text)) <= len(text.encode())


@pytest.fixture(scope="module")
def near() -> Iterator[TokenizerBackend]:
    files = {**tokenizer_files(), CONVERTED: made()}
    started: list[Any] = []
    pin = Pin("tokenizer.json", len(files["tokenizer.json"]))
    yield converted.near(files, made_of=pin, began=started.append, source="gs://b/m")
    for process in started:
        process.close()


def test_long_texts_go_to_a_process_of_the_same_form(near: NearTokenizer) -> None:
    reference = Tokenizer.load(tokenizer_files())
    for text in ("a b", "a b " * NEAR, "안" * NEAR):
        assert near.encode(text) == reference.encode(text)
        assert near.offsets(text) == reference.offsets(text)
    assert near.vocabulary() == reference.vocabulary()
    assert near.longest_token() == reference.backend.longest_token()


def test_a_text_that_is_none_is_an_error_of_ours(near: NearTokenizer) -> None:
    for text in ("\ud800", "a" * NEAR + "\ud800"):
        with pytest.raises(TokenizerError):
            near.encode(text)
    assert near.encode("a", add_special_tokens=False)
