"""8-bit weights on a GPU: one scale an output row, multiplied with bfloat16 by our own kernel.

Decoding reads every weight once a token, so half the bytes are twice the speed. Weights are rounded on the device, a
piece of rows at a time, as they land; activations stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from coldstream.backends.parameter import Parameter, Unit
from coldstream.backends.torch.device_kernels import DeviceKernels
from coldstream.backends.torch.linear import DenseLinear, Linear
from coldstream.backends.torch.staging import Staging

_LEVELS = 127
_PIECE = 4 << 20
"""Weights that are rounded at a time."""


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`[rows, columns]` of any float dtype -> int8 of the same shape, and a float32 scale for each row."""
    whole = weight.float()
    scales = whole.abs().amax(-1) / _LEVELS
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    return torch.round(whole / scales[:, None]).to(torch.int8), scales


class WeightOnlyMatrix:
    """int8 `[rows, columns]` and its scales, on the device before its bytes."""

    def __init__(
        self, columns: int, rows: int, *, dtype: torch.dtype, device: torch.device, staging: Staging | None
    ) -> None:
        self._staging = staging
        self.dtype, self.device = dtype, device
        self.weight = torch.empty(rows, columns, dtype=torch.int8, device=device)
        self.scales = torch.ones(rows, dtype=torch.float32, device=device)

    def fill(self, start: int, source: Tensor) -> None:
        """Round these rows, the first of which is `start`; the source may be let go on return."""
        with nullcontext() if self._staging is None else self._staging.scope():
            self._fill(start, source)

    def _fill(self, start: int, source: Tensor) -> None:
        step = max(1, _PIECE // source.shape[1])
        for first in range(0, len(source), step):
            piece = source[first : first + step]
            rows = slice(start + first, start + first + len(piece))
            levels, scales = rounded(self._placed(piece))
            self.weight[rows].copy_(levels)
            self.scales[rows].copy_(scales)

    def _placed(self, piece: Tensor) -> Tensor:
        if self._staging is None or piece.device.type != "cpu":
            return piece.to(self.device)
        placed = torch.empty(piece.shape, dtype=piece.dtype, device=self.device)
        self._staging.copy(placed, piece)
        return placed


class WeightOnlyLinear:
    """The `Linear` of 8-bit weights on a GPU; takes and gives the decoder's dtype."""

    def __init__(
        self,
        in_features: int,
        sizes: Sequence[int],
        *,
        bias: bool,
        kernels: DeviceKernels,
        dtype: torch.dtype,
        device: torch.device,
        staging: Staging | None,
    ) -> None:
        self.in_features, self.sizes = in_features, tuple(sizes)
        self._kernels = kernels
        self._matrix = WeightOnlyMatrix(in_features, sum(sizes), dtype=dtype, device=device, staging=staging)
        self._bias = torch.zeros(sum(sizes), dtype=dtype, device=device) if bias else None

    @property
    def has_bias(self) -> bool:
        return self._bias is not None

    def fill(self, part: int, weight: Tensor) -> None:
        self._matrix.fill(sum(self.sizes[:part]), weight)

    def fill_bias(self, part: int, bias: Tensor) -> None:
        assert self._bias is not None
        start = sum(self.sizes[:part])
        self._bias[start : start + self.sizes[part]].copy_(bias)

    def joined(self, x: Tensor) -> Tensor:
        matrix = self._matrix
        return self._kernels.multiply8(x.contiguous(), matrix.weight, matrix.scales, self._bias, dtype=matrix.dtype)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.joined(x).split_with_sizes(self.sizes, -1))


def weight_only(
    in_features: int,
    sizes: Sequence[int],
    *,
    bias: bool,
    kernels: DeviceKernels,
    dtype: torch.dtype,
    device: torch.device,
    staging: Staging | None,
) -> Linear:
    """A matrix in 8 bits, where the kernel takes its rows: not those of 588 numbers, a vision tower's first ones."""
    if in_features % 16:
        return DenseLinear(in_features, sizes, bias=bias, dtype=dtype, device=device, staging=staging)
    return WeightOnlyLinear(in_features, sizes, bias=bias, kernels=kernels, dtype=dtype, device=device, staging=staging)


class WeightOnlyTable:
    """The `VocabularyTable` of 8-bit weights on a GPU: looked up by row and multiplied with."""

    def __init__(
        self,
        features: int,
        rows: int,
        *,
        kernels: DeviceKernels,
        dtype: torch.dtype,
        device: torch.device,
        staging: Staging | None,
    ) -> None:
        self._shape, self._kernels = (rows, features), kernels
        self._make = partial(WeightOnlyMatrix, features, rows, dtype=dtype, device=device, staging=staging)
        self._matrix: WeightOnlyMatrix | None = None

    def use(self, *, looked_up: bool, multiplied: bool) -> None:
        if looked_up or multiplied:
            self._matrix = self._make()

    def parameter(self, name: str, unit: Unit) -> Parameter:
        return Parameter(name, self._shape, unit, lambda weight: self._used.fill(0, weight))

    def lookup(self, ids: Tensor) -> Tensor:
        matrix = self._used
        return matrix.weight[ids].float() * matrix.scales[ids][:, None]

    def logits(self, x: Tensor) -> Tensor:
        matrix = self._used
        return self._kernels.multiply8(x.contiguous(), matrix.weight, matrix.scales, None, dtype=torch.float32)

    @property
    def _used(self) -> WeightOnlyMatrix:
        assert self._matrix is not None, "said to be of no use"
        return self._matrix
