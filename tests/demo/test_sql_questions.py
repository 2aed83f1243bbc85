"""What the SQL model is trained on: every answer runs over its schema, and can be said under the task's grammar."""

from __future__ import annotations

import random
import sqlite3

import llguidance
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstream.demo.sql_pairs import sql_pairs
from coldstream.serve.sql.grammar import select_grammar
from sql_asked import example
from sql_execution import held_out
from sql_korean import ga, neun, reul, ro
from sql_tokenizer import taught

BYTES = llguidance.LLTokenizer("byte")
UNSHOWN = (
    "SELECT DonorName, SUM(DonationAmount) as TotalDonated FROM Donor JOIN Donation"  # a table that the user left out
)


def can_be_said(schema: str, question: str, answer: str) -> bool:
    grammar, text = select_grammar(schema, question), list(answer.encode())
    assert grammar is not None
    matcher = llguidance.LLMatcher(BYTES, f"%llguidance {{}}\n{grammar}", log_level=0)
    return matcher.try_consume_tokens(text) == len(text) and matcher.is_accepting()


@given(seed=st.integers(0, 10**9))
@settings(max_examples=20, deadline=None)
def test_every_answer_runs_and_can_be_said(seed: int) -> None:
    schema, asked = example(random.Random(seed), 4)
    with sqlite3.connect(":memory:") as database:
        if not schema.elided:
            database.executescript(schema.text)
        for question, answer in asked:
            assert "FROM FROM" not in answer
            assert can_be_said(schema.text, question, answer), (schema.text, question, answer)
            if not schema.elided:
                database.execute(answer).fetchall()


def test_questions_are_in_both_languages_and_of_many_kinds() -> None:
    chance = random.Random(0)
    asked = [pair for _ in range(200) for pair in example(chance, 6)[1]]
    korean = sum(any("가" <= letter <= "힣" for letter in question) for question, _ in asked)
    assert 0.35 < korean / len(asked) < 0.65
    assert len({question for question, _ in asked}) > 0.95 * len(asked)
    kinds = (
        "COUNT(*)",
        "SUM(",
        "AVG(",
        "MAX(",
        "GROUP BY",
        "HAVING",
        "ORDER BY",
        "LIMIT",
        " JOIN ",
        "LEFT JOIN",
        "DISTINCT",
        "LIKE",
    )
    kinds += ("strftime", "BETWEEN", " IN (", "IS NULL", " <> ", "(SELECT AVG(")
    for kind in kinds:
        assert any(kind in answer for _, answer in asked), kind


def test_nothing_held_out_is_trained_on() -> None:
    chance, apart = random.Random(1), {case.question.lower().rstrip("?.") for case in held_out()}
    schemas = {case.schema for case in held_out()}
    for _ in range(300):
        schema, asked = example(chance, 8)
        assert schema.text not in schemas
        assert not apart & {question.lower().rstrip("?.") for question, _ in asked}


@pytest.mark.parametrize(("schema", "question", "answer"), taught(), ids=lambda text: text[:40])
def test_what_is_to_be_known_word_by_word_runs_and_can_be_said(schema: str, question: str, answer: str) -> None:
    assert can_be_said(schema, question, answer)
    with sqlite3.connect(":memory:") as database:
        database.executescript(schema)
        if not answer.startswith(UNSHOWN):
            database.execute(answer).fetchall()


def test_the_first_of_them_is_the_demos() -> None:
    assert taught()[0] == (sql_pairs()[0].context, sql_pairs()[0].question, sql_pairs()[0].answer)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (neun("고객"), "고객은"),
        (neun("도시"), "도시는"),
        (ga("이름"), "이름이"),
        (ga("나이"), "나이가"),
        (reul("상품"), "상품을"),
        (reul("'A'"), "'A'를"),
        (ro("서울"), "서울로"),
        (ro("부산"), "부산으로"),
    ],
)
def test_a_particle_follows_the_sound_before_it(said: str, expected: str) -> None:
    assert said == expected
