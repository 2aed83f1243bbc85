"""A checkpoint's small files in a folder, for libraries that read theirs from one: verified, in memory, and bounded.

/dev/shm takes them where it has the room; on Cloud Run the rest of the disk is memory too. No weights and no code of a
checkpoint are among them.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from coldstream.errors import CheckpointError
from coldstream.weights.checkpoint.checkpoint import Checkpoint
from coldstream.weights.checkpoint.file_names import TEMPLATES_BELOW

MOST_BYTES = 256 * 1024 * 1024
"""Of all files together; the largest tokenizers known have some 40 MB."""
_SHARED = Path("/dev/shm")  # noqa: S108  made by mkdtemp, for this user alone
_SPARE = 32 * 1024 * 1024
_KINDS = (".json", ".jinja", ".model", ".txt", ".tiktoken")


async def write_folder(
    checkpoint: Checkpoint, *, most: int = MOST_BYTES, instead: Mapping[str, bytes] | None = None
) -> Path:
    """A new folder with the checkpoint's small files, of at most `most` bytes; the caller's to remove. `instead`: what
    is written in place of files of these names.

    Raises:
        CheckpointError: they have more bytes than such files have.
        StoreError: see `Checkpoint.read_files`.
    """
    names = [name for name in checkpoint.files if name.endswith(_KINDS) and "/" not in name]
    size = sum(checkpoint.files[name].size for name in names)
    if size > most:
        raise CheckpointError(
            f"{checkpoint.location}: config, tokenizer and the like have {size} bytes, over the limit of {most}; "
            "move what is neither out of the folder"
        )
    contents = await checkpoint.read_files((*names, *TEMPLATES_BELOW))
    return await asyncio.to_thread(_written, {**contents, **(instead or {})}, size)


def remove_folder(folder: Path) -> None:
    """Remove it, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)


def _written(contents: Mapping[str, bytes], size: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="coldstream-", dir=_place(size)))
    for name, data in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def _place(size: int) -> Path | None:
    try:
        free = shutil.disk_usage(_SHARED).free
    except OSError:
        return None
    return _SHARED if free > size + _SPARE else None
