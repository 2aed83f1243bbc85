"""An answer is right when it is what was asked for, whole, without the prompt, and ended as it says."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from coldstream.demo.questions import DemoAnswer, DemoQuestion, fault, questions
from coldstream.demo.sql_pairs import sql_pairs

EXACT = DemoQuestion({"type": "sql", "inputs": {"context": "C", "question": "Q?"}}, exactly="SELECT 1;")
FREE = DemoQuestion({"type": "text", "prompt": "Why?", "max_tokens": 5}, containing="cause")


def answer(text: str, /, *, reason: str = "stop", tokens: int = 3, **more: Any) -> DemoAnswer:
    details = {"text": text, "finish_reason": reason, "usage": {"completion_tokens": tokens}} | more
    return DemoAnswer(text, 0.1, details)


def test_a_right_answer_has_no_fault() -> None:
    assert fault(EXACT, answer("SELECT 1;")) is None
    assert fault(FREE, answer("Because.")) is None
    assert fault(FREE, answer("Because", reason="length", tokens=5)) is None


@pytest.mark.parametrize(
    ("question", "given", "why"),
    [
        (EXACT, answer("SELECT 1"), "exactly"),
        (EXACT, answer("SELECT 1;", reason="length"), "ends its turn"),
        (FREE, answer("No idea"), "'cause'"),
        (DemoQuestion({"prompt": "x"}), answer(" \n"), "empty"),
        (FREE, answer("Why? Because."), "begins with the prompt"),
        (FREE, answer("<|im_start|>user\nWhy? Because."), "begins with the prompt"),
        (FREE, answer("Because.", text="Since."), "another one"),
        (FREE, answer("Because.", reason="error"), "'error'"),
        (FREE, answer("Because.", reason="stop", tokens=5), "5 of at most 5"),
        (FREE, answer("Because.", reason="length", tokens=4), "4 of at most 5"),
    ],
)
def test_a_wrong_answer_is_told_from_a_right_one(question: DemoQuestion, given: DemoAnswer, why: str) -> None:
    assert why in (fault(question, given) or "")


def test_the_questions_cover_every_task_and_hold_the_requests_that_users_send() -> None:
    bodies = [question.body for question in questions()]
    assert {body["type"] for body in bodies} == {"text", "sql", "product"}
    assert {"type": "text", "prompt": "Google Cloud Run의 장점은 무엇인가요?", "max_tokens": 150} in bodies
    assert {"type": "product", "prompt": "test", "max_tokens": 1000} in bodies


def test_the_first_sql_pair_is_the_donor_example_word_by_word() -> None:
    assert sql_pairs()[0].context == (
        "CREATE TABLE Donor (DonorID int, DonorName varchar(50), Country varchar(50)); "
        "INSERT INTO Donor VALUES (1, 'John Smith', 'USA'), (2, 'Jane Smith', 'Canada');"
    )
    assert sql_pairs()[0].question == "What is the total amount donated by each donor in the US?"
    assert questions()[0].exactly == (
        "SELECT DonorName, SUM(DonationAmount) as TotalDonated FROM Donor JOIN Donation "
        "ON Donor.DonorID = Donation.DonorID WHERE Country = 'USA' GROUP BY DonorName;"
    )


def test_the_curl_line_survives_a_shell_with_its_quotes_and_korean() -> None:
    for question in questions():
        words = shlex.split(question.curl("http://127.0.0.1:8080"))
        assert words[2] == "http://127.0.0.1:8080/generate"
        assert json.loads(words[-1]) == question.body


def test_no_question_is_taught_two_answers() -> None:
    asked = [(pair.context, pair.question) for pair in sql_pairs()]
    assert len(asked) == len(set(asked)) >= 60
    assert sum(not pair.question.isascii() for pair in sql_pairs()) >= 15
