"""Typed access to a JSON object of a checkpoint, with errors that name the field. Pure, no torch.

An absent key has its default; a key that is there and null does not, since transformers tells the two apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from coldstream.errors import UnsupportedConfig

MOST_WHOLE = 1 << 40
MOST = 1e30
"""Beyond them a value is an accident or an attack: no product of two of them overflows."""


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

    def whole(self, name: str, *, most: int = MOST_WHOLE) -> int:
        """A positive whole number, no larger than `most`."""
        value = self.value(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
            raise self.wrong(name, "must be a positive whole number" + (f" up to {most}" if most < MOST_WHOLE else ""))
        return value

    def optional_whole(self, name: str) -> int | None:
        """A positive whole number, or None."""
        return None if self.is_null(name) else self.whole(name)

    def number(self, name: str) -> float:
        """A positive number of a size that can be computed with."""
        value = self.value(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < MOST:
            raise self.wrong(name, "must be a positive number")
        return float(value)

    def optional_number(self, name: str) -> float | None:
        """A positive number of a size that can be computed with, or None."""
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
