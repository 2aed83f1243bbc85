"""Typed access to a JSON object of a checkpoint, with errors that name the field. Pure, no torch.

An absent key has its default; a key that is there and null does not, since transformers tells the two apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from coldstream.errors import UnsupportedConfig


@dataclass(frozen=True, slots=True)
class Fields:
    """`data`'s values, `defaults` where a key is absent; `prefix` says where in config.json the object lies."""

    data: Mapping[str, Any]
    prefix: str = ""
    defaults: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def over(self, defaults: Mapping[str, Any]) -> Fields:
        """The same object with these defaults."""
        return replace(self, defaults=defaults)

    def value(self, name: str) -> Any:
        """As it stands; None where it is null, or absent without a default."""
        return self.data[name] if name in self.data else self.defaults.get(name)

    def is_null(self, name: str) -> bool:
        """Whether there is nothing to use: null, or absent without a default."""
        return self.value(name) is None

    def whole(self, name: str) -> int:
        """A positive whole number."""
        value = self.value(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.wrong(name, "must be a positive whole number")
        return value

    def optional_whole(self, name: str) -> int | None:
        """A positive whole number, or None."""
        return None if self.is_null(name) else self.whole(name)

    def number(self, name: str) -> float:
        """A positive, finite number."""
        value = self.value(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise self.wrong(name, "must be a positive number")
        return float(value)

    def optional_number(self, name: str) -> float | None:
        """A positive, finite number, or None."""
        return None if self.is_null(name) else self.number(name)

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self.value(name)
        if not isinstance(value, bool):
            raise self.wrong(name, "must be true or false")
        return value

    def text(self, name: str) -> str:
        """A string."""
        value = self.value(name)
        if not isinstance(value, str):
            raise self.wrong(name, "must be a string")
        return value

    def inside(self, name: str) -> Fields | None:
        """An object in this one, or None."""
        value = self.value(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.wrong(name, "must be an object")
        return Fields(value, f"{self.prefix}{name}.")

    def wrong(self, name: str, why: str) -> UnsupportedConfig:
        """The error for a value that cannot be used."""
        missing = name not in self.data and name not in self.defaults
        found = "is missing" if missing else f"= {self.value(name)!r}"
        return UnsupportedConfig(f"config.json: {self.prefix}{name} {found}; it {why}")
