"""What a model waits for: its parameters, and the units that open as they are filled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from coldstream.model.pages import let_go

Unit = Literal["embedding", "norm", "head", "vision"] | int


@dataclass(frozen=True, slots=True)
class Parameter:
    """A tensor that the model waits for: its shape, the unit that needs it, and how it is taken in."""

    name: str
    shape: tuple[int, ...]
    unit: Unit
    fill: Callable[[Tensor], None]
    block: int | None = None
    fill_block: Callable[[int, Tensor], None] | None = None

    def work(self, tensor: Tensor, *, consume: bool = False) -> Sequence[Callable[[], None]]:
        """What is to be done with a delivered tensor; the pieces may run beside each other, on several threads.

        A large one that is costly to take in has `fill_block(index, rows)`, for every `block` rows of it; with
        `consume` the memory of those rows is given back at once, so that a large matrix never lies there twice.
        """
        if self.block is None or self.fill_block is None:
            return (partial(self.fill, tensor),)
        blocks = tensor.split_with_sizes(self._sizes())
        return [partial(self._take_block, index, rows, consume) for index, rows in enumerate(blocks)]

    def _take_block(self, index: int, rows: Tensor, consume: bool) -> None:
        assert self.fill_block is not None
        self.fill_block(index, rows)
        if consume:
            let_go(rows)

    def _sizes(self) -> list[int]:
        assert self.block is not None
        whole, rest = divmod(self.shape[0], self.block)
        return [self.block] * whole + [rest] * (rest > 0)
