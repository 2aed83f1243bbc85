"""The demo's SQL model through the server: questions that it was not trained on, held against SQLite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

import coldstream.demo
from coldstream import settings
from coldstream.demo.sql_pairs import sql_pairs
from sql_execution import HeldOut, held_out, is_right
from tests.support.serving import Served, serving

DEMO = Path(coldstream.demo.__file__).parent


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The model with the demo's own task."""
    text = (DEMO / "coldstream.toml").read_text(encoding="utf-8")
    if settings.load(DEMO / "coldstream.toml").tasks["sql"].sql_schema is None:
        pytest.skip("the demo's model knows its own questions only: docs/lab/2026-11-30-sql-model.md")
    sql = text[text.index("[tasks.sql]") : text.index("[tasks.product]")]
    file = tmp_path_factory.mktemp("sql") / "coldstream.toml"
    file.write_text(
        f'[server]\naccess_log = false\n[models.sql]\nuri = "{DEMO / "sql_model"}"\n{sql}', encoding="utf-8"
    )
    with serving("--config", str(file)) as started:
        yield started


def ask(server: Served, schema: str, question: str) -> str:
    """What POST /generate answers."""
    body = {"type": "sql", "prompt": question, "inputs": {"context": schema}}
    return str(httpx2.post(f"{server.url}/generate", json=body, timeout=60).json())


@pytest.mark.more
def test_most_of_the_held_out_questions_are_answered_rightly_in_both_languages(server: Served) -> None:
    chosen = held_out()[::5]
    assert len(chosen) == 40
    answers = [(case, ask(server, case.schema, case.question)) for case in chosen]
    wrong = [(case.question, answer) for case, answer in answers if not is_right(case, answer)]
    assert len(wrong) <= WRONG, wrong
    assert not [answer for _, answer in answers if "FROM FROM" in answer]


WRONG = 6
"""Of forty; the aim is that 85 in 100 are right."""


@pytest.mark.more
def test_what_the_readme_shows_is_answered(server: Served) -> None:
    assert ask(server, "CREATE TABLE Donor (...)", "How many donors are there?") == "SELECT COUNT(*) FROM Donor;"


@pytest.mark.more
@pytest.mark.parametrize("layout", ["{}", "{}\n", " {}"])
def test_the_stored_answers_come_word_by_word(server: Served, layout: str) -> None:
    wrong = [
        (pair.question, answer)
        for pair in sql_pairs()
        if (answer := ask(server, layout.format(pair.context), pair.question)) != pair.answer
    ]
    assert not wrong


def test_the_held_out_questions_are_many_and_in_two_languages() -> None:
    cases = held_out()
    assert len(cases) == 200
    assert len({case.schema for case in cases}) == 20
    assert sum(not case.question.isascii() for case in cases) == 100
    assert all(is_right(case, right) for case in cases for right in case.right)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("SELECT Count(*) FROM wines;", True),
        ("SELECT COUNT(*) FROM wines WHERE price > 10;", False),
        ("SELECT COUNT(*) FROM FROM wines;", False),
        ("DROP TABLE wines;", False),
        ("", False),
    ],
)
def test_an_answer_is_held_against_what_the_database_returns(answer: str, right: bool) -> None:
    assert is_right(held_out()[0], answer) is right


def test_rows_are_in_order_only_where_the_question_wants_an_order() -> None:
    schema = "CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER);"
    free, ordered = "SELECT n FROM t", "SELECT n FROM t ORDER BY n"
    assert is_right(HeldOut(schema, "", (free,)), ordered)
    assert not is_right(HeldOut(schema, "", (ordered,)), "SELECT n FROM t ORDER BY n DESC")
