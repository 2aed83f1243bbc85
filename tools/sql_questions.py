"""Questions in English and Korean about a schema, with the SQL that answers each: what the SQL model is trained on.

A question that wants things themselves ("show", "list") gets every column; one that asks which, what or who gets the
name, where there is one. Columns carry their table's name where two tables are joined.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from sql_filters import Filter, joined, quoted, say, value_for
from sql_korean import counted, ga, neun, reul
from sql_schemas import Column, Schema, Table

Asked = tuple[str, str]
"""A question and its SQL."""


@dataclass(slots=True)
class Want:
    """One question in the making: of this table, in this language."""

    r: random.Random
    schema: Schema
    table: Table
    korean: bool
    plain: bool = False

    def pick(self, english: str, korean: str) -> str:
        """One of the phrases of the question's language, which are separated by bars."""
        return self.r.choice((korean if self.korean else english).split("|")).strip()

    @property
    def many(self) -> str:
        thing = self.table.thing
        if self.korean:
            return self.r.choice(thing.korean) if self.r.random() < 0.93 else self.table.ident
        return thing.many if self.r.random() < 0.93 else self.table.ident

    @property
    def one(self) -> str:
        return self.r.choice(self.table.thing.korean) if self.korean else self.table.thing.one

    def name(self, column: Column, *, plural: bool = False) -> str:
        return say(self.r, column, self.korean, plural=plural)

    def filters(self, chance: float, *, most: int = 2) -> Filter:
        """None, one or two conditions."""
        if self.plain or self.r.random() >= chance:
            return Filter()
        return joined(self.r, self.table, self.korean, 2 if most > 1 and self.r.random() < 0.22 else 1)

    def noun(self, condition: Filter) -> str:
        """What is asked about, with its condition: `red cars that cost more than 10`."""
        return condition.around(self.many, self.korean)

    def label(self) -> Column | None:
        labels = self.table.of("label")
        return labels[0] if labels else None


def where(condition: Filter, before: str = "") -> str:
    """The condition's clause."""
    both = " AND ".join(part for part in (before, condition.sql) if part)
    return f" WHERE {both}" if both else ""


def count(w: Want) -> Asked:
    f = w.filters(0.65)
    n, many = w.noun(f), w.table.thing.counter
    q = w.pick(
        f"how many {n} are there|how many {n} do we have|count the {n}|count all {n}|number of {n}|what is the number of {n}|"
        f"tell me how many {n} there are|give me the count of {n}|total number of {n}|what's the total number of {n}|"
        f"how many {n}|find the number of {n}|how many {n} exist|show the count of {n}|get the number of {n}|"
        f"i want to know how many {n} there are|how many {n} are in the {w.table.ident} table|return the number of {n}|"
        f"how many {n} are on record|how many {n} can be found|calculate the number of {n}|what is the count of {n}",
        f"{neun(n)} 몇 {many}인가요|{ga(n)} 몇 {many} 있나요|{n} 수를 알려줘|{n}의 수는|{neun(n)} 모두 몇 {many}인가요|"
        f"{ga(n)} 몇 {many}이나 있어|{n} 수를 구해줘|{reul(n)} 세어줘|{n}의 개수를 알려줘|{neun(n)} 총 몇 {many}인가요|{n}의 총 수는|"
        f"{ga(n)} 몇 {many}야|{n} 수는 얼마인가요|{n}의 수를 세어 주세요|전체 {n} 수는|{n} 개수|{neun(n)} 몇 {many}입니까|"
        f"{ga(n)} 총 몇 {many}인지 알려줘|몇 {many}의 {ga(n)} 있나요|{n}의 수를 계산해줘|{n}는 얼마나 있나요|{n} 수",
    )
    return q, f"SELECT COUNT(*) FROM {w.table.ident}{where(f)};"


def show(w: Want) -> Asked:
    f = w.filters(0.75)
    n = w.noun(f)
    named = w.label()
    if named and not w.plain and w.r.random() < 0.4:
        who = "who are" if w.table.thing.person else "what are"
        which = f.relative
        english = f"{who} the {n}|which {n} are there"
        if which:
            english = f"which {w.many} {which}|which {w.many} {which}|which of the {w.many} {which}|what {w.many} {which}|{who} the {n}"
            if w.table.thing.person:
                english += f"|who {which}" if f.verbal else ""
        q = w.pick(
            english,
            f"{neun(n)} {'누구' if w.table.thing.person else '무엇'}인가요|{neun(n)} {'누구' if w.table.thing.person else '뭐'}야|"
            f"{ga(n)} {'누구' if w.table.thing.person else '무엇'}인가요|어떤 {ga(n)} 있나요|{neun(n)} {'누가' if w.table.thing.person else '무엇이'} 있나요",
        )
        return q, f"SELECT {named.ident} FROM {w.table.ident}{where(f)};"
    q = w.pick(
        f"show all {n}|list all {n}|list the {n}|show me the {n}|find {n}|find all {n}|give me all {n}|get {n}|display {n}|"
        f"show {n}|list every detail of {n}|return all {n}|fetch the {n}|i need the {n}|select all {n}|all {n}|let me see all {n}|retrieve {n}|look up {n}|"
        f"pull up all {n}|show me all the information about {n}|print {n}|{n}",
        f"{reul(n)} 보여줘|{n} 목록을 보여줘|모든 {reul(n)} 보여줘|{reul(n)} 찾아줘|{reul(n)} 모두 알려줘|{n} 목록|{reul(n)} 조회해줘|{reul(n)} 나열해줘|"
        f"{n} 전체를 보여줘|{reul(n)} 검색해줘|{reul(n)} 전부 보여 주세요|{n} 리스트|{reul(n)} 출력해줘|{n} 정보를 알려줘|{reul(n)} 가져와줘|{reul(n)} 알려줘",
    )
    return q, f"SELECT * FROM {w.table.ident}{where(f)};"


def columns(w: Want) -> Asked | None:
    """Some columns by name."""
    pool = [c for c in w.table.columns if c.attribute.kind not in ("flag", "key")]
    if not pool:
        return None
    chosen = w.r.sample(pool, min(len(pool), w.r.choice((1, 1, 1, 2, 2, 3))))
    f = w.filters(0.6)
    n = w.noun(f)
    if w.korean:
        names = [w.name(c) for c in chosen]
        last = names[-1]
        c = "".join(f"{counted(name)} " if w.r.random() < 0.7 else f"{name}, " for name in names[:-1]) + last
        q = w.pick(
            "",
            f"{n}의 {reul(c)} 보여줘|{n}의 {reul(c)} 알려줘|{n}의 {neun(c)}|{n}의 {neun(c)} 무엇인가요|{n} {reul(c)} 나열해줘|{n}의 {c} 목록|"
            f"모든 {n}의 {reul(c)} 보여줘|{n} {reul(c)} 조회해줘|{n}의 {reul(c)} 찾아줘|{n}의 {neun(c)} 뭐야|{n}의 {c}|{reul(n)} {c}만 보여줘|{n}의 {reul(c)} 가져와줘",
        )
    else:
        plural = w.r.random() < 0.6
        names = [w.name(c, plural=plural) for c in chosen]
        c = " and ".join([*([", ".join(names[:-1])] if names[1:] else []), names[-1]])
        q = w.pick(
            f"show the {c} of all {n}|list the {c} of {n}|what are the {c} of {n}|give me the {c} of the {n}|show {c} for {n}|"
            f"get the {c} of each {w.one}{' ' + f.post if f.post else ''}|find the {c} of {n}|{c} of {n}|"
            f"list {c} of all {n}|what is the {c} of {n}|for all {n}, show the {c}|return the {c} for {n}|display the {c} of the {n}|"
            f"show me the {c} of every one of the {n}|i want the {c} of {n}|tell me the {c} of {n}",
            "",
        )
        if f.pre and "of each" in q:
            q = f"list the {c} of {n}"
    return q, f"SELECT {', '.join(c.ident for c in chosen)} FROM {w.table.ident}{where(f)};"


def distinct(w: Want) -> Asked | None:
    group = w.table.of("group")
    if not group:
        return None
    c = w.r.choice(group)
    one, many = w.name(c), w.name(c, plural=True)
    f = w.filters(0.15, most=1)
    n = w.noun(f)
    if w.r.random() < 0.5:
        q = w.pick(
            f"how many different {many} are there among the {n}|how many distinct {many} do the {n} have|count the distinct {many} of {n}|number of unique {many} of {n}|"
            f"how many unique {many} are there for {n}|from how many different {many} do the {n} come|count different {many} of {n}|in how many {many} are there {n}|how many {many} do {n} have",
            f"{n}의 {neun(one)} 몇 가지인가요|{n}의 서로 다른 {one} 수는|{n}의 고유한 {one} 개수를 알려줘|{neun(n)} 몇 개의 {ga(one)} 있나요|{n} {one} 종류는 몇 개인가요|중복 없이 {n}의 {one} 수를 세어줘",
        )
        return q, f"SELECT COUNT(DISTINCT {c.ident}) FROM {w.table.ident}{where(f)};"
    q = w.pick(
        f"what are the different {many} of {n}|list the distinct {many} of {n}|show all unique {many} of {n}|which {many} do the {n} have|list unique {many} of the {n}|"
        f"what {many} are there among {n}|show every distinct {one} of the {n}|give me the different {many} that {n} have|all distinct {many} of {n}",
        f"{n}의 서로 다른 {reul(one)} 보여줘|{n}의 {one} 종류를 알려줘|중복 없이 {n}의 {reul(one)} 나열해줘|{n}의 고유한 {one} 목록|{n}에는 어떤 {ga(one)} 있나요|{n}의 {reul(one)} 중복 없이 보여줘",
    )
    return q, f"SELECT DISTINCT {c.ident} FROM {w.table.ident}{where(f)};"


_AGGREGATES = {
    "SUM": ("total|sum of the|combined|overall|total|summed", "총|합계|전체|총합|총|합"),
    "AVG": ("average|mean|average|avg", "평균|평균|평균"),
    "MAX": ("maximum|highest|largest|max|greatest|biggest", "최대|가장 높은|최고|가장 큰"),
    "MIN": ("minimum|lowest|smallest|min|least", "최소|가장 낮은|최저|가장 작은"),
}


def measure(w: Want, c: Column) -> tuple[str, str, str]:
    """An aggregate: its name for English, for Korean, and the function."""
    function = w.r.choice(("SUM", "SUM", "AVG", "AVG", "MAX", "MIN"))
    english, korean = _AGGREGATES[function]
    word, name = w.r.choice((korean if w.korean else english).split("|")), w.name(c)
    if w.korean:
        tail = word in ("합계", "총합", "합")
        phrase = (
            f"{name} {word}"
            if tail or (word in ("최대", "최소", "평균", "최고", "최저") and w.r.random() < 0.2)
            else f"{word} {name}"
        )
        if word == "평균" and w.r.random() < 0.15:
            phrase = f"{name}의 평균"
    else:
        phrase = f"sum of {name}" if word == "sum of the" else f"{word} {name}"
    return phrase, phrase, function


def aggregate(w: Want) -> Asked | None:
    number = w.table.of("number")
    if not number:
        return None
    c = w.r.choice(number)
    m, _, function = measure(w, c)
    f = w.filters(0.6)
    n, one = w.noun(f), w.one
    q = w.pick(
        f"what is the {m} of {n}|what is the {m} of all {n}|find the {m} of {n}|{m} of {n}|show the {m} for {n}|calculate the {m} of the {n}|"
        f"what's the {m} of the {n}|give me the {m} of {n}|what is the {m} for {n}|compute the {m} of {n}|tell me the {m} of {n}|"
        f"get the {m} across all {n}|what is the {m} among {n}|i want to know the {m} of {n}|{m} for all {n}|return the {m} of {n}|what was the {m} of {n}",
        f"{n}의 {neun(m)} 얼마인가요|{n}의 {reul(m)} 구해줘|{n} {neun(m)}|{n}의 {reul(m)} 알려줘|{n}의 {reul(m)} 계산해줘|{n}의 {neun(m)} 얼마야|{n}의 {m}|{n} {m}|"
        f"{n}의 {neun(m)} 몇인가요|모든 {n}의 {neun(m)}|{n}의 {reul(m)} 보여줘|{n} {neun(m)} 얼마입니까|{n}의 {ga(m)} 얼마인지 알려줘",
    )
    if not w.korean and not f.sql and w.r.random() < 0.25:
        q = w.r.choice(
            (
                f"what is the {m}",
                f"{m}",
                f"what is the {m} in the {w.table.ident} table",
                f"average {one} {w.name(c)}" if function == "AVG" else f"{m} overall",
            )
        )
    if not w.korean and function in ("SUM", "AVG") and f.sql and w.r.random() < 0.1:
        q = f"how much {w.name(c)} do {n} have {'in total' if function == 'SUM' else 'on average'}"
    return q, f"SELECT {function}({c.ident}) FROM {w.table.ident}{where(f)};"


def by(w: Want, c: Column) -> tuple[str, str]:
    """ "per city", before or behind: in English the phrase behind, in Korean the one before."""
    g, many = w.name(c), w.name(c, plural=True)
    english = f"per {g}|by {g}|for each {g}|in each {g}|grouped by {g}|for every {g}|across {many}|broken down by {g}|of each {g}|group by {g}"
    return w.pick(english, f"{g}별|{g}별|{g}별로|각 {g}의|{g}마다|각 {g}별|{g}에 따른"), g


def groups(w: Want) -> list[Column]:
    """What rows may be grouped by."""
    keys = [c for c in w.table.of("key") if c.parent and not (c.parent.ident and c.parent.of("label"))]
    return w.table.of("group") + keys


def group_count(w: Want) -> Asked | None:
    pool = groups(w)
    if not pool:
        return None
    c = w.r.choice(pool)
    b, g = by(w, c)
    f = w.filters(0.25, most=1)
    n, many = w.noun(f), w.table.thing.counter
    gs = w.name(c, plural=True)
    q = w.pick(
        f"how many {n} are there {b}|number of {n} {b}|count the {n} {b}|count {n} {b}|show the number of {n} {b}|how many {n} {b}|"
        f"how many {n} does each {g} have|what is the number of {n} {b}|list each {g} with its number of {n}|{n} count {b}|"
        f"for each {g}, how many {n} are there|for each {g}, count the {n}|give me a count of {n} {b}|show {gs} and how many {n} each has|for every {g} show the number of {n}|"
        f"total number of {n} {b}|list the {gs} and the number of {n} in each|distribution of {n} by {g}",
        f"{b} {n} 수를 알려줘|{b} {n} 수는|{b} {neun(n)} 몇 {many}인가요|{b} {n} 수를 구해줘|{b} {n}의 수를 보여줘|{b} {reul(n)} 세어줘|{b} {n} 개수|"
        f"{b} {ga(n)} 몇 {many}씩 있나요|{b} {n} 수를 세어 주세요|{b} {n} 수는 얼마인가요|{n} 수를 {g}별로 보여줘|{b} {ga(n)} 몇 {many} 있는지 알려줘|{n}의 {g}별 수",
    )
    end, tail = order_by(w, "COUNT(*)")
    return q + tail, f"SELECT {c.ident}, COUNT(*) FROM {w.table.ident}{where(f)} GROUP BY {c.ident}{end};"


def order_by(w: Want, what: str) -> tuple[str, str]:
    """Now and then, groups in order of their size."""
    if w.r.random() > 0.1:
        return "", ""
    if w.r.random() < 0.65:
        return f" ORDER BY {what} DESC", w.pick(
            ", highest first|, sorted from most to least|, in descending order|, largest first|, ordered from highest to lowest",
            ", 많은 순으로|, 큰 순서대로|, 내림차순으로|, 높은 순으로",
        )
    return f" ORDER BY {what}", w.pick(
        ", lowest first|, in ascending order|, sorted from least to most|, smallest first",
        ", 적은 순으로|, 작은 순서대로|, 오름차순으로|, 낮은 순으로",
    )


def group_measure(w: Want) -> Asked | None:
    pool, numbers = groups(w), w.table.of("number")
    if not pool or not numbers:
        return None
    c, number = w.r.choice(pool), w.r.choice(numbers)
    b, g = by(w, c)
    m, _, function = measure(w, number)
    f = w.filters(0.2, most=1)
    n = w.noun(f)
    of = f" of {n}" if f.sql or w.r.random() < 0.5 else ""
    ko = f"{n}의 " if f.sql or w.r.random() < 0.3 else ""
    q = w.pick(
        f"what is the {m}{of} {b}|{m}{of} {b}|show the {m}{of} {b}|find the {m}{of} {b}|calculate the {m}{of} {b}|for each {g}, what is the {m}{of}|"
        f"list each {g} with its {m}{of}|give me the {m}{of} {b}|for each {g} show the {m}{of}|show {g} and {m}{of}|get the {m}{of} {b}|what's the {m}{of} {b}|compute {m}{of} {b}|list the {m}{of} {b}",
        f"{ko}{b} {neun(m)} 얼마인가요|{ko}{b} {reul(m)} 구해줘|{ko}{b} {neun(m)}|{ko}{b} {reul(m)} 알려줘|{ko}{b} {reul(m)} 계산해줘|{ko}{b} {m}|{ko}{b} {reul(m)} 보여줘|"
        f"{b} {ko}{neun(m)} 얼마인가요|{b} {ko}{reul(m)} 알려줘|{ko}{reul(m)} {g}별로 보여줘|{ko}{b} {neun(m)} 얼마야",
    )
    end, tail = order_by(w, f"{function}({number.ident})")
    return (
        q + tail,
        f"SELECT {c.ident}, {function}({number.ident}) FROM {w.table.ident}{where(f)} GROUP BY {c.ident}{end};",
    )


def having(w: Want) -> Asked | None:
    pool = groups(w)
    if not pool:
        return None
    c, numbers = w.r.choice(pool), w.table.of("number")
    g, gs, n = w.name(c), w.name(c, plural=True), w.many
    many, k = w.table.thing.counter, w.r.randint(1, 30)
    if numbers and w.r.random() < 0.4:
        number = w.r.choice(numbers)
        m, _, function = measure(w, number)
        k = w.r.randint(number.attribute.low, number.attribute.high)
        english, korean, op = w.r.choice(_COMPARED)
        q = w.pick(
            f"which {gs} have {_a(m)} {english} {k}|list {gs} with {_a(m)} {english} {k}|show the {gs} whose {m} is {english} {k}|find {gs} where the {m} is {english} {k}|{gs} with {m} {english} {k}",
            f"{n}의 {ga(m)} {k}{korean} {neun(g)}|{ga(m)} {k}{korean} {reul(g)} 찾아줘|{ga(m)} {k}{korean} {reul(g)} 보여줘|{n} {ga(m)} {k}{korean} {neun(g)} 무엇인가요|{ga(m)} {k}{korean} {g} 목록",
        )
        return (
            q,
            f"SELECT {c.ident} FROM {w.table.ident} GROUP BY {c.ident} HAVING {function}({number.ident}) {op} {k};",
        )
    if w.r.random() < 0.15:
        q = w.pick(
            f"which {gs} occur more than once|find duplicate {gs} of {n}|which {gs} are shared by more than one of the {n}|{gs} that appear more than once among {n}|find {gs} used by several {n}",
            f"중복된 {reul(g)} 찾아줘|두 번 이상 나오는 {neun(g)}|{n} 중 중복된 {neun(g)}|{ga(n)} 둘 이상인 {reul(g)} 알려줘",
        )
        return q, f"SELECT {c.ident} FROM {w.table.ident} GROUP BY {c.ident} HAVING COUNT(*) > 1;"
    english, korean, op = w.r.choice(_COUNTED)
    e = english.format(k=k)
    q = w.pick(
        f"which {gs} have {e} {n}|list {gs} with {e} {n}|show the {gs} that have {e} {n}|find {gs} having {e} {n}|{gs} with {e} {n}|what {gs} have {e} {n}|give me the {gs} with {e} {n}",
        f"{ga(n)} {k}{many}{korean} {neun(g)}|{ga(n)} {k}{many}{korean} {reul(g)} 보여줘|{ga(n)} {k}{many}{korean} {neun(g)} 어디인가요|{n} 수가 {k}{korean} {reul(g)} 알려줘|{ga(n)} {k}{many}{korean} {g} 목록|{ga(n)} {k}{many}{korean} {reul(g)} 찾아줘",
    )
    return q, f"SELECT {c.ident} FROM {w.table.ident} GROUP BY {c.ident} HAVING COUNT(*) {op} {k};"


_COUNTED = (
    ("more than {k}", "보다 많은", ">"),
    ("over {k}", "을 넘는", ">"),
    ("at least {k}", " 이상인", ">="),
    ("fewer than {k}", "보다 적은", "<"),
    ("less than {k}", " 미만인", "<"),
    ("at most {k}", " 이하인", "<="),
    ("exactly {k}", "인", "="),
    ("{k} or more", " 이상인", ">="),
    ("more than {k}", " 초과인", ">"),
)
_COMPARED = (
    ("above", "보다 큰", ">"),
    ("over", "을 넘는", ">"),
    ("greater than", "보다 높은", ">"),
    ("of at least", " 이상인", ">="),
    ("below", "보다 작은", "<"),
    ("under", " 미만인", "<"),
    ("less than", "보다 낮은", "<"),
    ("of more than", " 초과인", ">"),
    ("of at most", " 이하인", "<="),
)


def _a(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def which_group(w: Want) -> Asked | None:
    """The group that has the most."""
    pool, numbers = groups(w), w.table.of("number")
    if not pool:
        return None
    c = w.r.choice(pool)
    g, gs, f = w.name(c), w.name(c, plural=True), w.filters(0.12, most=1)
    n, many = w.noun(f), w.r.random() < 0.75
    number = w.r.choice((1, 1, 1, 1, 2, 3, 5))
    k = "" if number == 1 else f"{w.r.choice((number, _DIGITS[number]))} "
    asked = gs if number > 1 else g
    limit = f"{' DESC' if many else ''} LIMIT {number}"
    if numbers and w.r.random() < 0.45:
        m, _, function = measure(w, w.r.choice(numbers[:1]))
        if function in ("MAX", "MIN"):
            function = "SUM"
            m = w.pick(f"total {w.name(numbers[0])}", f"총 {w.name(numbers[0])}")
        most = w.pick(
            "highest|largest|biggest|greatest" if many else "lowest|smallest|least",
            "가장 높은|제일 높은|가장 큰|가장 많은" if many else "가장 낮은|제일 낮은|가장 작은|가장 적은",
        )
        q = w.pick(
            f"which {k}{asked} has the {most} {m} of {n}|which {k}{asked} has the {most} {m}|what {k}{asked} has the {most} {m}|{k}{asked} with the {most} {m}|find the {k}{asked} with the {most} {m} of {n}|show the {k}{asked} with the {most} {m}",
            f"{n}의 {ga(m)} {most} {neun(_ko(g, number))}|{ga(m)} {most} {neun(_ko(g, number))} 어디인가요|{ga(m)} {most} {neun(_ko(g, number))} 무엇인가요|{n} {ga(m)} {most} {reul(_ko(g, number))} 알려줘",
        )
        if f.sql and n not in q:
            f = Filter()
        return (
            q,
            f"SELECT {c.ident} FROM {w.table.ident}{where(f)} GROUP BY {c.ident} ORDER BY {function}({numbers[0].ident}){limit};",
        )
    most = w.pick(
        "most|largest number of|highest number of" if many else "fewest|least|smallest number of|lowest number of",
        "가장 많은|제일 많은" if many else "가장 적은|제일 적은",
    )
    q = w.pick(
        f"which {k}{asked} has the {most} {n}|what {k}{asked} has the {most} {n}|find the {k}{asked} with the {most} {n}|{k}{asked} with the {most} {n}|which {k}{asked} have the {most} {n}|show the {k}{asked} with the {most} {n}|"
        + (
            f"what is the most common {g} of {n}|most frequent {g} among {n}|what is the most popular {g} of {n}"
            if many and number == 1
            else f"list the {k}{asked} that have the {most} {n}"
        ),
        f"{ga(n)} {most} {neun(_ko(g, number))}|{ga(n)} {most} {neun(_ko(g, number))} 어디인가요|{ga(n)} {most} {neun(_ko(g, number))} 무엇인가요|{n} 수가 {most} {reul(_ko(g, number))} 알려줘|{ga(n)} {most} {reul(_ko(g, number))} 찾아줘|{ga(n)} {most} {neun(_ko(g, number))} 뭐야",
    )
    return q, f"SELECT {c.ident} FROM {w.table.ident}{where(f)} GROUP BY {c.ident} ORDER BY COUNT(*){limit};"


_DIGITS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 10: "ten", 20: "twenty"}
_KOREAN = {2: "두", 3: "세", 4: "네", 5: "다섯", 6: "여섯", 7: "일곱", 8: "여덟", 10: "열", 20: "스무"}


def _ko(noun: str, number: int, counter: str = "개") -> str:
    return noun if number == 1 else f"{noun} {number}{counter}"


def top(w: Want) -> Asked | None:
    """The first few of an order."""
    pool = w.table.of("number", "number", "date")
    if not pool:
        return None
    c = w.r.choice(pool)
    most = w.r.random() < 0.65
    f = w.filters(0.25, most=1)
    number = w.r.choice((1, 1, 1, 2, 3, 3, 4, 5, 5, 6, 7, 8, 10, 10, 20))
    desc, adjective = most, superlative(w, c, most=most)
    thing, label = w.table.thing, w.label()
    name = w.name(c)
    things = f.around(w.many, w.korean) if number > 1 or w.korean else f.around(w.one, w.korean)
    which = bool(label) and w.r.random() < 0.5
    what = label.ident if which and label else "*"
    limit = f"ORDER BY {c.ident}{' DESC' if desc else ''} LIMIT {number}"
    sql = f"SELECT {what} FROM {w.table.ident}{where(f)} {limit};"
    if w.korean:
        k = (
            ""
            if number == 1
            else w.r.choice(
                (f" {number}{thing.counter}", f" {_KOREAN[number]} {thing.counter}", f" {number}{thing.counter}")
            )
        )
        who = "누구" if thing.person else "무엇"
        base = f"{adjective} {things}" if f.bare or w.r.random() < 0.5 else f"{f.ko_that} {adjective} {w.many}".strip()
        t = base + k
        up = f"상위 {number}{thing.counter}" if most else f"하위 {number}{thing.counter}"
        if which:
            return w.pick(
                "",
                f"{neun(t)} {who}인가요|{neun(t)}|{neun(t)} 뭐야|{t}의 {neun(_label_ko(w))}|{ga(t)} {who}인가요|{t}의 {_label_ko(w)}을 알려줘|{neun(t)} {who}입니까",
            ), sql
        return w.pick(
            "",
            f"{reul(t)} 보여줘|{reul(t)} 알려줘|{reul(t)} 찾아줘|{t}|{reul(t)} 조회해줘"
            + (f"|{name} {up}의 {reul(things)} 보여줘|{name} 기준 {up} {reul(things)} 알려줘" if number > 1 else ""),
        ), sql
    k = "" if number == 1 else f"{w.r.choice((number, _DIGITS[number]))} "
    adj_first = f"{adjective} {things}"
    with_ = superlative_with(w, c, most=most)
    be = "is" if number == 1 else "are"
    has = "has" if number == 1 else "have"
    if which:
        own = label.attribute.many if number > 1 else label.attribute.one  # type: ignore[union-attr]
        who = "who" if thing.person else "what"
        return w.pick(
            f"which {k}{things} {has} {with_}|which {k}{things} {be} the {adjective}|{who} {be} the {k}{adj_first}|what {be} the {k}{adj_first}|{own} of the {k}{adj_first}|what {be} the {own} of the {k}{adj_first}|"
            f"what {be} the {own} of the {k}{things} with {with_}|which {k}{things} {has} {with_}|show the {own} of the {k}{adj_first}|what {k}{things} {has} {with_}"
            + (f"|who has {with_}" if thing.person and number == 1 and not f.sql else ""),
            "",
        ), sql
    english = f"show the {k}{adj_first}|list the {k}{adj_first}|find the {k}{things} with {with_}|the {k}{adj_first}|give me the {k}{adj_first}|show me the {k}{things} with {with_}|get the {k}{adj_first}|{k}{adj_first}|find the {k}{adj_first}|display the {k}{things} with {with_}"
    if number > 1:
        english += (
            f"|top {number} {f.around(w.many, False)} by {name}|show the top {k}{f.around(w.many, False)} by {name}|list the top {number} {f.around(w.many, False)} by {name}"
            if desc
            else f"|bottom {number} {f.around(w.many, False)} by {name}|the {k}{things} with {with_}"
        )
    return w.pick(english, ""), sql


def _label_ko(w: Want) -> str:
    label = w.label()
    return label.attribute.korean[0] if label else "이름"


def superlative(w: Want, c: Column, *, most: bool) -> str:
    """ "most expensive", before a noun."""
    a, name = c.attribute, w.name(c)
    if a.kind == "date" or a.one == "year":
        if w.korean:
            return w.r.choice(
                (
                    f"{ga(name)} 가장 {'늦은' if most else '빠른'}",
                    "가장 최근" if most else "가장 오래된",
                    "제일 최근" if most else "제일 오래된",
                    f"가장 {'최근에' if most else '먼저'} {w.r.choice(a.words.get('ko_verbs') or ('등록된',))}",
                )
            )
        return w.r.choice(
            ("latest", "most recent", "newest", "most recent") if most else ("earliest", "oldest", "first")
        )
    if w.korean:
        own = a.words.get("ko_more" if most else "ko_less", ())
        generic = ("높은", "큰", "많은") if most else ("낮은", "작은", "적은")
        if own and w.r.random() < 0.5:
            return f"{w.r.choice(('가장', '제일', '가장'))} {w.r.choice(own)}"
        return f"{ga(name)} {w.r.choice(('가장', '제일', '가장'))} {w.r.choice((*own, *generic))}"
    own = a.words.get("most" if most else "least", ())
    if own and w.r.random() < 0.85:
        return w.r.choice(own)
    return w.r.choice(("highest", "largest", "top") if most else ("lowest", "smallest")) + f" {name}"


def superlative_with(w: Want, c: Column, *, most: bool) -> str:
    """ "the highest price"."""
    a = c.attribute
    words: tuple[str, ...]
    if a.kind == "date" or a.one == "year":
        words = ("latest", "most recent") if most else ("earliest", "oldest")
    else:
        words = (
            ("highest", "largest", "biggest", "most", "greatest", "maximum")
            if most
            else ("lowest", "smallest", "least", "fewest", "minimum")
        )
    return f"the {w.r.choice(words)} {w.name(c)}"


def ordered(w: Want) -> Asked | None:
    """Everything in an order."""
    pool = w.table.of("number", "date", "label", "group")
    if not pool:
        return None
    c = w.r.choice(pool)
    f = w.filters(0.3, most=1)
    n, name = w.noun(f), w.name(c)
    kind = c.attribute.kind
    desc = w.r.random() < 0.5
    if kind == "date":
        e, k = (
            (
                "newest first|latest first|from newest to oldest|in descending order of {c}|sorted by {c} descending|most recent first",
                "최신순으로|최근 순으로|{c} 내림차순으로",
            )
            if desc
            else (
                "oldest first|from oldest to newest|sorted by {c}|ordered by {c}|in order of {c}|by {c}, earliest first",
                "오래된 순으로|{c} 순으로|{c} 오름차순으로|{c} 빠른 순으로",
            )
        )
    elif kind == "number":
        e, k = (
            (
                "sorted by {c} from high to low|ordered by {c} descending|by {c}, highest first|in descending order of {c}|from highest to lowest {c}|sorted by {c} in descending order",
                "{c} 높은 순으로|{c} 내림차순으로|{ga} 큰 순서대로|{ga} 많은 순으로|{ga} 높은 순서로",
            )
            if desc
            else (
                "sorted by {c}|ordered by {c}|from lowest to highest {c}|by {c}, lowest first|in ascending order of {c}|sorted by {c} ascending|in order of {c}",
                "{c} 순으로|{c} 낮은 순으로|{c} 오름차순으로|{ga} 작은 순서대로|{ga} 적은 순으로",
            )
        )
    else:
        e, k = (
            (
                "in reverse alphabetical order of {c}|sorted by {c} descending|by {c} from Z to A|ordered by {c} in descending order",
                "{c} 역순으로|{c} 내림차순으로",
            )
            if desc
            else (
                "sorted by {c}|ordered by {c}|in alphabetical order of {c}|alphabetically by {c}|sorted alphabetically by {c}|by {c} from A to Z",
                "{c} 순으로|{c} 가나다순으로|{c} 오름차순으로|{reul} 기준으로 정렬해서",
            )
        )
    how = w.pick(e, k).format(c=name, ga=ga(name), reul=reul(name))
    what, named = "*", ""
    label = w.label()
    if label and label is not c and w.r.random() < 0.25:
        what, named = label.ident, w.name(label, plural=not w.korean)
    if w.korean:
        t = f"{n}의 {named}" if named else n
        q = w.pick(
            "",
            f"{reul(t)} {how} 보여줘|{reul(t)} {how} 정렬해줘|{reul(t)} {how} 나열해줘|{how} {reul(t)} 보여줘|{reul(t)} {how} 알려줘|{how} 정렬한 {t} 목록",
        )
    else:
        t = f"the {named} of all {n}" if named else w.r.choice((f"all {n}", n, f"the {n}"))
        q = w.pick(
            f"show {t} {how}|list {t} {how}|give me {t} {how}|{t} {how}|display {t} {how}|get {t} {how}|sort {t} {how}".replace(
                "sort", "return"
            ),
            "",
        )
    return q, f"SELECT {what} FROM {w.table.ident}{where(f)} ORDER BY {c.ident}{' DESC' if desc else ''};"


def versus_average(w: Want) -> Asked | None:
    numbers = w.table.of("number")
    if not numbers:
        return None
    c, label = w.r.choice(numbers), w.label()
    name, n = w.name(c), w.many
    above = w.r.random() < 0.65
    more = "above|greater than|higher than|more than|over" if above else "below|less than|lower than|under"
    op = ">" if above else "<"
    which = bool(label) and w.r.random() < 0.5
    m = w.r.choice(more.split("|"))
    ko = w.pick(
        "",
        "평균보다 높은|평균보다 큰|평균을 넘는|평균보다 많은|평균 이상으로 높은"
        if above
        else "평균보다 낮은|평균보다 작은|평균보다 적은|평균 미만인",
    )
    start = "which {n} have" if which else "show {n} with|list {n} with|find {n} with|{n} with"
    q = w.pick(
        "|".join(
            f"{s.strip().format(n=n)} {_a(name)} {m} average|{s.strip().format(n=n)} {_a(name)} {m} the average|{s.strip().format(n=n)} {_a(name)} {m} the average {name}"
            for s in start.split("|")
        ),
        f"{ga(name)} {ko} {neun(n)} {'누구' if w.table.thing.person else '무엇'}인가요|{ga(name)} {ko} {neun(n)} {'누구' if w.table.thing.person else '무엇'}입니까"
        if which
        else f"{ga(name)} {ko} {reul(n)} 보여줘|{ga(name)} {ko} {reul(n)} 찾아줘|{ga(name)} {ko} {n} 목록|{name}{'' if w.r.random() < 0.5 else ' '} {ko} {reul(n)} 알려줘",
    )
    what = label.ident if which and label else "*"
    return q, f"SELECT {what} FROM {w.table.ident} WHERE {c.ident} {op} (SELECT AVG({c.ident}) FROM {w.table.ident});"


def when(w: Want) -> Asked | None:
    """The first or the last date."""
    dates = w.table.of("date")
    if not dates:
        return None
    c, last = w.r.choice(dates), w.r.random() < 0.6
    name, n = w.name(c), w.noun(f := w.filters(0.4, most=1))
    q = w.pick(
        f"what is the {'latest' if last else 'earliest'} {name} of {n}|what is the {'most recent' if last else 'first'} {name} of the {n}|{'latest' if last else 'earliest'} {name} of {n}|when was the {'last' if last else 'first'} {name} of {n}|find the {'last' if last else 'oldest'} {name} among {n}",
        f"{n}의 가장 {'최근' if last else '빠른'} {neun(name)} 언제인가요|{n}의 {'마지막' if last else '첫'} {neun(name)}|{n}의 가장 {'늦은' if last else '이른'} {reul(name)} 알려줘|{n}의 {'최근' if last else '최초'} {neun(name)} 언제야",
    )
    return q, f"SELECT {'MAX' if last else 'MIN'}({c.ident}) FROM {w.table.ident}{where(f)};"


def by_year(w: Want) -> Asked | None:
    """Counts or sums a year or a month."""
    dates, numbers = w.table.of("date"), w.table.of("number")
    if not dates:
        return None
    c, year = w.r.choice(dates), w.r.random() < 0.6
    unit = w.pick("year" if year else "month", "연도" if year else "월")
    key = f"strftime('{'%Y' if year else '%Y-%m'}', {c.ident})"
    verb = w.r.choice(c.attribute.words.get("verbs", ("",))) if not w.korean else ""
    b = w.pick(
        f"per {unit}|by {unit}|for each {unit}|in each {unit}|per {unit} of {w.name(c)}|by {unit} of {w.name(c)}|each {unit}|{unit}ly",
        f"{unit}별|{unit}별|{w.name(c)} {unit}별|{'매년' if year else '매월'}",
    )
    n = w.many
    if numbers and w.r.random() < 0.4:
        m, _, function = measure(w, w.r.choice(numbers[:1]))
        q = w.pick(
            f"{m} of {n} {b}|what is the {m} {b}|show the {m} {b}|{m} {b}",
            f"{b} {reul(m)} 알려줘|{b} {neun(m)} 얼마인가요|{b} {n} {reul(m)} 구해줘|{b} {m}",
        )
        return q, f"SELECT {key}, {function}({numbers[0].ident}) FROM {w.table.ident} GROUP BY {key};"
    v = f" {verb}" if verb and " " not in verb and w.r.random() < 0.5 else ""
    q = w.pick(
        f"how many {n}{v} {b}|number of {n}{v} {b}|count {n}{v} {b}|show the number of {n}{v} {b}",
        f"{b} {n} 수를 알려줘|{b} {n} 수는|{b} {n} 수를 구해줘|{b} {n} 수를 보여줘",
    )
    return q, f"SELECT {key}, COUNT(*) FROM {w.table.ident} GROUP BY {key};"


_HOW = {
    "age": "old",
    "price": "expensive",
    "cost": "expensive",
    "fee": "expensive",
    "height": "tall",
    "length": "long",
    "duration": "long",
    "weight": "heavy",
    "speed": "fast",
    "distance": "far",
    "area": "large",
    "population": "populous",
    "temperature": "hot",
    "rating": "highly rated",
}


def how_much(w: Want) -> Asked | None:
    """An extreme, an average or a sum, asked for with an adjective or a verb."""
    numbers = w.table.of("number")
    if not numbers:
        return None
    c = w.r.choice(numbers)
    f = w.filters(0.3, most=1)
    name, n, one = w.name(c), w.noun(f), f.around(w.table.thing.one, False)
    most = w.r.random() < 0.5
    function = "MAX" if most else "MIN"
    how = _HOW.get(c.attribute.one)
    roll = w.r.random()
    if roll < 0.4:
        best = superlative(w, c, most=most)
        if w.korean:
            q = w.pick(
                "",
                f"가장 {'높은' if most else '낮은'} {n} {neun(name)} 얼마인가요|{n} 중 {'최고' if most else '최저'} {neun(name)}|{n}의 {name} {'최댓값' if most else '최솟값'}은|{n}의 {name} {'최대치' if most else '최소치'}를 알려줘|{n} {name} {'최댓값' if most else '최솟값'}을 알려줘|{n} 중에서 제일 {'높은' if most else '낮은'} {neun(name)}",
            )
        else:
            q = w.pick(
                f"what {name} does the {best} {one} have|what is the {name} of the {best} {one}|how {how} is the {best} {one}|how {how} is the {best} {one}"
                if how
                else f"what {name} does the {best} {one} have|what is the {name} of the {best} {one}|what is the {'highest' if most else 'lowest'} {name} among {n}|what is the {'biggest' if most else 'smallest'} {name} of any {one}",
                "",
            )
        return q, f"SELECT {function}({c.ident}) FROM {w.table.ident}{where(f)};"
    if roll < 0.75:
        q = w.pick(
            f"how much {name} does {_a(one)} have on average|what {name} does {_a(one)} have on average|what is the typical {name} of {n}|what is the mean {name} of {n}|on average, what is the {name} of {n}|{name} of {n} on average|what do {n} have as average {name}"
            + (f"|how {how} are {n} on average|how {how} is the average {one}" if how else "")
            + (
                f"|what does {_a(one)} cost on average|how much do {n} cost on average"
                if c.attribute.one in ("price", "cost")
                else ""
            )
            + (
                f"|how much does {_a(one)} earn on average|what do {n} earn on average"
                if c.attribute.one in ("salary", "income")
                else ""
            ),
            f"{n}의 {neun(name)} 평균적으로 얼마인가요|{neun(n)} 평균 {ga(name)} 얼마인가요|{n} {name} 평균|{n} {name} 평균을 구해줘|{n} {name}의 평균값은|{n}의 {name} 평균은 얼마야|평균적인 {n}의 {neun(name)}|{n}의 {name} 평균값을 알려줘",
        )
        return q, f"SELECT AVG({c.ident}) FROM {w.table.ident}{where(f)};"
    q = w.pick(
        f"how much {name} is there in total for {n}|how much {name} do {n} have in total|what is the {name} of {n} in total|add up the {name} of {n}|sum up the {name} of all {n}|what does the {name} of {n} add up to|{name} of all {n} added together|what is the {name} of all {n} together|how much {name} altogether for {n}",
        f"{n}의 {neun(name)} 모두 합해 얼마인가요|{n}의 {reul(name)} 모두 더해줘|{n} {name} 총합을 구해줘|{n}의 {name} 총합은|{n} {name} 합계는 얼마인가요|{n}의 {reul(name)} 합산해줘|{n} {reul(name)} 다 더하면 얼마야|{n} {name} 총액은 얼마인가요",
    )
    return q, f"SELECT SUM({c.ident}) FROM {w.table.ident}{where(f)};"


def one_value(w: Want) -> Asked | None:
    """A column of the one that is named."""
    label = w.label()
    pool = [c for c in w.table.columns if c is not label and c.attribute.kind in ("number", "group", "date", "text")]
    if not label or not pool:
        return None
    c = w.r.choice(pool)
    said, stored = value_for(w.r, label, w.table, w.korean)
    name, one = w.name(c), w.one
    date = c.attribute.kind == "date" and c.attribute.words.get("verbs")
    q = w.pick(
        f"what is {said}'s {name}|what is the {name} of {said}|what {name} does {said} have|show {said}'s {name}|give me the {name} of {said}|find the {name} for {said}|{name} of {said}|what is the {name} of the {one} {said}|tell me {said}'s {name}|which {name} does {said} have|show me the {name} of the {one} named {said}|{said}'s {name}"
        + (
            f"|when was {said} {c.attribute.words['verbs'][0]}"
            if date
            and not c.attribute.words["verbs"][0].startswith("who")
            and not c.attribute.words["verbs"][0].endswith("ing")
            else ""
        ),
        f"{said}의 {neun(name)}|{said}의 {neun(name)} 무엇인가요|{said}의 {reul(name)} 알려줘|{said}의 {neun(name)} 뭐야|{one} {said}의 {neun(name)}|{said}의 {reul(name)} 보여줘|{said} {name}|{ga('이름')} {said}인 {one}의 {neun(name)}",
    )
    return q, f"SELECT {c.ident} FROM {w.table.ident} WHERE {label.ident} = {quoted(stored)};"


def unnamed(w: Want) -> Asked | None:
    """Persons that are only asked for with who."""
    label = w.label()
    if not label or not w.table.thing.person:
        return None
    f = w.filters(1.0, most=1)
    if not f.sql or (not w.korean and not f.relative):
        return None
    single = re.sub(
        r"^(are|have|live|come|were|do not|don't|work|belong|cost|start|end|expire)\b",
        lambda m: {
            "are": "is",
            "have": "has",
            "live": "lives",
            "come": "comes",
            "were": "was",
            "do not": "does not",
            "don't": "doesn't",
            "work": "works",
            "belong": "belongs",
            "cost": "costs",
            "start": "starts",
            "end": "ends",
            "expire": "expires",
        }[m[0]],
        f.relative,
    )
    q = w.pick(
        f"who {single}|who {single}|who {f.relative}|tell me who {single}|who all {f.relative}",
        f"{f.ko_that} {neun('사람')} 누구인가요|누가 {f.ko_that} {ga('사람')}인가요|{f.ko_that} {neun('사람')} 누구야|{f.ko_that} 사람의 {reul(label.attribute.korean[0])} 알려줘",
    )
    return q, f"SELECT {label.ident} FROM {w.table.ident}{where(f)};"


SINGLE: tuple[tuple[Callable[[Want], Asked | None], float], ...] = (
    (count, 1.6),
    (show, 2.2),
    (columns, 2.0),
    (distinct, 0.7),
    (aggregate, 1.8),
    (group_count, 1.2),
    (group_measure, 1.2),
    (having, 0.9),
    (which_group, 0.9),
    (top, 2.0),
    (ordered, 1.1),
    (versus_average, 0.5),
    (when, 0.4),
    (by_year, 0.4),
    (how_much, 1.0),
    (one_value, 1.0),
    (unnamed, 0.5),
)
