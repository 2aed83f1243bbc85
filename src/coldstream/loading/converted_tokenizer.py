"""The converted form of a checkpoint's tokenizer: made once, and read at a start in place of tokenizer.json.

It is used where it was made of the very tokenizer.json that lies there, by its CRC32C and size, and of the same
declarations of tokens, and where it encodes texts as its source did; else tokenizer.json is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from coldstream.backends.cpu.merges import Merges
from coldstream.engine.tokenizer import convert as converting
from coldstream.engine.tokenizer import process
from coldstream.engine.tokenizer.added_tokens import Declared
from coldstream.engine.tokenizer.converted import ConvertedTokenizer, declarations
from coldstream.engine.tokenizer.near import NearTokenizer
from coldstream.engine.tokenizer.process import TokenizerProcess
from coldstream.errors import ConvertedUnfit
from coldstream.weights.checkpoint.checkpoint import Checkpoint
from coldstream.weights.checkpoint.file_names import CONVERTED, TEMPLATES_BELOW, TOKENIZER
from coldstream.weights.stores.store import Pin
from coldstream.weights.transfer.checksum import crc32c

_SOURCE = "tokenizer.json"


def convert(files: Mapping[str, bytes], *, source: str = "checkpoint") -> bytes:
    """What is to lie as `CONVERTED` in place of files["tokenizer.json"]; `files` are the checkpoint's small files, and
    `source` is its URI. Takes seconds, for a large vocabulary ten.

    Raises:
        TokenizerError: there is no tokenizer.json, or it is of a kind that is not converted; says why.
    """
    return converting.convert(files, source=source, merges=Merges)


def load(files: Mapping[str, bytes], *, made_of: Pin | None = None, source: str = "checkpoint") -> ConvertedTokenizer:
    """The tokenizer of files[CONVERTED], in this process.

    `made_of` is the tokenizer.json that lies in the checkpoint; where that has no checksum, `files` has it.

    Raises:
        ConvertedUnfit: it was made of another one, or may not be used; tokenizer.json is to be read instead.
    """
    made = ConvertedTokenizer(files[CONVERTED], declarations(files), source=source, merges=Merges)
    if made_of is not None:
        raw = files.get(_SOURCE)
        checksum = made_of.crc32c if raw is None else crc32c(memoryview(raw))
        if made.made_of != (made_of.size, checksum):
            raise ConvertedUnfit(
                f"{source}: the converted tokenizer was made of another tokenizer.json; convert it again"
            )
    return made


def names(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The small files to read: tokenizer.json is left out where its converted form lies beside it and it has a checksum
    that the form can be held against.
    """
    own = (*TOKENIZER, *TEMPLATES_BELOW)
    source = checkpoint.files.get(_SOURCE)
    if source is None or CONVERTED not in checkpoint.files:
        return own
    return (CONVERTED, *(name for name in own if name != _SOURCE or source.crc32c is None))


def near(
    files: Mapping[str, bytes], *, made_of: Pin, began: Callable[[TokenizerProcess], None], source: str
) -> NearTokenizer:
    """The same, with a process for long texts, which `began` is given when it is started.

    Raises:
        ConvertedUnfit: see `load`.
    """

    def begin() -> TokenizerProcess:
        started = TokenizerProcess(f"{__name__}:serve")
        began(started)
        return started.build(files[CONVERTED], Declared({}), source=source)

    return NearTokenizer(load(files, made_of=made_of, source=source), begin)


def serve(descriptors: Sequence[int]) -> None:
    """What a tokenizer's process runs that has a converted form."""
    process.serve(descriptors, merges=Merges)
