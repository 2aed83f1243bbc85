"""A key of coldstream.toml: what it says of itself, and which values it may have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field
from typing import Any

from coldstream.errors import SettingsError

_METADATA = "coldstream.key"


@dataclass(frozen=True, slots=True)
class Key:
    """`help` is one line for people; a number lies in [`at_least`, `at_most`] and is more than `above`.

    `known` are the values that a list of strings may hold; `example` is what a commented starter shows where the
    default is None or says too little.
    """

    help: str
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    known: tuple[str, ...] = ()
    example: str | None = None

    def check(self, value: Any, where: str) -> None:
        """Raise SettingsError for a value that is out of range."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            self._check_number(value, where)
        if isinstance(value, tuple) and self.known:
            for item in value:
                if item not in self.known:
                    raise SettingsError(f"{where}: {item!r} is unknown; known here: {', '.join(self.known)}")

    def _check_number(self, value: float, where: str) -> None:
        fits = (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
        )
        if not fits:
            raise SettingsError(f"{where} = {value} must be {self.range}")

    @property
    def range(self) -> str:
        """The allowed numbers in words; empty where all are."""
        low = f"at least {self.at_least:g}" if self.at_least is not None else ""
        low = f"more than {self.above:g}" if self.above is not None else low
        high = f"at most {self.at_most:g}" if self.at_most is not None else ""
        return " and ".join(part for part in (low, high) if part)


def key(
    help: str,
    default: Any = MISSING,
    *,
    default_factory: Any = MISSING,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    known: tuple[str, ...] = (),
    example: str | None = None,
) -> Any:
    """A dataclass field with a `Key`; without a default the key must be given."""
    metadata = {_METADATA: Key(help, at_least, above, at_most, known, example)}
    if default_factory is not MISSING:
        return field(default_factory=default_factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def key_of(item: Field[Any]) -> Key | None:
    """What `key` said of a field; None for one that is no key of the file."""
    metadata: Mapping[Any, Any] = item.metadata
    return metadata.get(_METADATA)
