"""The kernels for rows of floats between matrix products, and for rows of logits, typed; see kernels/rows.c, logits.c.

Every call lets go of the interpreter's lock while it computes. Arrays are contiguous float32 unless said otherwise;
what is not is a mistake of the caller's.
"""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_float, c_int64, c_void_p
from typing import Any

import numpy as np

from coldstream.backends.cpu.address import Floats, address
from coldstream.model.config import Activation

ACTIVATIONS: dict[Activation, int] = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}
"""By their numbers in kernels/activation.h."""
SEGMENT = 64
"""Logits that `tops` takes the best of; kernels/logits.c says so too."""
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "normalise": (c_int64, c_int64, c_void_p, c_void_p, c_double, c_void_p),
    "residual": (c_int64, c_int64, c_void_p, c_void_p, c_void_p, c_double),
    "turn": (*[c_int64] * 4, c_void_p, c_void_p, c_double, c_void_p, c_void_p),
    "gated": (c_int64, c_int64, c_void_p, c_int64, c_void_p),
    "centre": (c_int64, c_int64, c_void_p, c_void_p, c_void_p, c_double, c_void_p),
    "activate": (*[c_int64] * 3, c_void_p),
    "soften": (c_int64, c_int64, c_void_p),
    "tops": (c_void_p, c_int64, c_void_p),
    "mass": (c_void_p, c_int64, c_float, c_float),
    "pick": (c_void_p, c_int64, c_float, c_float, c_double),
}
_RESULTS = {"mass": c_double, "pick": c_int64}


class RowKernels:
    """Of one compiled variant. A row's result is the same in any company."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._call = {name: library[f"coldstream_{name}"] for name in _SIGNATURES}
        for name, function in self._call.items():
            function.argtypes, function.restype = _SIGNATURES[name], _RESULTS.get(name)

    def normalise(self, x: Floats, weight: Floats, eps: float) -> Floats:
        """RMS norm of `[rows, n]`, into an array of its own."""
        out = np.empty_like(x)
        self._call["normalise"](*x.shape, address(x), address(weight), eps, address(out))
        return out

    def residual(self, x: Floats, y: Floats, weight: Floats | None, eps: float) -> None:
        """Add to x `[rows, n]` what y is, brought to RMS norm first where there is a weight; y is written to."""
        self._call["residual"](*x.shape, address(x), address(y), address(weight), eps)

    def turn(
        self, qkv: Floats, first: int, heads: int, d: int, turn: tuple[Floats, Floats], norm: Floats | None, eps: float
    ) -> None:
        """Norm and rotary embedding of the heads from `first` on, in place in `[tokens, heads * d]`.

        `turn` are cos and sin, `[tokens, d]`; the first half of sin is negated.
        """
        tokens, stride = qkv.shape
        at = (address(qkv) or 0) + 4 * first * d
        self._call["turn"](tokens, heads, d, stride, at, address(norm), eps, *map(address, turn))

    def gated(self, both: Floats, activation: Activation) -> Floats:
        """gate and up side by side, `[rows, 2 * n]` -> activation(gate) * up, `[rows, n]`."""
        out = np.empty((len(both), both.shape[1] // 2), np.float32)
        self._call["gated"](*out.shape, address(both), ACTIVATIONS[activation], address(out))
        return out

    def centre(self, x: Floats, weight: Floats, bias: Floats, eps: float) -> Floats:
        """Layer norm of `[rows, n]`, into an array of its own."""
        out = np.empty_like(x)
        self._call["centre"](*x.shape, address(x), address(weight), address(bias), eps, address(out))
        return out

    def activate(self, x: Floats, activation: Activation) -> None:
        """Of `[rows, n]`, in place."""
        self._call["activate"](*x.shape, ACTIVATIONS[activation], address(x))

    def soften(self, x: Floats) -> None:
        """Softmax of each row of `[rows, n]`, in place."""
        self._call["soften"](*x.shape, address(x))

    def tops(self, logits: Floats) -> Floats:
        """The best of each SEGMENT of `[vocab]`, which is a multiple of it."""
        out = np.empty(len(logits) // SEGMENT, np.float32)
        self._call["tops"](address(logits), len(out), address(out))
        return out

    def mass(self, logits: Floats, temperature: float, top: float) -> float:
        """The sum of exp(logits / temperature - top) over `[vocab]`; `top` is the largest of them, finite."""
        return float(self._call["mass"](address(logits), len(logits), temperature, top))

    def pick(self, logits: Floats, temperature: float, top: float, point: float) -> int:
        """The id at which the running sum of exp(logits / temperature - top) exceeds `point` (in [0, 1)) of it all."""
        return int(self._call["pick"](address(logits), len(logits), temperature, top, point))
