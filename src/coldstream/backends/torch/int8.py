"""int8 weights, packed by the kernels as tensors land; a row's result never depends on its batch.

Weights: 8 bits, one scale an output row. Activations: 8 bits, one scale a token, found on the token alone. Integers are
summed exactly, so what a token gives is the same alone and in any batch, on any CPU.

Both sides are multiplied by the same orthogonal matrix, Hadamard matrices along the diagonal (QuaRot, Ashkboos et al.
2024), which changes nothing, `x @ W.T == (x @ H) @ (W @ H).T`, and spreads a row's outliers, which would else decide
its scale, over a block of columns. What it brings is in docs/lab/2026-11-30-eight-bit-activations.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from ml_dtypes import bfloat16
from numpy.typing import NDArray
from torch import Tensor

from coldstream.backends.cpu.address import Floats
from coldstream.backends.cpu.library import Kernels, LayerWeights
from coldstream.backends.cpu.packed import PackedMatrix
from coldstream.backends.parameter import Parameter, Unit
from coldstream.backends.torch.layers import Attention
from coldstream.backends.torch.pages import in_large_pages

_LOGITS_ROWS = 64
"""Rows of logits that have a place of their own: with a new one a step, a tenth of the time goes into page faults."""


class Int8Linear:
    """The `Linear` of int8 weights; takes and gives float32."""

    def __init__(self, in_features: int, sizes: Sequence[int], *, bias: bool, kernels: Kernels) -> None:
        self.in_features = in_features
        self.sizes = tuple(sizes)
        self._kernels = kernels
        self._bias = torch.zeros(sum(self.sizes)) if bias else None
        self.matrix = PackedMatrix(in_features, sum(self.sizes), bias=_bias_of(self._bias))

    @property
    def has_bias(self) -> bool:
        return self._bias is not None

    def fill(self, part: int, weight: Tensor) -> None:
        self._kernels.pack(self.matrix, _stored(weight), sum(self.sizes[:part]))

    def fill_bias(self, part: int, bias: Tensor) -> None:
        assert self._bias is not None
        start = sum(self.sizes[:part])
        self._bias[start : start + self.sizes[part]].copy_(bias)

    def adopt(self, matrix: PackedMatrix) -> None:
        """Multiply with this one, which is filled elsewhere; before the first use."""
        matrix.add(_bias_of(self._bias))
        self.matrix = matrix

    def joined(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self._kernels.multiply(self.matrix, x.contiguous().numpy()))

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.joined(x).split_with_sizes(self.sizes, -1))


class Int8Table:
    """The `Table` of int8 weights: one packed matrix, looked up in and multiplied with.

    Logits of up to 64 rows are written where those of the call before were.
    """

    def __init__(self, features: int, rows: int, *, kernels: Kernels) -> None:
        self._shape = (rows, features)
        self._kernels = kernels
        self._matrix: PackedMatrix | None = None
        self._logits: Tensor | None = None

    def use(self, *, looked_up: bool, multiplied: bool) -> None:
        if looked_up or multiplied:
            self._matrix = PackedMatrix(self._shape[1], self._shape[0])

    def adopt(self, matrix: PackedMatrix) -> None:
        """Look up in this one and multiply with it; it is filled elsewhere. Before the first use."""
        self._matrix = matrix

    def parameter(self, name: str, unit: Unit) -> Parameter:
        return Parameter(name, self._shape, unit, self._fill)

    def lookup(self, ids: Tensor) -> Tensor:
        return torch.from_numpy(self._kernels.rows(self._used, ids.numpy()))

    def logits(self, x: Tensor) -> Tensor:
        if len(x) > _LOGITS_ROWS:
            return torch.from_numpy(self._kernels.multiply(self._used, x.numpy()))
        if self._logits is None:
            self._logits = in_large_pages(torch.empty(_LOGITS_ROWS, self._shape[0]))
        out = self._logits[: len(x)]
        self._kernels.multiply(self._used, x.numpy(), out=out.numpy())
        return out

    @property
    def _used(self) -> PackedMatrix:
        assert self._matrix is not None, "said to be of no use"
        return self._matrix

    def _fill(self, weight: Tensor) -> None:
        self._kernels.pack(self._used, _stored(weight), 0)


class Int8Layer:
    """A decoder layer in two calls, before and after attention, with every norm and residual in them.

    `weights` is asked for once the layer's gate is open; its tensors stay where they are from then on.
    """

    def __init__(self, index: int, kernels: Kernels, weights: Callable[[], LayerWeights]) -> None:
        self._index = index
        self._kernels = kernels
        self._weights = weights
        self._built: LayerWeights | None = None

    def __call__(self, x: Tensor, attend: Attention, turn: tuple[Tensor, Tensor], keep: Tensor | None) -> Tensor:
        """float32 `[tokens, hidden]` -> the same, or `[len(keep), hidden]`."""
        if self._built is None:
            self._built = self._weights()
        layer = self._built
        cos, sin = (part.numpy() for part in turn)
        qkv = torch.from_numpy(self._kernels.before_attention(layer, x.numpy(), cos, sin))
        qkv = qkv.view(len(x), -1, layer.head_dim)
        q, k, v = qkv.split_with_sizes((layer.heads, layer.kv_heads, layer.kv_heads), 1)
        attended = attend(self._index, q, k, v)
        if keep is not None:
            x, attended = x[keep], attended[keep]
        self._kernels.after_attention(layer, attended.numpy(), x.numpy())
        return x


def _stored(weight: Tensor) -> NDArray[Any]:
    """The same memory as numpy names it."""
    weight = weight.detach().to("cpu").contiguous()
    return weight.view(torch.uint16).numpy().view(bfloat16) if weight.dtype == torch.bfloat16 else weight.numpy()


def _bias_of(bias: Tensor | None) -> Floats | None:
    return None if bias is None else bias.numpy()
