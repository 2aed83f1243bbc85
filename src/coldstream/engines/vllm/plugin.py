"""What vLLM calls in each of its processes (entry point group `vllm.general_plugins`): our loader takes its place.

With it, config and tokenizer of a `gs://` model come verified and pinned, too: vLLM asks `ObjectStorageModel` for them,
and has no other hook. Called any number of times.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from coldstream.engines.vllm import folder
from coldstream.engines.vllm.handover import ModelSource
from coldstream.weights.checkpoint.checkpoint import open_checkpoint_async

_made: dict[str, Path] = {}


def register() -> None:
    """Take over `runai_streamer`, and the files beside the weights of models in object storage."""
    import vllm.config.model as model_config

    from coldstream.engines.vllm import loader  # noqa: F401  it registers itself

    model_config.ObjectStorageModel = PinnedFiles
    _log_as_vllm()


def _log_as_vllm() -> None:
    """Where our lines have no handler, they go where vLLM's do: the load says how far it is."""
    ours = logging.getLogger("coldstream")
    if not ours.hasHandlers():
        ours.handlers = list(logging.getLogger("vllm").handlers)
        ours.setLevel(logging.INFO)
        ours.propagate = False


class PinnedFiles:
    """vLLM's `ObjectStorageModel`: a folder in memory with a model's small files, for as long as this process lives."""

    def __init__(self, url: str) -> None:
        if url not in _made:
            with ThreadPoolExecutor(1) as thread:  # this one may have an event loop that runs
                _made[url] = thread.submit(asyncio.run, _fetched(url)).result()
            folder.remove_at_exit(_made[url])
        self.dir = str(_made[url])

    def pull_files(self, *_: Any, **__: Any) -> None:
        """They are there."""


async def _fetched(url: str) -> Path:
    checkpoint = await open_checkpoint_async(url)
    made = await folder.write_folder(checkpoint)
    ModelSource(url, checkpoint.revision).write(made)
    checkpoint.store.close_idle()
    return made
