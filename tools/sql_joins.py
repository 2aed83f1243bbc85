"""Questions about two tables of which one points to the other, with their SQL."""

from __future__ import annotations

import random
from collections.abc import Callable

from sql_filters import quoted
from sql_korean import ga, neun, reul
from sql_questions import Asked, Want, by, measure
from sql_schemas import Column, Schema, Table, value_of
from sql_words import values


class Pair:
    """A table, the one that it points to, and the clause that joins them."""

    def __init__(self, r: random.Random, schema: Schema, child: Table, key: Column, korean: bool) -> None:
        parent = key.parent
        assert parent is not None
        self.r, self.korean, self.key = r, korean, key
        self.child, self.parent = Want(r, schema, child, korean), Want(r, schema, parent, korean)
        self.clause = f"{parent.ident} JOIN {child.ident} ON {parent.ident}.{parent.key} = {child.ident}.{key.ident}"

    def c(self, ident: str) -> str:
        """A column of the table that points."""
        return f"{self.child.table.ident}.{ident}"

    def p(self, ident: str) -> str:
        """A column of the table that is pointed to."""
        return f"{self.parent.table.ident}.{ident}"

    def pick(self, english: str, korean: str) -> str:
        return self.child.pick(english, korean)


def qualified(sql: str, table: Table) -> str:
    """A condition whose columns carry their table's name."""
    for column in sorted({c.ident for c in table.columns} | {table.key}, key=len, reverse=True):
        if not column:
            continue
        for start in (
            f"{column} ",
            f"({column} ",
            f"strftime('%Y', {column})",
            f"strftime('%Y-%m', {column})",
            f"date({column})",
        ):
            if sql.startswith(start):
                sql = start.replace(column, f"{table.ident}.{column}") + sql[len(start) :]
                return sql
    return sql


def _of_one(w: Want) -> tuple[str, str]:
    """One condition on a table: the noun with it, and its SQL; ('', '') where none can be made."""
    f = w.filters(1.0, most=1)
    return (w.noun(f), qualified(f.sql, w.table)) if f.sql else ("", "")


def _label(p: Pair) -> Column | None:
    return p.parent.label()


def counts(p: Pair) -> Asked | None:
    """How many of the one each of the other has."""
    label = _label(p)
    if not label:
        return None
    n, o, os, many = p.child.many, p.parent.one, p.parent.many, p.child.table.thing.counter
    g = p.r.choice((o, f"{o} {label.attribute.one}")) if not p.korean else o
    q = p.pick(
        f"how many {n} does each {o} have|number of {n} per {g}|count the {n} of each {o}|show each {o} with the number of {n}|list the {label.attribute.many} of {os} and how many {n} they have|how many {n} per {g}|"
        f"for each {o}, count the {n}|show the number of {n} for each {g}|{n} per {o}|count {n} by {g}|list {os} with their number of {n}|give me each {o}'s name and number of {n}",
        f"{o}별 {n} 수를 알려줘|각 {o}의 {n} 수는|{o}별 {neun(n)} 몇 {many}인가요|{o}마다 {ga(n)} 몇 {many}인지 보여줘|{o} 이름과 {n} 수를 보여줘|{o}별로 {n} 수를 구해줘|{o} 이름별 {n} 수",
    )
    end = ""
    if p.r.random() < 0.1:
        q, end = (
            q + p.pick(", most first|, highest first|, in descending order", ", 많은 순으로"),
            " ORDER BY COUNT(*) DESC",
        )
    return q, f"SELECT {p.p(label.ident)}, COUNT(*) FROM {p.clause} GROUP BY {p.p(label.ident)}{end};"


def measures(p: Pair) -> Asked | None:
    """An aggregate of the one for each of the other."""
    label, numbers = _label(p), p.child.table.of("number")
    if not numbers:
        return None
    number = p.r.choice(numbers)
    m, _, function = measure(p.child, number)
    f = p.parent.filters(0.25, most=1)
    where = f" WHERE {qualified(f.sql, p.parent.table)}" if f.sql else ""
    kinds = p.parent.table.of("group")
    n, o = p.child.many, p.parent.one
    if kinds and (not label or p.r.random() < 0.35):
        kind = p.r.choice(kinds)
        b, g = by(p.parent, kind)
        q = p.pick(
            f"{m} of {n} by {o} {g}|what is the {m} of {n} {b}|show the {m} of {n} for each {o} {g}|{m} of {n} {b} of the {o}",
            f"{o} {g}별 {n} {reul(m)} 알려줘|{o}의 {g}별 {n} {neun(m)} 얼마인가요|{o} {g}별 {n} {m}",
        )
        return (
            q,
            f"SELECT {p.p(kind.ident)}, {function}({p.c(number.ident)}) FROM {p.clause} GROUP BY {p.p(kind.ident)};",
        )
    if not label:
        return None
    os, each = f.around(p.parent.many, p.korean), f.around(o, p.korean)
    q = p.pick(
        f"what is the {m} of {n} for each {each}|{m} of {n} per {each}|show the {m} of {n} by {each}|{m} per {each}|what is the {m} of each {each}|list {os} with their {m} of {n}|what is the {m} of {n} of each {each}|show each {each} with the {m} of their {n}|for each {each}, show the {m} of {n}|find the {m} of {n} by each {each}",
        f"{each}별 {n} {neun(m)} 얼마인가요|{each}별 {reul(m)} 구해줘|각 {each}의 {n} {reul(m)} 알려줘|{each}별 {n}의 {m}|{each}마다 {n} {reul(m)} 보여줘|{each}별 {m}",
    )
    return (
        q,
        f"SELECT {p.p(label.ident)}, {function}({p.c(number.ident)}) FROM {p.clause}{where} GROUP BY {p.p(label.ident)};",
    )


def rows(p: Pair) -> Asked | None:
    """The ones of such others: all, counted, summed."""
    noun, sql = _of_one(p.parent)
    if not sql:
        return None
    n, many, numbers = p.child.many, p.child.table.thing.counter, p.child.table.of("number")
    link = p.r.choice(("of", "from", "by", "for", "belonging to", "made by" if p.parent.table.thing.person else "of"))
    roll = p.r.random()
    if roll < 0.45:
        q = p.pick(
            f"show all {n} {link} {noun}|list the {n} {link} {noun}|find {n} {link} {noun}|{n} {link} {noun}|get all {n} {link} {noun}|show me the {n} {link} {noun}",
            f"{noun}의 {reul(n)} 보여줘|{noun}의 {n} 목록|{noun}의 {reul(n)} 찾아줘|{noun}의 {reul(n)} 모두 알려줘",
        )
        return q, f"SELECT {p.child.table.ident}.* FROM {p.clause} WHERE {sql};"
    if roll < 0.75 or not numbers:
        do = "place" if p.child.table.thing.one == "order" else "have"
        q = p.pick(
            f"how many {n} {link} {noun} are there|count the {n} {link} {noun}|number of {n} {link} {noun}|how many {n} do {noun} {do}|how many {n} belong to {noun}",
            f"{noun}의 {neun(n)} 몇 {many}인가요|{noun}의 {n} 수를 알려줘|{noun}의 {n} 수는",
        )
        return q, f"SELECT COUNT(*) FROM {p.clause} WHERE {sql};"
    number = p.r.choice(numbers)
    m, _, function = measure(p.child, number)
    q = p.pick(
        f"what is the {m} of {n} {link} {noun}|{m} of {n} {link} {noun}|find the {m} of the {n} {link} {noun}|calculate the {m} of {n} {link} {noun}",
        f"{noun}의 {n} {neun(m)} 얼마인가요|{noun}의 {n} {reul(m)} 구해줘|{noun}의 {n} {m}",
    )
    return q, f"SELECT {function}({p.c(number.ident)}) FROM {p.clause} WHERE {sql};"


def named_home(p: Pair) -> Asked | None:
    """What is in a department, a team, a course that is named."""
    label, own, numbers = _label(p), p.child.label(), p.child.table.of("number")
    if not label:
        return None
    english, ko = (
        value_of(label.attribute, p.r)
        if p.r.random() < 0.4
        else p.r.choice(values(p.r.choice(("departments", "teams", "majors", "categories", "genres"))))
    )
    said = ko if p.korean and p.r.random() < 0.75 else english
    n, o, many = p.child.many, p.parent.one, p.child.table.thing.counter
    condition = f"{p.p(label.ident)} = {quoted(said)}"
    f = p.child.filters(0.15, most=1)
    if f.sql and not f.pre:
        condition += f" AND {qualified(f.sql, p.child.table)}"
        n = f"{f.ko_that} {n}" if p.korean else n
    post = f" {f.post}" if f.sql and not f.pre and not p.korean else ""
    in_ = p.pick(
        f"in the {said} {o}|in {said}|of the {said} {o}|from the {said} {o}|in {o} {said}|belonging to {said}|at {said}|for {said}|on the {said} {o}",
        f"{said} {o}의|{said}의|{said} {o}에 속한|{said}에 있는|{said} {o}|{said} {o}에 있는|{said}에 속한|{o} {said}의",
    )
    t = f"{in_} {n}" if p.korean else f"{n} {in_}{post}"
    roll = p.r.random()
    if roll < 0.28:
        q = p.pick(
            f"how many {t} are there|count the {t}|number of {t}|how many {t}|what is the number of {t}",
            f"{neun(t)} 몇 {many}인가요|{t} 수를 알려줘|{t} 수는|{ga(t)} 몇 {many} 있나요",
        )
        return q, f"SELECT COUNT(*) FROM {p.clause} WHERE {condition};"
    if roll < 0.5 and own:
        what = own.attribute.many
        q = p.pick(
            f"names of the {t}|list the {what} of {t}|who are the {t}|which {t} are there|show the {what} of the {t}|what are the {what} of {t}"
            + (f"|who works {in_}{post}|who is {in_}{post}" if p.child.table.thing.person else ""),
            f"{t}의 {reul(own.attribute.korean[0])} 알려줘|{neun(t)} 누구인가요|{t} {own.attribute.korean[0]} 목록|{t}의 {reul(own.attribute.korean[0])} 보여줘",
        )
        return q, f"SELECT {p.c(own.ident)} FROM {p.clause} WHERE {condition};"
    if roll < 0.72 or not numbers:
        q = p.pick(
            f"show all {t}|list the {t}|find {t}|list all {t}|show the {t}|{t}",
            f"{reul(t)} 보여줘|{t} 목록을 보여줘|{reul(t)} 모두 알려줘|{reul(t)} 찾아줘",
        )
        return q, f"SELECT {p.child.table.ident}.* FROM {p.clause} WHERE {condition};"
    number = p.r.choice(numbers)
    m, _, function = measure(p.child, number)
    q = p.pick(
        f"what is the {m} of {t}|{m} of {t}|what is the {m} {in_}{post}|show the {m} of the {t}",
        f"{t}의 {neun(m)} 얼마인가요|{t}의 {reul(m)} 구해줘|{t}의 {neun(m)}|{t} {m}",
    )
    return q, f"SELECT {function}({p.c(number.ident)}) FROM {p.clause} WHERE {condition};"


def spending(p: Pair) -> Asked | None:
    """What persons spent, gave or got."""
    label = _label(p)
    numbers = [c for c in p.child.table.of("number") if c.attribute.one in _MONEY]
    if not label or not numbers or not p.parent.table.thing.person:
        return None
    number = p.r.choice(numbers)
    o, os = p.parent.one, p.parent.many
    given = p.child.table.thing.one == "donation"
    spend, spent = ("donate", "donated") if given else p.r.choice((("spend", "spent"), ("pay", "paid")))
    total, by_one = f"SUM({p.c(number.ident)})", f"GROUP BY {p.p(label.ident)}"
    ko = "기부" if given else p.r.choice(("지출", "결제", "구매"))
    roll = p.r.random()
    if roll < 0.45:
        q = p.pick(
            f"how much did each {o} {spend}|how much has every {o} {spent} in total|total {spent} by each {o}|what did each {o} {spend} in total|show each {o} and how much they {spent}|how much money did each {o} {spend} altogether",
            f"{o}별 총 {ko} 금액은 얼마인가요|각 {ga(o)} 쓴 돈은 얼마인가요|{o}별로 얼마를 썼는지 보여줘|{o}별 {ko}액 합계를 알려줘|각 {ga(o)} 총 얼마를 {ko}했나요",
        )
        return q, f"SELECT {p.p(label.ident)}, {total} FROM {p.clause} {by_one};"
    if roll < 0.75:
        many = p.r.random() < 0.8
        q = p.pick(
            f"who {spent} the {'most' if many else 'least'}|which {o} {spent} the {'most' if many else 'least'}|who {spent} the {'most' if many else 'least'} money|which {o} has {spent} the {'most' if many else 'least'} in total|find the {o} who {spent} the {'most' if many else 'least'}",
            f"가장 {'많이' if many else '적게'} {ko}한 {neun(o)} 누구인가요|돈을 제일 {'많이' if many else '적게'} 쓴 {neun(o)}|가장 {'많은' if many else '적은'} 금액을 {ko}한 {neun(o)}|가장 {'많이' if many else '적게'} 쓴 {neun(o)} 누구야",
        )
        return (
            q,
            f"SELECT {p.p(label.ident)} FROM {p.clause} {by_one} ORDER BY {total}{' DESC' if many else ''} LIMIT 1;",
        )
    english, korean = value_of(label.attribute, p.r)
    said = korean if p.korean else english
    q = p.pick(
        f"how much did {said} {spend}|how much has {said} {spent} in total|what did {said} {spend} altogether|total {spent} by {said}|how much money did {said} {spend}",
        f"{ga(said)} 쓴 돈은 얼마인가요|{said}의 총 {ko} 금액은|{ga(said)} 총 얼마를 {ko}했나요|{neun(said)} 얼마를 썼나요",
    )
    del os
    return q, f"SELECT {total} FROM {p.clause} WHERE {p.p(label.ident)} = {quoted(said)};"


_MONEY = ("price", "cost", "amount", "total amount", "fee", "tax", "revenue")


def pairs(p: Pair) -> Asked | None:
    """The names of both."""
    label, own = _label(p), p.child.label()
    if not label or not own:
        return None
    n, o = p.child.many, p.parent.one
    one = p.child.table.thing.one
    q = p.pick(
        f"list all {n} and their {p.parent.table.thing.many}|show each {one} with its {o}|list {n} with their {o}|show all {n} together with the {o} they belong to|which {o} does each {one} belong to|show the name of each {one} and its {o}|list every {one} along with its {o}|{n} and their {o}",
        f"모든 {n} 및 {reul(o)} 보여줘|각 {n}의 {reul(o)} 보여줘|{n} 이름과 {o} 이름을 보여줘|각 {n} 이름과 해당 {reul(o)} 보여줘|{n}별 {o} 이름을 알려줘|각 {ga(n)} 속한 {reul(o)} 알려줘",
    )
    return q, f"SELECT {p.c(own.ident)}, {p.p(label.ident)} FROM {p.clause};"


def through(r: random.Random, schema: Schema, korean: bool) -> Asked | None:
    """Two things that a third table ties together."""
    ties = [(t, [c for c in t.of("key") if c.parent and c.parent.ident]) for t in schema.tables]
    ties = [(t, keys) for t, keys in ties if len(keys) > 1]
    if not ties:
        return None
    tie, keys = r.choice(ties)
    first, second = r.sample(keys, 2)
    a, b = Pair(r, schema, tie, first, korean), Pair(r, schema, tie, second, korean)
    mine, other = a.parent.label(), b.parent.label()
    if not mine or not other:
        return None
    english, ko = value_of(other.attribute, r)
    said = ko if korean and r.random() < 0.75 else english
    clause = (
        f"{a.clause} JOIN {b.parent.table.ident} ON {b.parent.table.ident}.{b.parent.table.key} = {b.c(second.ident)}"
    )
    ns, o, counter = a.parent.many, b.parent.one, a.parent.table.thing.counter
    condition = f"WHERE {b.p(other.ident)} = {quoted(said)}"
    names = mine.attribute.many
    if r.random() < 0.6:
        q = a.pick(
            f"which {ns} have the {o} {said}|names of {ns} with the {o} {said}|list the {names} of {ns} in {said}|which {ns} are in the {o} {said}|show {ns} with {o} {said}|find the {names} of {ns} for the {o} {said}|who are the {ns} of {o} {said}|which {ns} take {said}|which {ns} are enrolled in {said}",
            f"{o} {said}의 {neun(ns)} 누구인가요|{said} {reul(o)} 가진 {ns}의 이름을 알려줘|{said} {o}의 {ns} 이름|{reul(said)} 수강하는 {neun(ns)} 누구인가요|{said} {o}에 속한 {ns}의 이름을 보여줘",
        )
        return q, f"SELECT {a.p(mine.ident)} FROM {clause} {condition};"
    q = a.pick(
        f"how many {ns} have the {o} {said}|number of {ns} in {said}|count the {ns} with the {o} {said}|how many {ns} are enrolled in {said}|how many {ns} are in the {o} {said}",
        f"{o} {said}의 {neun(ns)} 몇 {counter}인가요|{said} {o}의 {ns} 수를 알려줘|{reul(said)} 수강하는 {neun(ns)} 몇 {counter}인가요",
    )
    return q, f"SELECT COUNT(*) FROM {clause} {condition};"


def one_name(p: Pair) -> Asked | None:
    """What belongs to one that is named."""
    label, numbers = _label(p), p.child.table.of("number")
    if not label:
        return None
    english, ko = value_of(label.attribute, p.r)
    said = ko if p.korean and p.r.random() < 0.8 else english
    n, o, many = p.child.many, p.parent.one, p.child.table.thing.counter
    where = f"WHERE {p.p(label.ident)} = {quoted(said)}"
    roll = p.r.random()
    who = (
        p.r.choice((said, said, f"{o} {said}", f"the {o} {said}"))
        if not p.korean
        else p.r.choice((said, f"{o} {said}", f"{said} {o}"))
    )
    if roll < 0.4:
        q = p.pick(
            f"how many {n} does {who} have|how many {n} did {who} make|number of {n} of {who}|count the {n} of {who}|count {who}'s {n}",
            f"{who}의 {neun(n)} 몇 {many}인가요|{who}의 {n} 수를 알려줘|{ga(who)} 한 {neun(n)} 몇 {many}인가요",
        )
        return q, f"SELECT COUNT(*) FROM {p.clause} {where};"
    if roll < 0.7 or not numbers:
        q = p.pick(
            f"show all {n} of {who}|list {n} by {who}|find the {n} of {who}|show {who}'s {n}|which {n} belong to {who}|list all {n} for {who}",
            f"{who}의 {reul(n)} 보여줘|{who}의 {n} 목록|{who}의 {reul(n)} 모두 알려줘",
        )
        return q, f"SELECT {p.child.table.ident}.* FROM {p.clause} {where};"
    number = p.r.choice(numbers)
    m, _, function = measure(p.child, number)
    q = p.pick(
        f"what is the {m} of {who}'s {n}|what is the {m} of {n} of {who}|{m} of {n} by {who}",
        f"{who}의 {n} {neun(m)} 얼마인가요|{who}의 {n} {reul(m)} 알려줘|{who}의 {neun(m)} 얼마인가요",
    )
    return q, f"SELECT {function}({p.c(number.ident)}) FROM {p.clause} {where};"


def owners(p: Pair) -> Asked | None:
    """Those that have such ones."""
    label = _label(p)
    noun, sql = _of_one(p.child)
    if not label or not sql:
        return None
    os = p.parent.many
    names = label.attribute.many
    q = p.pick(
        f"which {os} have {noun}|find {os} with {noun}|names of {os} that have {noun}|show the {names} of {os} who have {noun}|list {os} that have {noun}|which {os} have any {noun}",
        f"{ga(noun)} 있는 {neun(os)} 누구인가요|{reul(noun)} 가진 {os}의 이름을 알려줘|{ga(noun)} 있는 {reul(os)} 보여줘|{ga(noun)} 있는 {os} 이름",
    )
    return q, f"SELECT DISTINCT {p.p(label.ident)} FROM {p.clause} WHERE {sql};"


def without(p: Pair) -> Asked | None:
    """Those that have none."""
    label, n, os = _label(p), p.child.many, p.parent.many
    one = p.child.table.thing.one
    what = p.p(label.ident) if label else f"{p.parent.table.ident}.*"
    q = p.pick(
        f"which {os} have no {n}|find {os} without any {n}|list {os} that have never had {'an' if one[0] in 'aeiou' else 'a'} {one}|show {os} without {n}|which {os} do not have any {n}|{os} with no {n}|which {os} have never made {'an' if one[0] in 'aeiou' else 'a'} {one}|{os} who don't have {n}|names of {os} with no {n}",
        f"{ga(n)} 없는 {neun(os)} 누구인가요|{ga(n)} 없는 {reul(os)} 찾아줘|{ga(n)} 없는 {reul(os)} 보여줘|{n}한 적이 없는 {neun(os)} 누구인가요|{ga(n)} 하나도 없는 {neun(os)}|{ga(n)} 전혀 없는 {os} 목록",
    )
    return q, f"SELECT {what} FROM {p.clause.replace(' JOIN ', ' LEFT JOIN ', 1)} WHERE {p.c(p.key.ident)} IS NULL;"


def best(p: Pair) -> Asked | None:
    """The one with the most."""
    label, numbers = _label(p), p.child.table.of("number")
    if not label:
        return None
    n, o, os = p.child.many, p.parent.one, p.parent.many
    most = p.r.random() < 0.8
    k = p.r.choice((1, 1, 1, 2, 3, 5))
    number = "" if k == 1 else f"{k} "
    ko_k = "" if k == 1 else f" {k}{p.parent.table.thing.counter}"
    asked = o if k == 1 else os
    who = "누구" if p.parent.table.thing.person else "무엇"
    if numbers and p.r.random() < 0.5:
        c = p.r.choice(numbers)
        name = p.child.name(c)
        m = p.pick(f"total {name}|total {name} of {n}", f"총 {name}|{n} {name} 합계|총 {n} {name}")
        word = p.pick(
            "highest|largest|biggest|greatest" if most else "lowest|smallest",
            "가장 높은|가장 큰|가장 많은" if most else "가장 낮은|가장 작은|가장 적은",
        )
        measure_ = f"SUM({p.c(c.ident)})"
    else:
        m, measure_ = n, "COUNT(*)"
        word = p.pick(
            "most|largest number of|highest number of" if most else "fewest|least",
            "가장 많은|제일 많은" if most else "가장 적은|제일 적은",
        )
    q = p.pick(
        f"which {number}{asked} has the {word} {m}|which {number}{asked} have the {word} {m}|find the {number}{asked} with the {word} {m}|who has the {word} {m}|{number}{asked} with the {word} {m}|what {asked} has the {word} {m}"
        if k == 1
        else f"which {number}{asked} have the {word} {m}|find the {number}{asked} with the {word} {m}|top {number}{os} with the {word} {m}|show the {number}{asked} with the {word} {m}",
        f"{ga(m)} {word} {neun(o + ko_k)} {who}인가요|{ga(m)} {word} {neun(o + ko_k)}|{ga(m)} {word} {o}{ko_k}의 이름을 알려줘|{ga(m)} {word} {reul(o + ko_k)} 찾아줘",
    )
    return (
        q,
        f"SELECT {p.p(label.ident)} FROM {p.clause} GROUP BY {p.p(label.ident)} ORDER BY {measure_}{' DESC' if most else ''} LIMIT {k};",
    )


def side_by_side(p: Pair) -> Asked | None:
    """A column of each."""
    label, pool = _label(p), [c for c in p.child.table.columns if c.attribute.kind not in ("key", "flag")]
    if not label or not pool:
        return None
    c = p.r.choice(pool)
    name, other, n, o = p.child.name(c), p.parent.name(label), p.child.many, p.parent.one
    f = p.child.filters(0.25, most=1)
    where = f" WHERE {qualified(f.sql, p.child.table)}" if f.sql else ""
    n = f.around(n, p.korean)
    q = p.pick(
        f"show the {name} of {n} and the {other} of their {o}|list the {name} of {n} together with the {o} {other}|show {n} {name} with the {o} {other}|for the {n}, show the {name} and the {o} {other}|list {name} and {o} {other} for {n}"
        if not f.sql
        else f"list the {name} and the {o} {other} of {n}|show {name} and {o} {other} for {n}",
        f"{n}의 {name}{'과' if False else ''}, {o} {reul(other)} 보여줘|{n} {name} 및 {o} {reul(other)} 알려줘|각 {n}의 {name} 그리고 {o}의 {reul(other)} 보여줘",
    )
    return q, f"SELECT {p.c(c.ident)}, {p.p(label.ident)} FROM {p.clause}{where};"


def having(p: Pair) -> Asked | None:
    """Those with more than so many."""
    label = _label(p)
    if not label:
        return None
    n, os, k, many = p.child.many, p.parent.many, p.r.randint(1, 30), p.child.table.thing.counter
    e, ko, op = p.r.choice(
        (
            (f"more than {k}", f"{k}{many}보다 많은", ">"),
            (f"at least {k}", f"{k}{many} 이상인", ">="),
            (f"fewer than {k}", f"{k}{many} 미만인", "<"),
            (f"over {k}", f"{k}{many} 넘는", ">"),
            (f"{k} or more", f"{k}{many} 이상인", ">="),
            (f"less than {k}", f"{k}{many}보다 적은", "<"),
        )
    )
    q = p.pick(
        f"which {os} have {e} {n}|list {os} with {e} {n}|find {os} having {e} {n}|{os} with {e} {n}|show the {os} that have {e} {n}",
        f"{ga(n)} {ko} {neun(os)} 누구인가요|{ga(n)} {ko} {reul(os)} 찾아줘|{ga(n)} {ko} {neun(os)}|{n} 수가 {ko} {reul(os)} 보여줘",
    )
    return q, f"SELECT {p.p(label.ident)} FROM {p.clause} GROUP BY {p.p(label.ident)} HAVING COUNT(*) {op} {k};"


JOINED: tuple[tuple[Callable[[Pair], Asked | None], float], ...] = (
    (counts, 1.2),
    (measures, 1.6),
    (rows, 1.8),
    (one_name, 1.2),
    (owners, 0.9),
    (without, 1.0),
    (best, 1.2),
    (side_by_side, 0.8),
    (having, 0.7),
    (named_home, 1.5),
    (spending, 0.8),
    (pairs, 0.5),
)
