"""What CREATE TABLE commands and their INSERTs say: tables, columns, their kinds, how tables are tied. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["number", "text", "date", "flag", "dated text", "any"]

MOST_TABLES = 12
MOST_COLUMNS = 64
_NAME = r'(?:"[^"\n]{1,80}"|`[^`\n]{1,80}`|\[[^\]\n]{1,80}\]|[^\W\d]\w{0,79})'
_CREATE = re.compile(rf"\bCREATE\s+TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?({_NAME})\s*\(", re.IGNORECASE)
_COLUMN = re.compile(rf"\s*({_NAME})\s*(.*)", re.DOTALL)
_REFERENCE = re.compile(rf"REFERENCES\s+({_NAME})\s*(?:\(\s*({_NAME})\s*\))?", re.IGNORECASE)
_FOREIGN = re.compile(
    rf"\s*(?:CONSTRAINT\s+{_NAME}\s+)?FOREIGN\s+KEY\s*\(\s*({_NAME})\s*\)\s*(.*)", re.IGNORECASE | re.DOTALL
)
_NO_COLUMN = re.compile(r"\s*(?:PRIMARY|FOREIGN|UNIQUE|CHECK|CONSTRAINT|KEY|INDEX)\b", re.IGNORECASE)
_TEXT = re.compile(r"'((?:[^']|''){1,60})'")
_KINDS: tuple[tuple[Kind, str], ...] = (
    ("date", r"DATE|TIME"),
    ("flag", r"BOOL"),
    ("text", r"CHAR|TEXT|CLOB|STRING|ENUM|UUID|JSON"),
    ("number", r"INT|REAL|FLOA|DOUB|DEC|NUM|MONEY|SERIAL"),
)
_DATED = re.compile(
    r"(?i:date|time|day|deadline|birth|created|updated|joined|hired|founded|released|opened|_at|_on|check_?in)$|[a-z](?:At|On)$"
)


@dataclass(slots=True)
class SqlColumn:
    """A column as it is written. `target` is the table, and there the column, that it points to."""

    name: str
    kind: Kind
    is_key: bool = False
    target: tuple[str, str] | None = None


@dataclass(slots=True)
class SqlTable:
    """A table as it is written."""

    name: str
    columns: list[SqlColumn] = field(default_factory=list)


@dataclass(slots=True)
class SqlSchema:
    """Tables in their order, and texts that the INSERTs store."""

    tables: list[SqlTable]
    stored: list[str]


def read_schema(text: str) -> SqlSchema | None:
    """The schema that a text shows; None where it shows none, or more than is read."""
    tables: list[SqlTable] = []
    for number, found in enumerate(_CREATE.finditer(text)):
        if number == MOST_TABLES:
            return None
        table = SqlTable(_bare(found[1]))
        for part in _parts(text, found.end()):
            _read(table, part)
        if len(table.columns) > MOST_COLUMNS:
            return None
        if all(table.name.lower() != other.name.lower() for other in tables):
            tables.append(table)
    if not tables:
        return None
    _tie(tables)
    inserted = "".join(re.findall(r"\bVALUES\b[^;]{1,4000}", text, re.IGNORECASE))
    return SqlSchema(tables, list(dict.fromkeys(_TEXT.findall(inserted)))[:200])


def _parts(text: str, start: int) -> Iterator[str]:
    """What stands between the commas of a parenthesis that was opened before `start`."""
    depth, begun = 0, start
    for place in range(start, min(len(text), start + 20_000)):
        letter = text[place]
        if letter == "(":
            depth += 1
        elif letter == ")":
            depth -= 1
        if depth < 0 or (letter == "," and depth == 0):
            yield text[begun:place]
            begun = place + 1
        if depth < 0:
            return
    yield text[begun:]


def _read(table: SqlTable, part: str) -> None:
    foreign = _FOREIGN.match(part)
    if foreign is not None:
        for column in table.columns:
            if column.name.lower() == _bare(foreign[1]).lower():
                column.target = _target(foreign[2])
        return
    found = None if _NO_COLUMN.match(part) else _COLUMN.match(part)
    if found is not None:
        name, rest = _bare(found[1]), found[2]
        key = re.search(r"PRIMARY\s+KEY", rest, re.IGNORECASE) is not None
        table.columns.append(SqlColumn(name, _kind(name, rest), key, _target(rest)))


def _target(rest: str) -> tuple[str, str] | None:
    found = _REFERENCE.search(rest)
    return None if found is None else (_bare(found[1]), _bare(found[2]) if found[2] else "")


def _bare(name: str) -> str:
    """A name without quotes where it needs none."""
    inside = name[1:-1] if name[0] in '"`[' else name
    return inside if re.fullmatch(r"[^\W\d]\w*", inside) else name


def _kind(name: str, rest: str) -> Kind:
    type_ = re.match(r"\s*\w*", rest)
    word = type_[0].upper() if type_ else ""
    for kind, pattern in _KINDS:
        if re.search(pattern, word):
            return "dated text" if kind == "text" and _DATED.search(name) else kind
    return "any"


def _tie(tables: list[SqlTable]) -> None:
    """Columns that point to a table without saying so: they have its key's name, or its own name and "id"."""
    for table in tables:
        if table.columns and not any(column.is_key for column in table.columns):
            first = table.columns[0]
            first.is_key = first.name.lower().endswith(("id", "no", "code", "number")) and _is_own(table, first.name)
    for table in tables:
        for column in table.columns:
            if column.target is None:
                column.target = _guess(tables, table, column)


def _guess(tables: list[SqlTable], table: SqlTable, column: SqlColumn) -> tuple[str, str] | None:
    for other in tables:
        key = next((one.name for one in other.columns if one.is_key), None)
        if other is table or key is None:
            continue
        same = column.name.lower() == key.lower() != "id" and not (column.is_key and _is_own(table, column.name))
        stem = re.fullmatch(r"(.{2,}?)_?(?:id|no|key|code)", column.name, re.IGNORECASE)
        if same or (stem is not None and not column.is_key and _is_one_of(stem[1], other.name)):
            return other.name, key
    return None


def _is_own(table: SqlTable, key: str) -> bool:
    """Whether a column is its table's own key by its name."""
    stem = re.fullmatch(r"(.*?)_?(?:id|no|code|number)", key, re.IGNORECASE)
    return stem is not None and (not stem[1] or _is_one_of(stem[1], table.name))


def _is_one_of(one: str, many: str) -> bool:
    """Whether a word may be the singular of a table's name: pastry and pastries, emp and employees."""
    short, long = one.lower().rstrip("_"), re.sub(r"^(?:tbl|app|t)_", "", many.lower())
    irregular = {"person": "people", "child": "children", "man": "men", "woman": "women", "category": "categories"}
    return (
        long.startswith(short[:-1] if short.endswith(("y", "f", "e")) and len(short) > 3 else short)
        or irregular.get(short) == long
    )
