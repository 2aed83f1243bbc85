"""Schemas for the SQL model's training: tables of known and of made-up words, and the CREATE TABLE text of them."""

from __future__ import annotations

import pydoc_data.topics
import random
import re
from dataclasses import dataclass, field
from functools import lru_cache

from sql_words import Attribute, Thing, attributes, things, values

THINGS, ATTRIBUTES = things(), attributes()
RESERVED = frozenset(
    "add all alter and as asc between by case check column commit create cross default delete desc distinct drop each else end escape "
    "except exists fail for foreign from full glob group having if in index inner insert into is isnull join key left like limit "
    "match natural no not null of offset on or order over primary references regexp replace right row rows select set table temp "
    "then to transaction trigger union unique update using values view when where with without do match plan nothing".split()
)
STYLES = ("snake",) * 12 + ("camel", "camel", "pascal", "pascal", "pascal", "upper")


@dataclass(slots=True)
class Column:
    """A column as it is written, what it is, and the table that it points to."""

    ident: str
    attribute: Attribute
    parent: Table | None = None


@dataclass(slots=True)
class Table:
    """A table as it is written, and what it holds. `key` is the identifier of its primary key, '' without one."""

    ident: str
    thing: Thing
    key: str
    columns: list[Column] = field(default_factory=list)
    rows: list[dict[str, tuple[str, str]]] = field(default_factory=list)

    def of(self, *kinds: str) -> list[Column]:
        """Its columns of these kinds."""
        return [column for column in self.columns if column.attribute.kind in kinds]


@dataclass(slots=True)
class Schema:
    """Tables and the text that shows them."""

    tables: list[Table]
    text: str
    elided: bool = False


@lru_cache(maxsize=1)
def english_words() -> tuple[str, ...]:
    """Words of Python's own help: names that the lists do not have."""
    text = " ".join(pydoc_data.topics.topics.values())
    return tuple(
        sorted(
            {
                word
                for word in re.findall(r"\b[a-z]{3,9}\b", text)
                if not word.endswith(("ing", "ed", "ly")) and not RESERVED & {word, word + "s"}
            }
        )
    )


def made_word(r: random.Random) -> str:
    """A word that does not exist, or an English one of no list."""
    if r.random() < 0.6:
        return r.choice(english_words())
    starts, middles = (
        "b c d f g h j k l m n p r s t v w z br dr fl gr kl pl st tr sh ch".split(),
        "a e i o u ai ea oo".split(),
    )
    ends = ["", "n", "r", "l", "x", "rk", "nt", "sh", "m", "t", "ck"]
    return "".join(r.choice(starts) + r.choice(middles) for _ in range(r.choice((1, 2, 2)))) + r.choice(ends)


def plural(word: str) -> str:
    """As English makes it, for a word of the usual kind."""
    if word.endswith(("s", "x", "ch", "sh")):
        return word + "es"
    return word[:-1] + "ies" if word.endswith("y") and word[-2] not in "aeiou" else word + "s"


def made_thing(r: random.Random) -> Thing:
    """A thing with a name of made-up words, which Korean questions use as it is."""
    one = made_word(r) if r.random() < 0.8 else f"{made_word(r)} {made_word(r)}"
    return Thing(one, plural(one), (one, plural(one)), r.choice("개개건명"), r.random() < 0.3)


def made_attribute(r: random.Random) -> Attribute:
    """A column with a name of made-up words."""
    kind = r.choice(("number", "number", "group", "group", "date", "text"))
    one = made_word(r) if r.random() < 0.6 else f"{made_word(r)} {made_word(r)}"
    ident = one.replace(" ", "_") + {
        "date": r.choice(("_date", "_at", "")),
        "number": r.choice(("", "", "_count")),
    }.get(kind, "")
    words: dict[str, tuple[str, ...]] = {"verbs": (one,), "ko_verbs": ()} if kind == "date" else {}
    name = ident.replace("_", " ") if kind == "date" else one
    pool = r.choice(("kinds", "statuses", "categories", "levels", "people", "made", "made")) if kind == "group" else ""
    return Attribute(
        kind, (ident,), name, plural(name), (name,), "pt", words, 1, r.choice((10, 100, 1000, 100000)), pool
    )


def value_of(attribute: Attribute, r: random.Random) -> tuple[str, str]:
    """A value of a column of names or kinds: in English and in Korean."""
    if attribute.values == "made":
        word = made_word(r)
        word = r.choice((word, word.capitalize(), word.upper()))
        return word, word
    if attribute.kind == "label":
        if attribute.who == "p" and r.random() < 0.35:
            given = "민서준우지현영수빈하은도윤예나태호정석유진경미선재성희연아름"
            english = f"{made_word(r).capitalize()} {made_word(r).capitalize()}"
            return english, r.choice("김이박최정강조윤장임한오서신권황안송류홍") + r.choice(given) + r.choice(given)
        if attribute.who == "t" or r.random() < 0.25:
            words = " ".join(made_word(r).capitalize() for _ in range(r.choice((1, 2))))
            return words, words
        return r.choice(values("people"))[0], r.choice(values("people"))[1]
    return r.choice(values(attribute.values or "kinds"))


def written(name: str, style: str) -> str:
    """An identifier in a style, from words with blanks or underscores."""
    parts = re.split(r"[ _-]+", name)
    if style == "snake":
        return "_".join(parts).lower()
    if style == "upper":
        return "_".join(parts).upper()
    capital = [part[:1].upper() + part[1:] for part in parts]
    capital = ["ID" if part.lower() == "id" and style == "pascal" else part for part in capital]
    return "".join(capital) if style == "pascal" else parts[0] + "".join(capital[1:])


def make_schema(r: random.Random, *, easy: bool = False) -> Schema:
    """One to three tables; `easy` is one small one."""
    style, korean = r.choice(STYLES), r.random() < 0.05
    count = 1 if easy else r.choice((1, 1, 1, 1, 2, 2, 2, 3))
    many = r.random() < 0.65
    makeable = [thing for thing in THINGS if thing.one not in RESERVED or many]
    tables: list[Table] = []
    for _ in range(count):
        thing = made_thing(r) if r.random() < 0.16 else r.choice(makeable)
        if any(thing.one in (t.thing.one, t.thing.many) or set(thing.korean) & set(t.thing.korean) for t in tables):
            continue
        tables.append(make_table(r, thing, style, tables, many=many, korean=korean, easy=easy))
    r.shuffle(tables)
    elided = count == 1 and r.random() < 0.015
    return Schema(tables, "".join(_shown(r, tables, elided=elided)), elided)


def make_table(
    r: random.Random, thing: Thing, style: str, before: list[Table], *, many: bool, korean: bool, easy: bool
) -> Table:
    """A table of a thing; it points to one of those made before, mostly."""
    name = (
        thing.korean[0].replace(" ", "")
        if korean
        else written(thing.many if many or thing.one in RESERVED else thing.one, style)
    )
    if not korean and r.random() < 0.04:
        name = r.choice(("tbl_", "t_", "app_")) + name
    bare = r.random() < 0.6
    key = (
        "id"
        if korean
        else written("id" if bare else r.choice((f"{thing.one} id", f"{thing.one} id", f"{thing.one} no")), style)
    )
    table = Table(name, thing, key if r.random() < 0.93 else "")
    taken = {key.lower()}
    if before and r.random() < 0.9:
        for parent in r.sample(before, 2 if len(before) > 1 and r.random() < 0.55 else 1):
            if parent.key:
                same = parent.key.lower() != "id"
                ident = parent.key if same and r.random() < 0.8 else written(f"{parent.thing.one} id", style)
                if korean:
                    ident = parent.ident + "_id"
                if ident.lower() not in taken:
                    taken.add(ident.lower())
                    table.columns.append(
                        Column(ident, Attribute("key", (ident,), f"{parent.thing.one} id", "", (), "", {}), parent)
                    )
    if not before and not korean and r.random() < 0.22:
        # points to a table that the schema does not show
        far = r.choice(THINGS)
        ident = written(f"{far.one} id", style)
        if ident.lower() not in taken and far.one != thing.one:
            taken.add(ident.lower())
            table.columns.append(
                Column(ident, Attribute("key", (ident,), f"{far.one} id", "", (), "", {}), Table("", far, "id"))
            )
    for attribute in _chosen(r, thing, 3 if easy else 5):
        ident = attribute.korean[0].replace(" ", "_") if korean else written(r.choice(attribute.idents), style)
        if ident.lower() in RESERVED:
            ident += written(" type", style)
        if not korean and attribute.kind == "label" and r.random() < 0.2:
            ident = written(f"{thing.one} {attribute.idents[0]}", style)
        if ident.lower() not in taken:
            taken.add(ident.lower())
            table.columns.append(Column(ident, attribute))
    if r.random() < 0.2:
        r.shuffle(table.columns)
    return table


def _chosen(r: random.Random, thing: Thing, most: int) -> list[Attribute]:
    who = "p" if thing.person else "t"
    found: list[Attribute] = []
    labels = [a for a in ATTRIBUTES if a.kind == "label" and who in a.who]
    if r.random() < 0.75:
        found.append(labels[0] if r.random() < 0.6 else r.choice(labels))
    others = [a for a in ATTRIBUTES if a.kind != "label" and (who in a.who or r.random() < 0.1)]
    weights = [{"number": 1.3, "group": 1.4, "date": 1.0, "flag": 0.8, "text": 0.6}[a.kind] for a in others]
    for _ in range(r.randint(1, most)):
        one = made_attribute(r) if r.random() < 0.16 else r.choices(others, weights)[0]
        if all(one.one not in (a.one, thing.one) and not set(one.korean) & set(a.korean) for a in found):
            found.append(one)
    return found


def type_of(column: Column, r: random.Random) -> str:
    """A type that databases have for it."""
    kind = column.attribute.kind
    if kind == "date" and not re.search(r"(?i:date|day|time|_at|_on)$|[a-z](?:At|On)$", column.ident):
        return r.choice(("DATE", "DATETIME", "TIMESTAMP"))  # nothing else says what it holds
    choices = {
        "key": ("INT", "INTEGER", "INT", "BIGINT"),
        "number": (
            "INT",
            "INTEGER",
            "INT",
            "DECIMAL(10, 2)",
            "REAL",
            "FLOAT",
            "NUMERIC",
            "DECIMAL",
            "DECIMAL(8,2)",
            "DOUBLE",
            "REAL",
        ),
        "date": ("DATE", "DATE", "DATETIME", "TIMESTAMP", "TEXT"),
        "flag": ("BOOLEAN", "BOOLEAN", "INT", "INTEGER", "TINYINT"),
    }
    return r.choice(
        choices.get(
            kind, ("TEXT",) * 8 + ("VARCHAR", "VARCHAR(50)", "VARCHAR(100)", "varchar(255)", "VARCHAR(20)", "CHAR(10)")
        )
    )


def _shown(r: random.Random, tables: list[Table], *, elided: bool) -> list[str]:
    layout = r.choice(("line", "line", "commands", "columns"))
    lower, types, extras = r.random() < 0.25, r.random() < 0.95, r.random() < 0.35
    create = r.choice(("CREATE TABLE",) * 8 + ("CREATE TABLE IF NOT EXISTS",))
    quote = r.choice(('"', "`")) if r.random() < 0.03 else ""
    integer = r.choice(("INT", "INTEGER"))
    texts: list[str] = []
    for table in tables:
        lines = (
            [_line(r, table.key, integer, quote, types, " PRIMARY KEY" if extras or r.random() < 0.3 else "")]
            if table.key
            else []
        )
        foreign: list[str] = []
        for column in table.columns:
            extra = " NOT NULL" if extras and r.random() < 0.3 else ""
            parent = column.parent if column.parent and column.parent.ident else None
            if parent and extras and r.random() < 0.5:
                extra += f" REFERENCES {parent.ident}({parent.key})"
            elif parent and extras:
                foreign.append(f"FOREIGN KEY ({column.ident}) REFERENCES {parent.ident}({parent.key})")
            lines.append(_line(r, column.ident, type_of(column, r), quote, types, extra))
        lines += foreign
        inside = "..." if elided else ", ".join(lines)
        if layout == "columns":
            inside = "\n  " + ",\n  ".join(["..."] if elided else lines) + "\n"
        texts.append(f"{create} {quote}{table.ident}{quote}{r.choice((' ', ' ', '')) if not lower else ' '}({inside})")
        if not elided and r.random() < 0.06 and table.columns:
            texts.append(_insert(r, table))
    if lower:
        texts = [
            re.sub(
                r"CREATE TABLE|IF NOT EXISTS|PRIMARY KEY|NOT NULL|FOREIGN KEY|REFERENCES|INSERT INTO|VALUES|\b[A-Z]{3,}(?=[,( )])",
                lambda m: m[0].lower() if m[0] in _WORDS else m[0],
                text,
            )
            for text in texts
        ]
    between = "; " if layout == "line" else ";\n"
    return [between.join(texts), r.choice((";", ";", ";", "", ";\n"))]


_WORDS = set(
    "CREATE TABLE|IF NOT EXISTS|PRIMARY KEY|NOT NULL|FOREIGN KEY|REFERENCES|INSERT INTO|VALUES|INT|INTEGER|TEXT|DATE|VARCHAR|REAL|FLOAT|DECIMAL|BOOLEAN".split(
        "|"
    )
)


def _line(r: random.Random, ident: str, type_: str, quote: str, types: bool, extra: str) -> str:
    return f"{quote}{ident}{quote}" + (f" {type_}" if types else "") + extra


def _insert(r: random.Random, table: Table) -> str:
    rows: list[str] = []
    for number in range(1, r.choice((2, 3, 3, 4))):
        row, cells = {}, ([str(number)] if table.key else [])
        for column in table.columns:
            attribute = column.attribute
            if attribute.kind in ("group", "label"):
                row[column.ident] = value_of(attribute, r)
                cells.append(f"'{row[column.ident][0]}'")
            elif attribute.kind == "date":
                cells.append(f"'20{r.randint(10, 25)}-{r.randint(1, 12):02}-{r.randint(1, 28):02}'")
            elif attribute.kind == "text":
                cells.append(f"'{made_word(r)}'")
            else:
                cells.append(str(r.randint(0, 1) if attribute.kind == "flag" else r.randint(1, max(9, attribute.high))))
        table.rows.append(row)
        rows.append(f"({', '.join(cells)})")
    return f"INSERT INTO {table.ident} VALUES {', '.join(rows)}"
