"""Norms and rotary embedding of a decoder on the CPU; their arrays stay where they are, since kernels point to them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from coldstream.backends.cpu.address import Floats, Ints
from coldstream.backends.rope import inverse_frequencies
from coldstream.model.rope_config import RopeConfig


class RmsNorm:
    """RMS norm's weight (Zhang and Sennrich 2019); scales by `offset + weight`."""

    def __init__(self, size: int, *, offset: float) -> None:
        self._offset = np.float32(offset)
        self.weight = np.ones(size, np.float32)

    def fill(self, weight: NDArray[Any]) -> None:
        """Take `[size]` of any float dtype."""
        np.add(weight.astype(np.float32), self._offset, out=self.weight)


class LayerNorm:
    """Layer norm's weight and bias (Ba et al. 2016)."""

    def __init__(self, size: int) -> None:
        self.weight, self.bias = np.ones(size, np.float32), np.zeros(size, np.float32)

    def fill(self, weight: NDArray[Any]) -> None:
        """Take `[size]` of any float dtype."""
        self.weight[:] = weight

    def fill_bias(self, bias: NDArray[Any]) -> None:
        """Take `[size]` of any float dtype."""
        self.bias[:] = bias


class RotaryTable:
    """cos and sin of one step's positions, computed once a step for all layers that share the embedding."""

    def __init__(self, rope: RopeConfig, head_dim: int) -> None:
        self._frequencies = inverse_frequencies(rope, head_dim)
        self._factor = np.float32(rope.attention_factor)

    def __call__(self, positions: Ints) -> tuple[Floats, Floats]:
        """int64 `[tokens]` -> cos and sin, float32 `[tokens, head_dim]`; the first half of sin is negated."""
        angles = positions[:, None].astype(np.float32) * self._frequencies
        cos, sin = np.cos(angles) * self._factor, np.sin(angles) * self._factor
        return np.concatenate((cos, cos), -1), np.concatenate((-sin, sin), -1)
