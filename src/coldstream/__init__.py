"""Coldstream: from `gs://bucket/model` to the first token, in the time the bytes need to cross the wire.

    load_state_dict(uri)    dict of verified tensors
    iter_tensors(uri)       (name, tensor) as they land, in execution order
    open_checkpoint(uri)    what lies in the bucket; reads headers only

Nothing is imported before it is used: `import coldstream` costs neither torch nor obstore.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coldstream.weights.checkpoint import Checkpoint, open_checkpoint
    from coldstream.weights.load import iter_tensors, load_state_dict
    from coldstream.weights.stream import StreamOptions

__all__ = ["Checkpoint", "StreamOptions", "iter_tensors", "load_state_dict", "open_checkpoint"]

_HOME = {
    "Checkpoint": "coldstream.weights.checkpoint",
    "StreamOptions": "coldstream.weights.stream",
    "iter_tensors": "coldstream.weights.load",
    "load_state_dict": "coldstream.weights.load",
    "open_checkpoint": "coldstream.weights.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
