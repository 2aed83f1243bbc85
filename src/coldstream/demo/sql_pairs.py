"""The questions that the demo's SQL model was taught, from sql_pairs.toml, rendered by the demo's own sql task."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class SqlPair:
    """A schema, a question, and the one answer that the model must give."""

    context: str
    question: str
    answer: str


def sql_pairs() -> tuple[SqlPair, ...]:
    """Every question of sql_pairs.toml; the first one is the example of the README."""
    data = tomllib.loads(files("coldstream.demo").joinpath("sql_pairs.toml").read_text(encoding="utf-8"))
    return tuple(SqlPair(p["context"], question, p["answer"]) for p in data["pair"] for question in p["questions"])
