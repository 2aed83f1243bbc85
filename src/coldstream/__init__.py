"""Coldstream: from `gs://bucket/model` to the first token, in the time the bytes need to cross the wire.

    load_state_dict(uri)    verified tensors by name
    iter_tensors(uri)       names and tensors as they land, in execution order
    from_pretrained(uri)    a transformers model over the streamed buffers
    open_checkpoint(uri)    what lies in the bucket; reads headers only
    verify(uri)             streams every byte, checks CRC32C, keeps nothing

Nothing is imported before it is used: `import coldstream` costs neither torch nor obstore.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coldstream.weights.checkpoint.checkpoint import Checkpoint, open_checkpoint
    from coldstream.weights.checkpoint.header import TensorInfo
    from coldstream.weights.load import iter_tensors, load_state_dict
    from coldstream.weights.pretrained import from_pretrained
    from coldstream.weights.transfer.progress import Progress
    from coldstream.weights.transfer.stream import StreamOptions
    from coldstream.weights.transfer.verify import VerifyReport, verify

__all__ = [
    "Checkpoint",
    "Progress",
    "StreamOptions",
    "TensorInfo",
    "VerifyReport",
    "from_pretrained",
    "iter_tensors",
    "load_state_dict",
    "open_checkpoint",
    "verify",
]

_HOME = {
    "Checkpoint": "checkpoint.checkpoint",
    "Progress": "transfer.progress",
    "StreamOptions": "transfer.stream",
    "TensorInfo": "checkpoint.header",
    "VerifyReport": "transfer.verify",
    "from_pretrained": "pretrained",
    "iter_tensors": "load",
    "load_state_dict": "load",
    "open_checkpoint": "checkpoint.checkpoint",
    "verify": "transfer.verify",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("coldstream")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"coldstream.weights.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
