"""What blocks of keys and values are, for every backend that keeps them: groups by window, and their bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class AttentionLayer(Protocol):
    """What attention needs to know of a layer."""

    @property
    def window(self) -> int | None:
        """A token sees itself and the `window - 1` tokens before it; None: all before it."""
        ...


class AttentionConfig(Protocol):
    """What the cache needs to know of a model."""

    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def attention_scale(self) -> float: ...
    @property
    def layers(self) -> Sequence[AttentionLayer]: ...


def windows(config: AttentionConfig) -> tuple[int | None, ...]:
    """The distinct windows of the model's layers, in order of first use: one group of blocks each."""
    return tuple(dict.fromkeys(layer.window for layer in config.layers))


def bytes_per_block(config: AttentionConfig, size: int, *, token_bytes: int) -> tuple[int, ...]:
    """Memory of one block of `size` tokens in each group; `token_bytes` are a token's keys and values in a layer."""
    each = token_bytes * size
    return tuple(each * sum(layer.window == window for layer in config.layers) for window in windows(config))
