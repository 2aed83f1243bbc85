"""A schema with several questions about it: one training example of the SQL model."""

from __future__ import annotations

import random

from sql_joins import JOINED, Pair, through
from sql_questions import SINGLE, Asked, Want, count, show
from sql_schemas import Schema, make_schema

_POLITE = ("please ", "can you ", "could you ", "i want to ", "i'd like to ", "we need to ")


def ask(r: random.Random, schema: Schema, korean: bool) -> Asked | None:
    """One question about the schema; None where this draw made no sense."""
    links = [
        (table, column)
        for table in schema.tables
        for column in table.of("key")
        if column.parent and column.parent.ident
    ]
    if schema.elided:
        w = Want(r, schema, schema.tables[0], korean, plain=True)
        return finish(r, (count if r.random() < 0.6 else show)(w), korean)
    if len(links) > 1 and r.random() < 0.1:
        made = through(r, schema, korean)
    elif links and r.random() < 0.55:
        table, key = r.choice(links)
        makers = [maker for maker, _ in JOINED]
        made = r.choices(makers, [weight for _, weight in JOINED])[0](Pair(r, schema, table, key, korean))
    else:
        single = [maker for maker, _ in SINGLE]
        made = r.choices(single, [weight for _, weight in SINGLE])[0](Want(r, schema, r.choice(schema.tables), korean))
    return finish(r, made, korean) if made else None


def finish(r: random.Random, made: Asked, korean: bool) -> Asked:
    """The question as people type it: with a capital, a mark, a please, or without."""
    question, sql = made
    first = question.split(" ")[0]
    if (
        not korean
        and first in ("show", "list", "find", "count", "get", "give", "display", "calculate", "return")
        and r.random() < 0.12
    ):
        question = r.choice(_POLITE) + question
    if not korean and r.random() < 0.8:
        question = question[0].upper() + question[1:]
    asks = question.lower().startswith(
        ("how", "what", "which", "who", "when", "can you", "could you", "in how", "from how")
    )
    if korean:
        asks = question.endswith(("가요", "은", "는", "나요", "까", "야", "있어"))
    if asks:
        question += r.choice(("?", "?", "?", "?", ""))
    elif question.endswith(("줘", "세요")) or not korean:
        question += r.choice((".", "", ""))
    return question, sql


def example(r: random.Random, questions: int, *, easy: bool = False) -> tuple[Schema, list[Asked]]:
    """A schema and so many different questions, half of them Korean."""
    while True:
        schema = make_schema(r, easy=easy)
        found: dict[str, str] = {}
        for _ in range(3 * questions):
            made = ask(r, schema, r.random() < 0.5)
            if made and len(made[0]) < 200:
                found.setdefault(*made)
            if len(found) == questions:
                break
        if found:
            return schema, list(found.items())
