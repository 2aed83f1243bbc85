"""Conditions on a table's rows: how English and Korean say them, and the SQL for each."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from sql_korean import ga, neun, reul, ro
from sql_schemas import Column, Table, made_word, value_of


@dataclass(slots=True)
class Filter:
    """A condition: English before the noun and behind it, Korean before the noun and when more follows, and its SQL.

    `relative` is the English behind "which customers"; `bare` says that nothing is said at all.
    """

    pre: str = ""
    post: str = ""
    relative: str = ""
    verbal: bool = False
    ko_that: str = ""
    ko_and: str = ""
    sql: str = ""

    @property
    def bare(self) -> bool:
        return not self.sql

    def around(self, noun: str, korean: bool) -> str:
        """The noun with the condition."""
        parts = (self.ko_that, noun) if korean else (self.pre, noun, self.post)
        return " ".join(part for part in parts if part)


def say(r: random.Random, column: Column, korean: bool, *, plural: bool = False) -> str:
    """A column as people call it; now and then as it is written."""
    a = column.attribute
    if r.random() < 0.07:
        return column.ident
    if r.random() < 0.05:
        return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", column.ident).replace("_", " ").lower()
    if a.kind == "key" and column.parent is not None:
        thing = column.parent.thing
        if korean:
            return r.choice(thing.korean)
        return thing.many if plural else r.choice((thing.one, thing.one, thing.one + " id"))
    if korean:
        return r.choice(a.korean) if a.korean else a.one
    if a.kind == "flag":
        return a.one
    if r.random() < 0.2:
        spelt = r.choice(a.idents).replace("_", " ")
        if a.kind in ("group", "number") and not plural and not spelt.startswith("is "):
            return spelt
    return a.many if plural else a.one


def joined(r: random.Random, table: Table, korean: bool, number: int) -> Filter:
    """One condition, or two with `and` between."""
    first = a_filter(r, table, korean)
    if first is None:
        return Filter()
    if number == 1:
        return first
    second = a_filter(r, table, korean)
    if second is None or second.sql.split(" ")[0] == first.sql.split(" ")[0] or (second.pre and first.pre):
        return first
    if r.random() < 0.12 and not first.pre and not second.pre and first.ko_that:
        ko = f"{first.ko_that[:-1]}거나 {second.ko_that}" if first.ko_that.endswith("인") else ""
        if not korean or ko:
            return Filter(
                "",
                f"{first.post} or {second.post}",
                f"{first.relative} or {second.relative}",
                False,
                ko,
                "",
                f"({first.sql} OR {second.sql})",
            )
    if first.pre or second.pre:
        both = " ".join(part for part in (first.post, second.post) if part)
        relative = ""
    else:
        both, relative = (
            f"{first.post} and {second.post}",
            f"{first.relative} and {second.relative}" if first.relative and second.relative else "",
        )
    ko = f"{first.ko_and} {second.ko_that}"
    return Filter(first.pre + second.pre, both, relative, False, ko, "", f"{first.sql} AND {second.sql}")


def a_filter(r: random.Random, table: Table, korean: bool) -> Filter | None:
    """A condition on one of the table's columns; None where it has none to ask about."""
    pool = [c for c in table.columns if c.attribute.kind in _MAKERS]
    weights = [_WEIGHTS[c.attribute.kind] for c in pool]
    if table.key and (not pool or r.random() < 0.03):
        return _by_key(r, table, korean)
    if not pool:
        return None
    column = r.choices(pool, weights)[0]
    return _MAKERS[column.attribute.kind](r, column, table, korean)


def _by_key(r: random.Random, table: Table, korean: bool) -> Filter:
    n = r.randint(1, 999)
    post = r.choice((f"with id {n}", f"number {n}", f"with the id {n}", f"whose id is {n}", f"#{n}"))
    return Filter(
        "",
        post,
        "",
        False,
        r.choice((f"{table.key}가 {n}인", f"{n}번", f"id가 {n}인", f"번호가 {n}인")),
        f"번호가 {n}이고",
        f"{table.key} = {n}",
    )


def _key(r: random.Random, c: Column, table: Table, korean: bool) -> Filter:
    n = r.randint(1, 999)
    assert c.parent is not None
    one, ko = c.parent.thing.one, r.choice(c.parent.thing.korean)
    post = r.choice(
        (
            f"of {one} {n}",
            f"for {one} {n}",
            f"with {one} id {n}",
            f"whose {one} id is {n}",
            f"belonging to {one} {n}",
            f"by {one} {n}",
            f"from {one} {n}",
            f"of {one} number {n}",
        )
    )
    name = say(r, c, korean)
    ko_that = r.choice((f"{n}번 {ko}의", f"{ko} {n}번의", f"{ko} 번호가 {n}인", f"{c.ident}가 {n}인"))
    return Filter(
        "",
        post,
        f"{'belong to' if name else 'have'} {one} {n}",
        False,
        ko_that,
        f"{ko} 번호가 {n}이고",
        f"{c.ident} = {n}",
    )


def quoted(value: str) -> str:
    """As SQL writes a text."""
    return "'" + value.replace("'", "''") + "'"


def value_for(r: random.Random, c: Column, table: Table, korean: bool) -> tuple[str, str]:
    """A value as the question says it and as the table has it; one of the rows that the schema shows, where it shows any."""
    rows = [row for row in table.rows if c.ident in row]
    if rows and r.random() < 0.6:
        english, ko = r.choice(rows)[c.ident]
        said = ko if korean and r.random() < 0.6 else english
        if not korean and r.random() < 0.3:
            said = said.lower()
        if not korean and english == "USA":
            said = r.choice(("USA", "US", "United States", "the US"))
        return said, english
    english, ko = value_of(c.attribute, r)
    said = ko if korean and r.random() < 0.8 else english
    if not korean and r.random() < 0.06 and said.isascii():
        said = made_word(r).capitalize()
    return said, said.removeprefix("the ")


def _group(r: random.Random, c: Column, table: Table, korean: bool) -> Filter:
    a, name = c.attribute, say(r, c, korean)
    said, stored = value_for(r, c, table, korean)
    sql = f"{c.ident} = {quoted(stored)}"
    roll = r.random()
    if roll < 0.1:
        other, kept = value_for(r, c, table, korean)
        if kept != stored:
            plural = a.many if not korean else name
            post = r.choice(
                (f"from {said} or {other}", f"in {said} or {other}")
                if a.values in ("cities", "countries", "regions", "departments")
                else (f"with {name} {said} or {other}",)
            )
            post = r.choice(
                (
                    post,
                    f"whose {name} is {said} or {other}",
                    f"whose {name} is either {said} or {other}",
                    f"with {plural} {said} and {other}" if False else post,
                )
            )
            ko = r.choice(
                (
                    f"{ga(name)} {said} 또는 {other}인",
                    f"{ga(name)} {said}이거나 {other}인",
                    f"{said}나 {other}의",
                    f"{name} {said} 또는 {other}인",
                )
            )
            return Filter(
                "",
                post,
                f"are {post}",
                False,
                ko,
                ko[:-1] + "고" if ko.endswith("인") else f"{said} 또는 {other}이고",
                f"{c.ident} IN ({quoted(stored)}, {quoted(kept)})",
            )
    if roll < 0.2:
        post = r.choice(
            (
                f"whose {name} is not {said}",
                f"with a {name} other than {said}",
                f"not from {said}" if a.values in ("cities", "countries") else f"where the {name} is not {said}",
                f"that are not {said}",
                f"except {said}",
                f"outside {said}" if a.values in ("cities", "countries", "regions") else f"with {name} not {said}",
            )
        )
        ko = r.choice(
            (f"{ga(name)} {ga(said)} 아닌", f"{reul(said)} 제외한", f"{ga(name)} {ga(said)} 아닌", f"{said} 외의")
        )
        return Filter(
            "",
            post,
            f"are {post}" if not post.startswith("that") else post[5:],
            False,
            ko,
            f"{ga(name)} {ga(said)} 아니고",
            f"{c.ident} <> {quoted(stored)}",
        )
    posts = [
        f"with {name} {said}",
        f"whose {name} is {said}",
        f"with the {name} {said}",
        f"where the {name} is {said}",
        f"whose {name} is '{said}'",
        f"where {name} = '{said}'",
        f"of {name} {said}",
        f"with {name} '{said}'",
        f"that have {name} {said}",
        f"having {name} {said}",
    ]
    kos = [
        f"{ga(name)} {said}인",
        f"{ga(name)} '{said}'인",
        f"{name} {said}인",
        f"{said} {name}의",
        f"{name} {said}의",
        f"{neun(name)} {said}인",
        f"{ga(name)} {said}인",
        f"{name}: {said}인",
    ]
    relatives = [f"have {name} {said}", f"have the {name} {said}"]
    pre = ""
    if a.values in ("cities", "countries", "regions"):
        posts += [
            f"from {said}",
            f"in {said}",
            f"from {said}",
            f"in {said}",
            f"living in {said}",
            f"located in {said}",
            f"based in {said}",
            f"that are in {said}",
            f"who live in {said}",
        ] * 1
        relatives += [
            f"are from {said}",
            f"live in {said}",
            f"are in {said}",
            f"come from {said}",
            f"are located in {said}",
            f"are based in {said}",
        ] * 2
        kos += [
            f"{said}에 사는",
            f"{said}에 있는",
            f"{said}의",
            said,
            f"{said} 출신",
            f"{said}에 거주하는",
            f"{said}에서 온",
            f"{said}에 위치한",
            f"{said} 지역",
        ] * 1
    elif a.values in ("departments", "teams"):
        posts += [
            f"in {said}",
            f"in the {said} {name}",
            f"from the {said} {name}",
            f"working in {said}",
            f"of the {said} {name}",
            f"in the {said} department" if a.values == "departments" else f"on the {said}",
        ] * 2
        relatives += [f"work in {said}", f"are in {said}", f"are in the {said} {name}", f"belong to {said}"] * 2
        kos += [
            f"{said} {name}의",
            f"{said}팀" if a.values == "departments" else f"{said} 소속",
            f"{said}부" if a.values == "departments" else f"{said}의",
            f"{said}에 속한",
            f"{said}에서 일하는",
            f"{said} {name}에 속한",
            f"{said} {name}",
        ] * 1
    elif a.values == "people":
        posts += [
            f"by {said}",
            f"of {said}",
            f"{'directed' if a.one == 'director' else 'written' if a.one == 'author' else 'managed' if a.one == 'manager' else 'owned'} by {said}",
            f"from {said}",
        ] * 2
        relatives += [f"are by {said}", f"belong to {said}"]
        kos += [
            f"{said}의",
            f"{said} {name}의",
            f"{said} {name}",
            f"{ga(said)} {'감독한' if a.one == 'director' else '쓴' if a.one == 'author' else '담당하는' if a.one == 'manager' else '소유한'}",
        ] * 2
    elif a.values == "diseases":
        posts += [f"with {said}", f"diagnosed with {said}", f"who have {said}"] * 2
        kos += [f"{ro(said)} 진단받은", f"{said}에 걸린"] * 2
    else:
        if r.random() < 0.45 and said[0] != "'":
            pre = said
        posts += [
            f"that are {said}",
            f"in the {said} {name}",
            f"in {said}",
            f"made of {said}" if a.values == "materials" else f"of {said}",
            f"marked {said}"
            if a.values in ("statuses", "priorities")
            else f"of type {said}"
            if a.one == "type"
            else f"in {name} {said}",
            f"paid by {said}" if a.values == "methods" else f"with {name} equal to {said}",
            f"that are still {said}" if a.values == "statuses" else f"labeled {said}",
        ]
        relatives += [f"are {said}", f"are {said}", f"are in {said}"]
        kos += [
            said,
            f"{said} 상태인" if a.values == "statuses" else f"{said}의",
            f"{said} {name}",
            f"{said}인",
            f"{said} {name}에 속한",
            f"{ro(said)} 결제된" if a.values == "methods" else f"{ro(said)} 된",
        ]
    if pre:
        return Filter(pre, "", "", False, r.choice(kos), f"{ga(name)} {said}이고", sql)
    relative = r.choice(relatives)
    return Filter("", r.choice(posts), relative, True, r.choice(kos), f"{ga(name)} {said}이고", sql)


_MORE = (
    ">",
    "above|over|greater than|more than|higher than|exceeding|larger than|bigger than",
    "{g} {n}보다 큰|{g} {n}보다 높은|{r} 넘는|{g} {n} 초과인|{g} {n}보다 많은|{g} {n}을 초과하는|{g} {n} 넘는",
)
_LEAST = (
    ">=",
    "of at least|at least|greater than or equal to|no less than|of {n} or more|not below|not less than|of minimum",
    "{g} {n} 이상인|{g} {n} 이상인|{g} 최소 {n}인|{name} {n} 이상인|{name} {n} 이상의",
)
_LESS = (
    "<",
    "below|under|less than|lower than|smaller than|fewer than",
    "{g} {n}보다 작은|{g} {n}보다 낮은|{g} {n} 미만인|{g} {n}보다 적은|{name} {n} 미만의|{g} {n}에 못 미치는|{name} {n} 미만인",
)
_MOST = (
    "<=",
    "of at most|at most|less than or equal to|no more than|of {n} or less|up to|not above|not more than",
    "{g} {n} 이하인|{g} {n} 이하인|{name} {n} 이하의|{g} 최대 {n}인|{name} {n} 이하인",
)
_SAME = ("=", "of|equal to|of exactly|exactly", "{g} {n}인|{g} 정확히 {n}인|{g} {n}인|{name} {n}인")


def amount(r: random.Random, c: Column, korean: bool) -> tuple[str, str]:
    """A number as the question writes it, and its digits."""
    a = c.attribute
    n = r.randint(a.low, a.high)
    if n > 20 and r.random() < 0.7:
        n = max(1, round(n, -len(str(n)) + 1))
    if a.high <= 5 and r.random() < 0.4:
        return f"{min(n, 4)}.5", f"{min(n, 4)}.5"
    if korean and n >= 100 and r.random() < 0.12:
        k = r.randint(1, 90)
        return f"{k}만", f"{k}0000"
    if korean and r.random() < 0.04 and n >= 10:
        k = r.randint(1, 9)
        return f"{k}천", f"{k}000"
    if n >= 100 and r.random() < 0.15:
        n *= 1000
    if n >= 1000 and r.random() < 0.3:
        return f"{n:,}", str(n)
    return str(n), str(n)


def _number(r: random.Random, c: Column, table: Table, korean: bool) -> Filter:
    a, name = c.attribute, say(r, c, korean)
    if a.one == "year":
        return _release_year(r, c, name)
    n, digits = amount(r, c, korean)
    units = a.words.get("units", ())
    unit = f" {r.choice(units)}" if units and r.random() < 0.45 else ""
    ko_units = a.words.get("ko_units", ())
    ko_unit = r.choice(ko_units) if ko_units and r.random() < 0.55 else ""
    kn = n + ko_unit
    if r.random() < 0.1:
        m, more = amount(r, c, korean)
        if float(more) < float(digits):
            (n, digits), (m, more) = (m, more), (n, digits)
            kn = n + ko_unit
        post = r.choice(
            (
                f"with {_an(name)} between {n} and {m}{unit}",
                f"whose {name} is between {n} and {m}{unit}",
                f"with {name} from {n} to {m}{unit}",
                f"between {n} and {m}{unit}" if unit else f"where {name} is between {n} and {m}",
            )
        )
        ko = r.choice(
            (
                f"{ga(name)} {n}에서 {m}{ko_unit} 사이인",
                f"{ga(name)} {kn} 이상 {m}{ko_unit} 이하인",
                f"{ga(name)} {n}~{m}{ko_unit}인",
                f"{name} {kn}에서 {m}{ko_unit} 사이의",
            )
        )
        return Filter(
            "",
            post,
            f"have {_an(name)} between {n} and {m}{unit}",
            True,
            ko,
            f"{ga(name)} {n}에서 {m} 사이이고",
            f"{c.ident} BETWEEN {digits} AND {more}",
        )
    kind = r.choices((_MORE, _LEAST, _LESS, _MOST, _SAME), (4, 2, 3, 1.5, 1.2))[0]
    op, words, ko_words = kind
    word = r.choice(words.split("|"))
    said = word.format(n=n) + unit if "{n}" in word else f"{word} {n}{unit}"
    plain = said.removeprefix("of ")
    posts = [
        f"with {_an(name)} {said}",
        f"with {name} {said}",
        f"whose {name} is {plain}",
        f"that have {_an(name)} {said}",
        f"having {_an(name)} {said}",
        f"where the {name} is {plain}",
        f"where {name} {op} {digits}",
        f"with {name} {plain}",
    ]
    relatives = [f"have {_an(name)} {said}", f"have {name} {plain}", f"have {_an(name)} {said}"]
    form = r.choice(ko_words.split("|"))
    ko = form.format(g=ga(name), n=kn, r=f"{ga(name)} {reul(kn)}", name=name)
    if a.one == "stock" and r.random() < 0.1:
        return Filter(
            "",
            r.choice(("that are out of stock", "out of stock", "that are sold out", "with no stock")),
            "are out of stock",
            False,
            r.choice(("품절된", "재고가 없는", "품절인")),
            "재고가 없고",
            f"{c.ident} = 0",
        )
    own = a.words.get("more" if op == ">" else "less", ()) if op in "<>" else ()
    if own:
        mine = r.choice(own)
        posts += [f"{mine} {n}{unit}", f"that are {mine} {n}{unit}"] * 3
        relatives += (
            [f"are {mine} {n}{unit}"] * 3
            if mine.split()[0].endswith(("er", "re", "ed")) or mine.startswith(("more", "less", "worth"))
            else []
        )
    if op in "<>" and r.random() < 0.3 and units:
        comparison = "more than" if op == ">" else "less than"
        posts += [
            f"{comparison.replace('less', 'fewer') if units[0] in ('units', 'pages', 'points') else comparison} {n} {r.choice(units)}"
            + ("" if a.one in ("age", "price") else f" of {name}")
        ]
        posts += [f"{'over' if op == '>' else 'under'} {n}{unit}"] * 2
    if op in ("<=", ">=", "=") and a.one == "age":
        posts += (
            [f"aged {n} {'or older' if op == '>=' else 'or younger'}"]
            if op != "="
            else [f"aged {n}", f"who are {n} years old"]
        )
    if op in ("<", ">") and a.one in ("price", "cost", "fee"):
        verb = "cost more than" if op == ">" else "cost less than"
        posts += [f"that {verb} {n}{unit}", f"priced {'above' if op == '>' else 'below'} {n}{unit}"] * 2
        relatives += [f"{verb} {n}{unit}"] * 3
    if op in (">=", "<=") and r.random() < 0.3:
        tail = "or more" if op == ">=" else "or less"
        posts += [
            f"with {_an(name)} of {n}{unit} {tail}",
            f"with {n}{unit} {tail} {name}" if not unit else f"whose {name} is {n}{unit} {tail}",
        ] * 2
    own_ko = a.words.get("ko_more" if op == ">" else "ko_less", ()) if op in "<>" else ()
    if own_ko and r.random() < 0.45:
        ko = r.choice((f"{kn}보다 {r.choice(own_ko)}", f"{ga(name)} {kn}보다 {r.choice(own_ko)}"))
    elif ko_unit and r.random() < 0.2:
        ko = f"{kn} " + {">": "초과인", ">=": "이상인", "<": "미만인", "<=": "이하인", "=": "짜리"}[op]
    tail = {
        ">": f"{kn}보다 크고",
        ">=": f"{kn} 이상이고",
        "<": f"{kn} 미만이고",
        "<=": f"{kn} 이하이고",
        "=": f"{kn}이고",
    }[op]
    return Filter("", r.choice(posts), r.choice(relatives), True, ko, f"{ga(name)} {tail}", f"{c.ident} {op} {digits}")


def _an(name: str) -> str:
    return (
        name
        if name.endswith("s") and not name.endswith("ss")
        else ("an " if name[:1].lower() in "aeiou" else "a ") + name
    )


def _release_year(r: random.Random, c: Column, name: str) -> Filter:
    y = r.randint(1960, 2025)
    op = r.choice(("=", "=", ">", "<", ">=", "<="))
    post = r.choice(
        {
            "=": (
                f"from {y}",
                f"released in {y}",
                f"of {y}",
                f"from the year {y}",
                f"made in {y}",
                f"whose {name} is {y}",
            ),
            ">": (f"released after {y}", f"newer than {y}", f"made after {y}", f"with a {name} after {y}"),
            "<": (f"released before {y}", f"older than {y}", f"from before {y}", f"made before {y}"),
            ">=": (f"released since {y}", f"from {y} or later", f"made in {y} or later"),
            "<=": (f"from {y} or earlier", f"released in {y} or earlier"),
        }[op]
    )
    ko = r.choice(
        {
            "=": (f"{y}년", f"{y}년에 나온", f"{ga(name)} {y}인", f"{ga(name)} {y}년인"),
            ">": (f"{y}년보다 늦게 나온", f"{y}년 후에 나온", f"{ga(name)} {y}보다 큰"),
            "<": (f"{y}년 이전에 나온", f"{y}년 전에 나온", f"{ga(name)} {y}보다 작은", f"{y}년보다 오래된"),
            ">=": (f"{y}년 이후에 나온", f"{ga(name)} {y}년 이후인", f"{y}년부터 나온", f"{ga(name)} {y} 이상인"),
            "<=": (f"{ga(name)} {y} 이하인", f"{y}년까지 나온"),
        }[op]
    )
    return Filter(
        "",
        post,
        f"are {post}",
        False,
        ko,
        f"{ga(name)} {y} 이후이고"
        if op == ">="
        else f"{ga(name)} {y}이고"
        if op == "="
        else f"{ga(name)} {y}{ {'>': '보다 크고', '<': '보다 작고', '<=': ' 이하이고'}[op] }",
        f"{c.ident} {op} {y}",
    )


_MONTHS = "January February March April May June July August September October November December".split()


def _date(r: random.Random, c: Column, table: Table, korean: bool) -> Filter:
    a, name = c.attribute, say(r, c, korean)
    verbs = a.words.get("verbs", ())
    verb = r.choice(verbs) if verbs and r.random() < 0.75 else ""
    ko_verb = r.choice(a.words.get("ko_verbs") or ("",)) if r.random() < 0.7 else ""
    y, m, d = r.randint(2000, 2026), r.randint(1, 12), r.randint(1, 28)
    day = f"{y}-{m:02}-{d:02}"
    english: tuple[str, ...]
    roll = r.random()
    if roll < 0.36:
        sql, english, ko = (
            f"strftime('%Y', {c.ident}) = '{y}'",
            (f"in {y}", f"in {y}", f"during {y}", f"in the year {y}"),
            f"{y}년에",
        )
        ko_is = f"{y}년인"
    elif roll < 0.5:
        sql, ko, ko_is = f"strftime('%Y-%m', {c.ident}) = '{y}-{m:02}'", f"{y}년 {m}월에", f"{y}년 {m}월인"
        english = (
            f"in {_MONTHS[m - 1]} {y}",
            f"in {_MONTHS[m - 1]} {y}",
            f"during {_MONTHS[m - 1]} {y}",
            f"in {y}-{m:02}",
        )
    elif roll < 0.68:
        op, words, ko, ko_is = r.choice(
            (
                (">", ("after",), f"{y}년 후에", f"{y}년보다 늦은"),
                ("<", ("before", "prior to"), f"{y}년 이전에", f"{y}년 이전인"),
                ("<", ("before", "earlier than"), f"{y}년 전에", f"{y}년 전인"),
                (">=", ("since", "from", "starting in"), f"{y}년 이후에", f"{y}년 이후인"),
                (">=", ("since",), f"{y}년부터", f"{y}년 이후인"),
            )
        )
        sql, english = f"strftime('%Y', {c.ident}) {op} '{y}'", tuple(f"{word} {y}" for word in words)
    elif roll < 0.86:
        op, words, end = r.choice(
            (
                (">", ("after", "later than"), "보다 늦은"),
                ("<", ("before", "prior to", "earlier than"), " 이전"),
                ("=", ("on", "on"), ""),
                (">=", ("since", "on or after", "from"), " 이후"),
            )
        )
        said = r.choice(
            (day, day, f"{_MONTHS[m - 1]} {d}, {y}", f"{d} {_MONTHS[m - 1]} {y}", f"{_MONTHS[m - 1]} {d} {y}")
        )
        sql, english = f"{c.ident} {op} '{day}'", tuple(f"{word} {said}" for word in words)
        ko_day = r.choice((day, f"{y}년 {m}월 {d}일"))
        ko = ko_day + {">": " 후에", "<": " 이전에", "=": "에", ">=": " 이후에"}[op]
        ko_is = ko_day + (end if op == ">" else f"{end}인")
    elif roll < 0.95:
        y2 = min(2027, y + r.randint(1, 5))
        sql, english = (
            f"strftime('%Y', {c.ident}) BETWEEN '{y}' AND '{y2}'",
            (f"between {y} and {y2}", f"from {y} to {y2}"),
        )
        ko, ko_is = (
            r.choice((f"{y}년부터 {y2}년까지", f"{y}년에서 {y2}년 사이에", f"{y}년과 {y2}년 사이에")),
            f"{y}년에서 {y2}년 사이인",
        )
    else:
        n = r.choice((3, 7, 10, 14, 30, 60, 90))
        sql, english = (
            f"{c.ident} >= date('now', '-{n} days')",
            (f"in the last {n} days", f"in the past {n} days", f"within the last {n} days"),
        )
        ko, ko_is = r.choice((f"최근 {n}일 동안", f"지난 {n}일간", f"최근 {n}일 이내에")), f"최근 {n}일 이내인"
    if r.random() < 0.05:
        sql, spoken, ko, ko_is = r.choice(
            (
                (f"strftime('%Y', {c.ident}) = strftime('%Y', 'now')", "this year", "올해", "올해인"),
                (f"strftime('%Y-%m', {c.ident}) = strftime('%Y-%m', 'now')", "this month", "이번 달에", "이번 달인"),
                (
                    f"strftime('%Y-%m', {c.ident}) = strftime('%Y-%m', 'now', 'start of month', '-1 month')",
                    "last month",
                    "지난달에",
                    "지난달인",
                ),
                (f"strftime('%Y', {c.ident}) = strftime('%Y', 'now', '-1 year')", "last year", "작년에", "작년인"),
                (f"date({c.ident}) = date('now')", "today", "오늘", "오늘인"),
            )
        )
        english = (spoken,)
    said = r.choice(english)
    posts = (
        [f"{verb} {said}", f"{verb} {said}"]
        if verb
        else [
            f"with {_an(name)} {said}",
            f"whose {name} is {said}",
            f"with {name} {said}",
            f"where {name} is {said}",
            f"dated {said}",
            said,
        ]
    )
    relative = (
        (verb[4:] if verb.startswith("who ") else f"{_were(verb)} {said}") if verb else f"have {_an(name)} {said}"
    )
    relative = relative if not verb.startswith("who ") else f"{verb[4:]} {said}"
    ko_that = f"{ko} {ko_verb}" if ko_verb else f"{ga(name)} {ko_is}"
    return Filter(
        "",
        r.choice(posts),
        relative,
        bool(verb),
        ko_that,
        f"{ga(name)} {ko_is[:-1]}이고" if ko_is.endswith("인") else f"{ko} {ko_verb or '있었'}고",
        sql,
    )


def _were(verb: str) -> str:
    return {
        "joining": "joined",
        "starting": "start",
        "ending": "end",
        "expiring": "expire",
        "visiting": "visited",
        "enrolling": "enrolled",
        "departing": "depart",
        "leaving": "leave",
        "checking in": "checked in",
    }.get(verb, f"were {verb}")


def _label(r: random.Random, c: Column, table: Table, korean: bool) -> Filter:
    said, stored = value_for(r, c, table, korean)
    name = say(r, c, korean)
    if r.random() < 0.5:
        post = r.choice(
            (
                f"named {said}",
                f"called {said}",
                f"whose {name} is {said}",
                f"with the {name} {said}",
                f"with {name} '{said}'",
                f"named '{said}'",
            )
        )
        return Filter(
            "",
            post,
            f"are {post}",
            False,
            r.choice((f"{ga(name)} {said}인", f"{ga(name)} '{said}'인", f"{said}라는 {name}의", f"{said}라는")),
            f"{ga(name)} {said}이고",
            f"{c.ident} = {quoted(stored)}",
        )
    return _like(r, c, name, said)


def _like(r: random.Random, c: Column, name: str, said: str) -> Filter:
    letter = said[:1] if r.random() < 0.4 else said.split(" ")[0]
    shown = r.choice((letter, f"'{letter}'", f'"{letter}"'))
    where = r.choice(("start", "start", "in", "in", "in", "end"))
    if where == "start":
        e, k, like = (
            r.choice(
                (
                    f"starts with {shown}",
                    f"begins with {shown}",
                    f"starts with the letter {shown}" if len(letter) == 1 else f"starts with {shown}",
                )
            ),
            f"{ro(shown)} 시작하는",
            f"{letter}%",
        )
    elif where == "end":
        e, k, like = r.choice((f"ends with {shown}", f"ends in {shown}")), f"{ro(shown)} 끝나는", f"%{letter}"
    else:
        e, k, like = (
            r.choice((f"contains {shown}", f"includes {shown}", f"contains the word {shown}")),
            r.choice(
                (f"{ga(shown)} 들어간", f"{reul(shown)} 포함하는", f"{ga(shown)} 포함된", f"{ga(shown)} 들어가는")
            ),
            f"%{letter}%",
        )
    ing = {"start": "starting with", "end": "ending with", "in": "containing"}[where]
    post = r.choice(
        (
            f"whose {name} {e}",
            f"whose {name} {e}",
            f"with {_an(name)} that {e}",
            f"with {name} {ing} {shown}",
            f"where the {name} {e}",
        )
    )
    relative = f"have {_an(name)} {ing} {shown}"
    ko = (
        f"{ga(name)} {k}"
        if "시작" in k or "끝" in k
        else r.choice((f"{name}에 {k}", f"{ga(name)} {k}" if k.startswith(reul(shown)) else f"{name}에 {k}"))
    )
    return Filter(
        "",
        post,
        relative,
        False,
        ko,
        f"{ga(name)} {k[:-1]}고" if False else f"{name}에 {ga(shown)} 있고",
        f"{c.ident} LIKE {quoted(like)}",
    )


def _text(r: random.Random, c: Column, table: Table, korean: bool) -> Filter:
    name = say(r, c, korean)
    roll = r.random()
    if roll < 0.45:
        post = r.choice(
            (
                f"without {_an(name)}",
                f"with no {name}",
                f"whose {name} is missing",
                f"that have no {name}",
                f"with a missing {name}",
                f"where {name} is null",
                f"lacking {_an(name)}",
            )
        )
        return Filter(
            "",
            post,
            r.choice(
                (f"have no {name}", f"do not have {_an(name)}", f"are missing {_an(name)}", f"don't have {_an(name)}")
            ),
            True,
            r.choice((f"{ga(name)} 없는", f"{ga(name)} 비어 있는", f"{ga(name)} 등록되지 않은", f"{name} 없는")),
            f"{ga(name)} 없고",
            f"{c.ident} IS NULL",
        )
    if roll < 0.6:
        post = r.choice(
            (f"that have {_an(name)}", f"with {_an(name)}", f"where {name} is not null", f"whose {name} is known")
        )
        return Filter(
            "",
            post,
            f"have {_an(name)}",
            True,
            r.choice((f"{ga(name)} 있는", f"{ga(name)} 등록된")),
            f"{ga(name)} 있고",
            f"{c.ident} IS NOT NULL",
        )
    return _like(
        r, c, name, r.choice(("gmail", "010", "Street", "sale", "new", "A", made_word(r), "서울" if korean else "Main"))
    )


def _flag(r: random.Random, c: Column, table: Table, korean: bool) -> Filter:
    words, yes = c.attribute.words, r.random() < 0.6
    said = r.choice(words["yes" if yes else "no"])
    ko = r.choice(words["ko_yes" if yes else "ko_no"])
    sql = f"{c.ident} = {1 if yes else 0}"
    ko_and = {"인": ko[:-1] + "이고", "는": ko[:-1] + "고"}.get(ko[-1:], f"{ko} 상태이고")
    if " " not in said and r.random() < 0.5:
        return Filter(said, "", "", False, ko, ko_and, sql)
    post = (
        r.choice((f"that are {said}", f"which are {said}", f"that are {said}"))
        if yes or said.startswith(("un", "in", "out", "non", "not"))
        else f"that are not {c.attribute.one}"
    )
    return Filter("", post, f"are {said}", True, ko, ko_and, sql)


_MAKERS = {
    "group": _group,
    "number": _number,
    "date": _date,
    "label": _label,
    "text": _text,
    "flag": _flag,
    "key": _key,
}
_WEIGHTS = {"group": 2.2, "number": 2.2, "date": 2.0, "label": 0.8, "text": 0.7, "flag": 1.2, "key": 0.7}
