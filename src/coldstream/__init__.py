"""Coldstream: from `gs://bucket/model` to the first token, in the time the bytes need to cross the wire.

    load_state_dict(uri)    verified tensors by name
    iter_tensors(uri)       names and tensors as they land, in execution order
    from_pretrained(uri)    a transformers model over the streamed buffers
    tokenizer(uri)          its tokenizer, processor(uri) its processor: transformers' own
    pipeline(task, uri)     a transformers pipeline around all of them
    open_checkpoint(uri)    what lies in the bucket; reads headers only
    verify(uri)             streams every byte, checks CRC32C, keeps nothing
    LLM(uri)                a model that answers in this process: generate, chat, stream

Nothing is imported before it is used: `import coldstream` costs neither torch nor obstore.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coldstream.library.completion import Completion
    from coldstream.library.llm import LLM
    from coldstream.weights.checkpoint.checkpoint import Checkpoint, open_checkpoint
    from coldstream.weights.checkpoint.header import TensorInfo
    from coldstream.weights.load import iter_tensors, load_state_dict
    from coldstream.weights.pipelines import pipeline
    from coldstream.weights.preprocessing import processor, tokenizer
    from coldstream.weights.pretrained import from_pretrained
    from coldstream.weights.transfer.progress import Progress
    from coldstream.weights.transfer.stream import StreamOptions
    from coldstream.weights.transfer.verify import VerifyReport, verify

    __version__: str

__all__ = [
    "LLM",
    "Checkpoint",
    "Completion",
    "Progress",
    "StreamOptions",
    "TensorInfo",
    "VerifyReport",
    "from_pretrained",
    "iter_tensors",
    "load_state_dict",
    "open_checkpoint",
    "pipeline",
    "processor",
    "tokenizer",
    "verify",
]

_HOME = {
    "LLM": "library.llm",
    "Checkpoint": "weights.checkpoint.checkpoint",
    "Completion": "library.completion",
    "Progress": "weights.transfer.progress",
    "StreamOptions": "weights.transfer.stream",
    "TensorInfo": "weights.checkpoint.header",
    "VerifyReport": "weights.transfer.verify",
    "from_pretrained": "weights.pretrained",
    "iter_tensors": "weights.load",
    "load_state_dict": "weights.load",
    "open_checkpoint": "weights.checkpoint.checkpoint",
    "pipeline": "weights.pipelines",
    "processor": "weights.preprocessing",
    "tokenizer": "weights.preprocessing",
    "verify": "weights.transfer.verify",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("coldstream")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"coldstream.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
