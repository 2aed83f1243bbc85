"""A grammar for one SELECT over the tables and columns that a schema shows. Pure.

Names come from the schema, texts from the question and the schema's rows, numbers from the question. What is compared,
summed and ordered fits the column's kind. Joins follow the keys. A model that is small can then be wrong, but not wild.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from coldstream.serve.sql.numbers import numbers_in
from coldstream.serve.sql.schema import SqlColumn, SqlSchema, SqlTable, read_schema

_LONGEST = 4000
_LONGEST_PHRASE = 12
_MOST_AROUND = 6
_COUNT = '"COUNT(*)"'
_FIXED = r"""
agg: "SUM(" | "AVG(" | "MAX(" | "MIN("
op: " = " | " <> " | " > " | " >= " | " < " | " <= "
cmp: " = " | " > " | " >= " | " < " | " <= "
text: "'" VALUE "'"
like: "'%" VALUE "%'" | "'" VALUE "%'" | "'%" VALUE "'"
year: "'" YEAR "'"
date: "'" DATE "'"
now: "'%Y', 'now'" | "'%Y', 'now', '-1 year'"
month: "'%Y-%m', 'now'" | "'%Y-%m', 'now', 'start of month', '-1 month'"
DATE: /[0-9]{4}-[0-9]{2}-[0-9]{2}/
IDENT: /[A-Za-z][A-Za-z_]{1,30}/
"""


def select_grammar(schema: str, question: str) -> str | None:
    """A Lark grammar for the answer; None where the schema cannot be read, or one of both is too long."""
    if len(schema) > 16 * _LONGEST or len(question) > _LONGEST:
        return None
    read = read_schema(schema)
    if read is None:
        return None
    sources = list(_sources(read))
    unseen = [_unseen(read.tables[0])] if _lacks_measure(read.tables) else []
    forms = [*(source.name for source in sources), *("unseen" for _ in unseen)]
    rules = [rule for source in sources for rule in source.rules()]
    start = f'start: "SELECT " ({_either(forms)}) ";"'
    return "\n".join([start, *unseen, *rules, _FIXED, *_terminals(question, read.stored)])


def _terminals(question: str, stored: list[str]) -> Iterator[str]:
    """What a text, a number, a year and a month may be."""
    numbers = numbers_in(question)
    kept = "".join(f" | {_quote(text)}" for text in stored)
    years = sorted(n for n in numbers if re.fullmatch(r"\d{4}", n)) or ["2024"]
    yield f"VALUE: /{_phrases(question)}/{kept}"
    yield f"NUMBER: {_either(map(_quote, numbers))}"
    yield f"YEAR: {_either(map(_quote, years))}"
    yield f"MONTH: {_either(_quote(f'{year}-{month:02}') for year in years for month in range(1, 13))}"


def _phrases(question: str) -> str:
    """A regular expression of what a question may name: from a word's beginning to the end of that word or a later one.

    A Korean word may end anywhere, for its particle is no part of the name.
    """
    parts = re.findall(r"([^\w]*)([가-힣]|[^\W가-힣]+)", re.sub("['\"]", " ", question))
    found: list[str] = []
    for start, (before, first) in enumerate(parts):
        if start and not before and first.isalpha() and not first.isascii() and not parts[start - 1][1].isascii():
            continue  # inside a word
        ways = ""
        for gap, word in reversed(parts[start + 1 : start + _LONGEST_PHRASE]):
            ways = f"({_escaped(gap + word)}{ways})?"
        found.append(_escaped(first) + ways)
    return "|".join(dict.fromkeys(found)) or "x"


def _escaped(text: str) -> str:
    return re.escape(text).replace("/", r"\/")


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _from(text: str) -> str:
    """What is behind FROM, word by word: the grammar has no text that begins as another one in its place does."""
    words = re.split(r"( LEFT JOIN | JOIN | ON | = )", text)
    return " ".join(map(_quote, words))


def _either(parts: Iterable[str]) -> str:
    return " | ".join(dict.fromkeys(parts))


@dataclass(slots=True)
class _Source:
    """What stands behind FROM: its columns as they are written there, by what may be done with them."""

    name: str
    text: str
    columns: list[tuple[str, SqlColumn]]
    stars: list[str]
    lacking: tuple[str, ...] = ()

    def of(self, *kinds: str) -> list[str]:
        return [written for written, column in self.columns if column.kind in (*kinds, "any")]

    def rules(self) -> Iterator[str]:
        """The source's rules; `name` is the first."""
        n = self.name
        stars = [f"{_quote(star)} f{n} o{n}?" for star in self.stars]
        yield f'f{n}: " FROM " {_from(self.text)} w{n}?'
        if not self.columns:  # the schema does not say what there is
            yield f"{n}: {_either([f'{_COUNT} f{n}', *stars])}"
            yield f'w{n}: " WHERE 1"'
            yield f'o{n}: " LIMIT " NUMBER'
            return
        measured, dated = self._measured(), self._of("date", "dated text")
        extremes = [f'("MAX(" | "MIN(") d{n} ")" f{n}'] if dated else []
        columns = [f'"DISTINCT " c{n} f{n}', f'"COUNT(DISTINCT " c{n} ")" f{n}', f'c{n} (", " c{n}){{0,4}} f{n} o{n}?']
        yield f"{n}: {_either([*stars, *columns, *extremes, f'm{n} f{n}', f'g{n}', *self.lacking])}"
        yield f"c{n}: {_either(_quote(written) for written, _ in self.columns)}"
        if dated:
            yield f"d{n}: {_either(map(_quote, dated))}"
        sums = [f'agg n{n} ")"'] if measured else []
        if measured:
            yield f"n{n}: {_either(map(_quote, measured))}"
        yield f"m{n}: {_either([_COUNT, *sums])}"
        yield f'o{n}: " ORDER BY " c{n} " DESC"? (" LIMIT " NUMBER)?'
        yield f"g{n}: {_either(self._groups(dated))}"
        yield f'w{n}: " WHERE " t{n} ((" AND " | " OR ") t{n}){{0,2}}'
        yield f't{n}: p{n} | "(" p{n} " OR " p{n} ")"'
        yield f"p{n}: {_either(self._conditions())}"

    def _of(self, *kinds: str) -> list[str]:
        return [written for written, column in self.columns if column.kind in (*kinds, "any")]

    def _measured(self) -> list[str]:
        """What may be summed: numbers that are not keys."""
        numbers = [(written, column) for written, column in self.columns if column.kind in ("number", "any")]
        return [written for written, column in numbers if not (column.is_key or column.target or _is_key(column.name))]

    def _groups(self, dated: list[str]) -> Iterator[str]:
        """One form for each column to group by, which stands in it twice."""
        m, f = f"m{self.name}", f"f{self.name}"
        order = f'" ORDER BY " {m} " DESC"?'
        parts = [f"strftime('{how}', {written})" for written in dated for how in ("%Y", "%Y-%m")]
        for key in map(_quote, [*(written for written, _ in self.columns), *parts]):
            counted = f'", " {m} {f} " GROUP BY " {key} ({order})? (" LIMIT " NUMBER)?'
            chosen = f'{f} " GROUP BY " {key} (" HAVING " {m} op NUMBER | {order} " LIMIT " NUMBER)'
            yield f"{key} ({counted} | {chosen})"

    def _conditions(self) -> Iterator[str]:
        for written, column in self.columns:
            c = _quote(written)
            yield f'{c} (" IS NULL" | " IS NOT NULL")'
            if column.kind == "flag":
                yield f'{c} (" = 1" | " = 0")'
            if column.kind in ("text", "dated text", "any"):
                yield f'{c} ((" = " | " <> ") text | " LIKE " like | " IN (" text (", " text){{1,3}} ")")'
            if column.kind in ("number", "any"):
                yield f'{c} (op NUMBER | " BETWEEN " NUMBER " AND " NUMBER)'
                if " " not in self.text:
                    mean = _quote(f"(SELECT AVG({written}) FROM {self.text})")  # noqa: S608  a grammar, nothing runs it
                    yield f'{c} (" > " | " < ") {mean}'
            if column.kind in ("date", "dated text", "any"):
                yield from _dates(written)


def _dates(written: str) -> Iterator[str]:
    """Conditions on a date: its year, its month, its day, how long ago it was."""
    year, month, day = (
        _quote(text.format(written)) for text in ("strftime('%Y', {})", "strftime('%Y-%m', {})", "date({})")
    )
    yield f'{year} (cmp year | " BETWEEN " year " AND " year | " = strftime(" now ")")'
    yield f'{month} (" = " "\'" MONTH "\'" | " = strftime(" month ")")'
    yield f"{_quote(written)} (cmp date | \" >= date('now', '-\" NUMBER \" days')\")"
    yield f"{day} \" = date('now')\""


def _is_key(name: str) -> bool:
    return re.search(r"(?:^|_)id$|ID$|[a-z]Id$", name) is not None


def _sources(schema: SqlSchema) -> Iterator[_Source]:
    """Every table, every two that a key ties, and every three around a table with two keys."""
    for number, table in enumerate(schema.tables):
        yield _Source(f"a{number}", table.name, [(column.name, column) for column in table.columns], ["*"])
    ties = list(_ties(schema.tables))
    for number, tie in enumerate(ties):
        one, many = tie.one, tie.many
        mine = _either(_quote(f"{one.name}.{name}") for name in ("*", *(column.name for column in one.columns)))
        outer = _from(f"{one.name} LEFT JOIN {many.name} ON {tie.on}")
        lacking = f'({mine}) " FROM " {outer} " WHERE " {_quote(tie.pointing)} " IS NULL"'
        text = f"{one.name} JOIN {many.name} ON {tie.on}"
        yield _Source(f"j{number}", text, _named(one, many), [f"{one.name}.*", f"{many.name}.*"], (lacking,))
    around = [(a, b) for a in ties for b in ties if a.many is b.many and a.one is not b.one]
    for number, (a, b) in enumerate(around[:_MOST_AROUND]):
        text = f"{a.one.name} JOIN {a.many.name} ON {a.on} JOIN {b.one.name} ON {b.on}"
        yield _Source(f"k{number}", text, _named(a.one, a.many, b.one), [f"{a.one.name}.*"])


def _named(*tables: SqlTable) -> list[tuple[str, SqlColumn]]:
    return [(f"{table.name}.{column.name}", column) for table in tables for column in table.columns]


@dataclass(frozen=True, slots=True)
class _Tie:
    """A table, one that points to it, and by what."""

    one: SqlTable
    many: SqlTable
    key: str
    pointing: str

    @property
    def on(self) -> str:
        return f"{self.key} = {self.pointing}"


def _ties(tables: list[SqlTable]) -> Iterator[_Tie]:
    by_name = {table.name.lower(): table for table in tables}
    for table in tables:
        for column in table.columns:
            other = by_name.get(column.target[0].lower()) if column.target else None
            if column.target is None or other is None or other is table:
                continue
            key = column.target[1] or next((one.name for one in other.columns if one.is_key), "")
            if key:
                yield _Tie(other, table, f"{other.name}.{key}", f"{table.name}.{column.name}")


def _lacks_measure(tables: list[SqlTable]) -> bool:
    """One table without anything to sum: what a sum is of must be in a table that the schema leaves out."""
    kinds = ("number", "any", "flag")
    summed = [c for t in tables for c in t.columns if c.kind in kinds and not (c.is_key or _is_key(c.name))]
    return len(tables) == 1 and bool(tables[0].columns) and not summed


def _unseen(table: SqlTable) -> str:
    """A sum over a table that is not shown, tied by this one's key."""
    names = _either(_quote(column.name) for column in table.columns)
    own = next((c.name for c in table.columns if c.is_key or _is_key(c.name)), table.columns[0].name)
    return (
        f'unseen: ({names}) ", " "SUM(" IDENT ")" " as " IDENT " FROM " {_quote(table.name)} " JOIN " IDENT " ON " '
        f'{_quote(f"{table.name}.{own}")} " = " IDENT {_quote(f".{own}")} wa0? " GROUP BY " ({names})'
    )
