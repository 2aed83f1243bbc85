"""The rotary embedding's frequencies, by config.json: the same numbers for every backend."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from coldstream.model.rope_config import RopeConfig

Frequencies = NDArray[np.float32]


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Frequencies:
    """float32 `[head_dim / 2]`: radians a position, for each pair of dimensions. Rounded where transformers rounds."""
    exponents = np.arange(0, head_dim, 2).astype(np.float32) / np.float32(head_dim)
    plain = np.float32(1) / np.power(float(rope.theta), exponents.astype(np.float64)).astype(np.float32)
    match rope.kind:
        case "default":
            return plain
        case "linear":
            return plain / np.float32(rope.factor)
        case "llama3":
            return _llama3(rope, plain)
        case "yarn":
            return _yarn(rope, plain, head_dim)


def _llama3(rope: RopeConfig, plain: Frequencies) -> Frequencies:
    """Llama 3.1: long waves are stretched, short ones kept, those between blended."""
    wavelength = np.float32(2 * math.pi) / plain
    longest, shortest = rope.original_context / rope.low_freq_factor, rope.original_context / rope.high_freq_factor
    stretch = np.float32(rope.high_freq_factor - rope.low_freq_factor)
    blend = (np.float32(rope.original_context) / wavelength - np.float32(rope.low_freq_factor)) / stretch
    blended = (1 - blend) * plain / np.float32(rope.factor) + blend * plain
    stretched = np.where(wavelength > longest, plain / np.float32(rope.factor), plain)
    return np.where((wavelength >= shortest) & (wavelength <= longest), blended, stretched)


def _yarn(rope: RopeConfig, plain: Frequencies, head_dim: int) -> Frequencies:
    """YaRN (Peng et al. 2023), section 3.2: interpolate where fewer than beta_slow turns fit the original context."""

    def dimension(turns: float) -> float:
        return head_dim * math.log(rope.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    steps = np.arange(head_dim // 2, dtype=np.float32)
    ramp = ((steps - np.float32(low)) / np.float32(high - low or 0.001)).clip(0, 1)
    stretched: Frequencies = plain / np.float32(rope.factor) * ramp + plain * (1 - ramp)
    return stretched
