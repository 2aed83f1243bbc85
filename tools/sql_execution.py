"""The SQL model's held-out questions, and whether an answer is right: what SQLite returns for it, over random rows."""

from __future__ import annotations

import random
import re
import sqlite3
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

HELD_OUT = Path(__file__).with_name("sql_heldout.txt")
_SEEDS = range(4)
_WORDS = ("Seoul", "blue", "A", "Kim", "north", "서울", "x1", "gold", "Anna")


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A question about a schema, and the commands of which any is right."""

    schema: str
    question: str
    right: tuple[str, ...]


def held_out() -> list[HeldOut]:
    """Every question of the file."""
    found: list[HeldOut] = []
    text = re.sub(r"^#.*\n", "", HELD_OUT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for block in text.strip().split("\n\n"):
        end = block.rindex(";\n", 0, block.index("\n>") if "\n>" in block else None) + 1
        schema, lines = block[:end], block[end:].strip().split("\n")
        for line in lines:
            if not line.startswith(">"):
                found.append(HeldOut(schema, line, ()))
            else:
                last = found.pop()
                found.append(HeldOut(schema, last.question, (*last.right, line[1:].strip())))
    return found


def is_right(case: HeldOut, answer: str) -> bool:
    """Whether the answer returns what one of the right commands returns, on every one of some random databases.

    Rows are in order where the right command orders them; the order of columns is free.
    """
    return any(all(_same(case, right, answer, seed) for seed in _SEEDS) for right in case.right)


def _same(case: HeldOut, right: str, answer: str, seed: int) -> bool:
    with sqlite3.connect(":memory:") as database:
        database.executescript(case.schema)
        _fill(database, case, seed)
        wanted = [sorted(map(repr, row)) for row in database.execute(right)]
        if not answer.lstrip().upper().startswith("SELECT"):
            return False
        try:
            got = [sorted(map(repr, row)) for row in database.execute(answer)]
        except sqlite3.Error:
            return False
    if "ORDER BY" in right:
        return got == wanted
    return Counter(map(tuple, got)) == Counter(map(tuple, wanted))


def _fill(database: sqlite3.Connection, case: HeldOut, seed: int) -> None:
    """Rows in which the values that the right command speaks of do occur."""
    chance = random.Random(seed)  # noqa: S311  not for secrets
    said = re.findall(r"'([^']*)'", " ".join(case.right))
    words = [word.strip("%") for word in said if not word.startswith("%") or word.strip("%")]
    nulls = "IS NULL" in case.right[0]
    numbers = [float(n) for n in re.findall(r"(?<!['\w-])\d+(?:\.\d+)?(?!['\w-])", " ".join(case.right))] or [10.0]
    for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        columns = database.execute(f'PRAGMA table_info("{table}")').fetchall()
        for number in range(1, 61):
            row = [
                _cell(chance, name, kind, number, table, words, numbers, key=bool(key), nulls=nulls)
                for _, name, kind, _, _, key in columns
            ]
            database.execute(f'INSERT INTO "{table}" VALUES ({", ".join("?" * len(row))})', row)


def _cell(
    chance: random.Random,
    name: str,
    kind: str,
    number: int,
    table: str,
    words: list[str],
    numbers: list[float],
    *,
    key: bool,
    nulls: bool,
) -> object:
    lower, kind = name.lower(), kind.upper()
    own = (
        key
        or lower == "id"
        or (lower.endswith("id") and table.lower().startswith(lower.removesuffix("id").rstrip("_")))
    )
    if own and "INT" in kind:
        return number
    if lower.endswith("id") and "INT" in kind:
        return chance.randint(1, 40)
    if "DATE" in kind:
        dates = [word for word in words if re.fullmatch(r"\d{4}(-\d\d)?(-\d\d)?", word)]
        year = (chance.choice(dates) if dates and chance.random() < 0.6 else f"{chance.randint(1985, 2026)}")[:10]
        return (
            year
            if len(year) == 10
            else f"{year[:7] if len(year) == 7 else f'{year}-{chance.randint(1, 12):02}'}-{chance.randint(1, 28):02}"
        )
    if "BOOL" in kind:
        return chance.randint(0, 1)
    if any(part in kind for part in ("INT", "REAL", "DEC", "NUM")):
        near = chance.choice(numbers)
        value = chance.choice((near, near + 1, near - 1, near * chance.uniform(0.2, 3), chance.uniform(0, 100)))
        return round(value) if "INT" in kind else round(value, 2)
    if key:
        return f"{chance.choice(_WORDS)} {number}"
    if nulls and chance.random() < 0.2:
        return None
    texts = [word for word in words if not re.fullmatch(r"\d{4}(-\d\d)*|%Y(-%m)?|%Y-%m", word)]
    if texts and chance.random() < 0.5:
        return chance.choice(texts) + chance.choice(("", "", f" {chance.randint(1, 9)}"))
    if "name" in lower or lower in ("title", "nickname", "label") or own:
        return f"{chance.choice(_WORDS)} {number}"
    return chance.choice(_WORDS)
