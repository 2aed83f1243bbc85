"""What a model waits for: its parameters, and the units that open as they are filled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Unit = Literal["embedding", "norm", "head", "vision"] | int


@dataclass(frozen=True, slots=True)
class Parameter:
    """A tensor that the model waits for: its shape, the unit that needs it, and how it is taken in, as an array."""

    name: str
    shape: tuple[int, ...]
    unit: Unit
    fill: Callable[[Any], None]
