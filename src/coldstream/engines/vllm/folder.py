"""Config, tokenizer and templates as files, where vLLM reads them (see weights/checkpoint/small_files.py)."""

from __future__ import annotations

import atexit
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coldstream.weights.checkpoint import small_files
from coldstream.weights.checkpoint.checkpoint import CONFIG, Checkpoint

_log = logging.getLogger(__name__)

_HEAD = "lm_head.weight"


async def write_folder(checkpoint: Checkpoint, *, most: int = small_files.MOST_BYTES) -> Path:
    """A new folder with the checkpoint's small files; the caller's to remove. See `small_files.write_folder`."""
    config = json.dumps(_truthful(checkpoint)).encode()
    return await small_files.write_folder(checkpoint, most=most, instead={CONFIG: config})


def remove(folder: Path) -> None:
    """Remove it, if it is there."""
    small_files.remove_folder(folder)


def remove_at_exit(folder: Path) -> None:
    """Remove it when this process ends in order; a process that it forks leaves it alone."""
    owner = os.getpid()

    def end() -> None:
        if os.getpid() == owner:
            remove(folder)

    atexit.register(end)


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
