"""Config, tokenizer and templates as files, where vLLM reads them: verified, in memory, and bounded. No weights.

/dev/shm takes them where it has the room; on Cloud Run the rest of the disk is memory too. No code of a checkpoint is
among them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coldstream.errors import CheckpointError
from coldstream.weights.checkpoint.checkpoint import CONFIG, Checkpoint
from coldstream.weights.checkpoint.file_names import TEMPLATES_BELOW

_log = logging.getLogger(__name__)

MOST_BYTES = 256 * 1024 * 1024
"""Of all files together; the largest tokenizers known have some 40 MB."""
_SHARED = Path("/dev/shm")  # noqa: S108  made by mkdtemp, for this user alone
_SPARE = 32 * 1024 * 1024
_KINDS = (".json", ".jinja", ".model", ".txt", ".tiktoken")
_HEAD = "lm_head.weight"


async def write_folder(checkpoint: Checkpoint, *, most: int = MOST_BYTES) -> Path:
    """A new folder with the checkpoint's small files, of at most `most` bytes; the caller's to remove.

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
    contents[CONFIG] = json.dumps(_truthful(checkpoint)).encode()
    return await asyncio.to_thread(_written, contents, size)


def remove(folder: Path) -> None:
    """Remove it, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)


def _truthful(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The config, without a tie that the file refutes: vLLM finds that out from weights on disk, and has none there."""
    config = dict(checkpoint.config)
    text = config.get("text_config")
    nested = text if isinstance(text, Mapping) else {}
    tied = config.get("tie_word_embeddings") or nested.get("tie_word_embeddings")
    if not tied or not any(name.endswith(_HEAD) for name in checkpoint.tensors):
        return config
    _log.info("%s: config.json ties the head to the embeddings; the file has a head, which counts", checkpoint.location)
    if nested:
        config["text_config"] = {**nested, "tie_word_embeddings": False}
    return config | {"tie_word_embeddings": False}


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
