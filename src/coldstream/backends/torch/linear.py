"""Matrices that share their input (q, k, v; gate, up), filled part by part as their bytes land.

A part that arrives in the run's own dtype is aliased: no byte is copied. One that has to be converted is converted
straight into its rows of one joint buffer, so that fusing costs nothing beyond the conversion that is needed anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from coldstream.backends.parameter import Parameter, Unit
from coldstream.backends.torch.staging import Staging


class Linear(Protocol):
    """`y_i = x @ weight_i.T + bias_i` for parts that share `x`; filled by a loader's thread, called by the engine's."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Output features of each part."""
        ...

    @property
    def in_features(self) -> int: ...

    @property
    def has_bias(self) -> bool: ...

    def fill(self, part: int, weight: Tensor) -> None:
        """Take `[sizes[part], in_features]` of any float dtype; a second call replaces the first."""
        ...

    def fill_bias(self, part: int, bias: Tensor) -> None:
        """Take `[sizes[part]]`; a second call replaces the first."""
        ...

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """`[tokens, in_features]` -> one `[tokens, size]` a part."""
        ...

    def joined(self, x: Tensor) -> Tensor:
        """`[tokens, in_features]` -> `[tokens, sum(sizes)]`."""
        ...


class VocabularyTable(Protocol):
    """The vocabulary's matrix, `[vocab, hidden]`: looked up by token id, multiplied with as a head, or both."""

    def use(self, *, looked_up: bool, multiplied: bool) -> None:
        """Say what it is for, before it is filled; what is not needed is not kept."""
        ...

    def parameter(self, name: str, unit: Unit) -> Parameter:
        """What fills it."""
        ...

    def lookup(self, ids: Tensor) -> Tensor:
        """int64 `[tokens]` -> float32 `[tokens, hidden]`."""
        ...

    def logits(self, x: Tensor) -> Tensor:
        """`[rows, hidden]` -> float32 `[rows, vocab]`; the next call may overwrite it."""
        ...


class DenseTable:
    """A `VocabularyTable` in float32 or bfloat16: one matrix for both uses."""

    def __init__(
        self, features: int, rows: int, *, dtype: torch.dtype, device: torch.device, staging: Staging | None = None
    ) -> None:
        self._linear = DenseLinear(
            features, (rows,), bias=False, dtype=dtype, device=device, staging=staging, is_needed=False
        )

    def use(self, *, looked_up: bool, multiplied: bool) -> None:
        if looked_up or multiplied:
            self._linear.stand_up()

    def parameter(self, name: str, unit: Unit) -> Parameter:
        return Parameter(name, (self._linear.sizes[0], self._linear.in_features), unit, partial(self._linear.fill, 0))

    def lookup(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self._linear.weight).float()

    def logits(self, x: Tensor) -> Tensor:
        return self._linear.joined(x).float()


class LinearFactory(Protocol):
    """Makes the matrices of a layer in the decoder's precision."""

    def __call__(self, in_features: int, sizes: Sequence[int], *, bias: bool) -> Linear: ...


class DenseLinear:
    """float32 or bfloat16 weights, multiplied in their own dtype.

    On a GPU the matrix has its memory before its bytes, so that what is free there is free for good; they get there
    through `staging`. `is_needed` False: once `stand_up` says so.
    """

    def __init__(
        self,
        in_features: int,
        sizes: Sequence[int],
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
        staging: Staging | None = None,
        is_needed: bool = True,
    ) -> None:
        self.in_features = in_features
        self._staging = staging
        self.sizes = tuple(sizes)
        self._dtype = dtype
        self._device = device
        self._parts: list[Tensor | None] = [None] * len(self.sizes)
        self._joint: Tensor | None = None
        self._converted = [False] * len(self.sizes)
        self._bias = torch.zeros(sum(self.sizes), dtype=dtype, device=device) if bias else None
        if is_needed:
            self.stand_up()

    def stand_up(self) -> None:
        """Take the memory on a GPU; on a CPU it is taken as bytes land, or never, where they are aliased."""
        if self._device.type != "cpu":
            self._joint = self._empty()

    def _empty(self) -> Tensor:
        return torch.empty(sum(self.sizes), self.in_features, dtype=self._dtype, device=self._device)

    @property
    def has_bias(self) -> bool:
        return self._bias is not None

    @property
    def weight(self) -> Tensor:
        """The only part's weight, `[sizes[0], in_features]`; for embeddings that share it."""
        assert len(self.sizes) == 1
        assert self._parts[0] is not None, "read before it was filled"
        return self._parts[0]

    def fill(self, part: int, weight: Tensor) -> None:
        if self._device.type == "cpu" and weight.dtype == self._dtype and weight.device == self._device:
            self._parts[part], self._converted[part] = weight, False
            if not any(self._converted):
                self._joint = None
            return
        if self._joint is None:
            self._joint = self._empty()
        rows = self._joint[self._start(part) : self._start(part) + self.sizes[part]]
        if self._staging is not None and weight.device.type == "cpu":
            self._staging.copy(rows, weight)
        else:
            rows.copy_(weight)
        self._parts[part], self._converted[part] = rows, True

    def fill_bias(self, part: int, bias: Tensor) -> None:
        assert self._bias is not None
        self._bias[self._start(part) : self._start(part) + self.sizes[part]].copy_(bias)

    def joined(self, x: Tensor) -> Tensor:
        if self._joint is not None and all(self._converted):
            return F.linear(x, self._joint, self._bias)
        parts = self._separately(x)
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        if self._joint is not None and all(self._converted):
            return tuple(F.linear(x, self._joint, self._bias).split_with_sizes(self.sizes, -1))
        return self._separately(x)

    def _separately(self, x: Tensor) -> tuple[Tensor, ...]:
        biases = self._bias.split_with_sizes(self.sizes) if self._bias is not None else (None,) * len(self.sizes)
        return tuple(
            F.linear(x, weight, bias)
            for weight, bias in zip(self._parts, biases, strict=True)
            if weight is not None  # always so behind the gate; narrows the type
        )

    def _start(self, part: int) -> int:
        return sum(self.sizes[:part])
