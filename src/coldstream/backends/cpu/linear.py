"""Matrices that share their input (q, k, v; gate, up), filled part by part as their bytes land: float32 and int8.

A float32 part that lands as float32 is used where it lies. One that has to be converted is converted straight into its
rows of one joint matrix, so that joining costs nothing beyond the conversion that is needed anyway. int8 matrices are
packed by the kernels; activations are rotated and rounded as they are multiplied (QuaRot, Ashkboos et al. 2024), and
integers are summed exactly, so that a row gives the same alone and in any batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from coldstream.backends.cpu.address import Floats, Ints
from coldstream.backends.cpu.library import Kernels
from coldstream.backends.cpu.packed import PackedMatrix
from coldstream.backends.cpu.pages import empty_in_large_pages
from coldstream.backends.parameter import Parameter, Unit

_LOGITS_ROWS = 64
"""Rows of logits that have a place of their own: with a new one a step, a tenth of the time goes into page faults."""


class Matrices(Protocol):
    """`y = x @ weight.T + bias` of parts that share `x`; filled by a loader's thread, called by the engine's."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Output features of each part."""
        ...

    @property
    def in_features(self) -> int: ...

    def fill(self, part: int, weight: NDArray[Any]) -> None:
        """Take `[sizes[part], in_features]` of any float dtype; a second call replaces the first."""
        ...

    def fill_bias(self, part: int, bias: NDArray[Any]) -> None:
        """Take `[sizes[part]]`; a second call replaces the first."""
        ...

    def product(self, x: Floats) -> Floats:
        """`[tokens, in_features]` -> `[tokens, sum(sizes)]`."""
        ...


class MatricesFactory(Protocol):
    """Makes the matrices of a layer in the decoder's precision."""

    def __call__(self, in_features: int, sizes: Sequence[int], *, bias: bool) -> Matrices: ...


class _Bias:
    """A bias of several parts, float32; it stays where it is, since kernels know it by address."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.values = np.zeros(sum(sizes), np.float32)
        self._begins = np.cumsum([0, *sizes])

    def fill(self, part: int, bias: NDArray[Any]) -> None:
        self.values[self._begins[part] : self._begins[part + 1]] = bias


class FloatMatrices:
    """`Matrices` in float32, multiplied by numpy's BLAS."""

    def __init__(self, in_features: int, sizes: Sequence[int], *, bias: bool) -> None:
        self.in_features, self.sizes = in_features, tuple(sizes)
        self._begins = np.cumsum([0, *self.sizes])
        self._parts: list[Floats | None] = [None] * len(self.sizes)
        self._joint: Floats | None = None
        self._is_converted = [False] * len(self.sizes)
        self._bias = _Bias(sizes) if bias else None

    @property
    def weight(self) -> Floats:
        """The only part's weight, `[sizes[0], in_features]`; for tables, which are looked up in."""
        (weight,) = self._parts
        assert weight is not None, "read before it was filled"
        return weight

    def fill(self, part: int, weight: NDArray[Any]) -> None:
        if weight.dtype == np.float32:
            self._parts[part], self._is_converted[part] = weight, False
            if not any(self._is_converted):
                self._joint = None
            return
        if self._joint is None:
            self._joint = np.empty((sum(self.sizes), self.in_features), np.float32)
        rows = self._joint[self._begins[part] : self._begins[part + 1]]
        np.copyto(rows, weight, casting="same_kind")
        self._parts[part], self._is_converted[part] = rows, True

    def fill_bias(self, part: int, bias: NDArray[Any]) -> None:
        assert self._bias is not None
        self._bias.fill(part, bias)

    def product(self, x: Floats, *, out: Floats | None = None) -> Floats:
        """See `Matrices.product`; into `out` where there is one."""
        out = np.empty((len(x), sum(self.sizes)), np.float32) if out is None else out
        if self._joint is not None and all(self._is_converted):
            np.matmul(x, self._joint.T, out=out)
        else:
            for part, weight in enumerate(self._parts):
                assert weight is not None, "used before it was filled"
                out[:, self._begins[part] : self._begins[part + 1]] = x @ weight.T
        if self._bias is not None:
            out += self._bias.values
        return out


class PackedMatrices:
    """`Matrices` in int8."""

    def __init__(self, in_features: int, sizes: Sequence[int], *, bias: bool, kernels: Kernels) -> None:
        self.in_features, self.sizes = in_features, tuple(sizes)
        self._kernels = kernels
        self._bias = _Bias(sizes) if bias else None
        self.matrix = PackedMatrix(
            in_features, sum(self.sizes), bias=self._bias.values if self._bias is not None else None
        )

    def fill(self, part: int, weight: NDArray[Any]) -> None:
        self._kernels.pack(self.matrix, weight, sum(self.sizes[:part]))

    def fill_bias(self, part: int, bias: NDArray[Any]) -> None:
        assert self._bias is not None
        self._bias.fill(part, bias)

    def adopt(self, matrix: PackedMatrix) -> None:
        """Multiply with this one, which is filled elsewhere; before the first use."""
        matrix.add(self._bias.values if self._bias is not None else None)
        self.matrix = matrix

    def product(self, x: Floats) -> Floats:
        return self._kernels.multiply(self.matrix, x)


class TokenTable(Protocol):
    """The vocabulary's matrix, `[vocab, hidden]`: looked up by token id, multiplied with as a head, or both."""

    def use(self, *, looked_up: bool, multiplied: bool) -> None:
        """Say what it is for, before it is filled; what is not needed is not kept."""
        ...

    def parameter(self, name: str, unit: Unit) -> Parameter:
        """What fills it."""
        ...

    def lookup(self, ids: Ints) -> Floats:
        """int64 `[tokens]` -> float32 `[tokens, hidden]`, the caller's to write to."""
        ...

    def logits(self, x: Floats) -> Floats:
        """`[rows, hidden]` -> float32 `[rows, vocab]`; the next call may overwrite it."""
        ...


class _LogitsPlace:
    """Where logits of up to 64 rows are written, each step's over those of the one before."""

    def __init__(self, vocab: int) -> None:
        self._vocab = vocab
        self._kept: Floats | None = None

    def rows(self, count: int) -> Floats:
        if count > _LOGITS_ROWS:
            return np.empty((count, self._vocab), np.float32)
        if self._kept is None:
            self._kept = empty_in_large_pages((_LOGITS_ROWS, self._vocab))
        return self._kept[:count]


class FloatTable:
    """A `TokenTable` in float32."""

    def __init__(self, features: int, rows: int) -> None:
        self._matrix = FloatMatrices(features, (rows,), bias=False)
        self._place = _LogitsPlace(rows)

    def use(self, *, looked_up: bool, multiplied: bool) -> None:
        """Nothing: its memory is taken as its bytes land."""

    def parameter(self, name: str, unit: Unit) -> Parameter:
        shape = (self._matrix.sizes[0], self._matrix.in_features)
        return Parameter(name, shape, unit, partial(self._matrix.fill, 0))

    def lookup(self, ids: Ints) -> Floats:
        return self._matrix.weight[ids]

    def logits(self, x: Floats) -> Floats:
        return self._matrix.product(x, out=self._place.rows(len(x)))


class PackedTable:
    """A `TokenTable` in int8: one packed matrix for both uses."""

    def __init__(self, features: int, rows: int, *, kernels: Kernels) -> None:
        self._shape = (rows, features)
        self._kernels = kernels
        self._place = _LogitsPlace(rows)
        self._matrix: PackedMatrix | None = None

    def use(self, *, looked_up: bool, multiplied: bool) -> None:
        if looked_up or multiplied:
            self._matrix = PackedMatrix(self._shape[1], self._shape[0])

    def adopt(self, matrix: PackedMatrix) -> None:
        """Look up in this one and multiply with it; it is filled elsewhere. Before the first use."""
        self._matrix = matrix

    def parameter(self, name: str, unit: Unit) -> Parameter:
        return Parameter(name, self._shape, unit, self._fill)

    def lookup(self, ids: Ints) -> Floats:
        return self._kernels.rows(self._used, ids)

    def logits(self, x: Floats) -> Floats:
        return self._kernels.multiply(self._used, x, out=self._place.rows(len(x)))

    @property
    def _used(self) -> PackedMatrix:
        assert self._matrix is not None, "said to be of no use"
        return self._matrix

    def _fill(self, weight: NDArray[Any]) -> None:
        self._kernels.pack(self._used, weight, 0)
