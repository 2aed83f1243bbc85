"""The smoke test's judgement, its questions, and what it waits for."""

from __future__ import annotations

import pytest

from coldstream.deploy import smoke
from coldstream.deploy.smoke import Question, problem
from coldstream.errors import DeployError
from coldstream.settings import InputSettings, ModelSettings, Settings, SmokeSettings, TaskSettings

QUESTION = Question("text", {"prompt": "What is the capital of France?"}, None)

TASKS = {
    "sql": TaskSettings(
        name="sql",
        model="m",
        prompt="{context} {question} {dialect}",
        prompt_input="question",
        inputs={
            "dialect": InputSettings(kind="choice", choices=("SQLite", "MySQL")),
            "context": InputSettings(default="CREATE TABLE t (a int)"),
        },
    ),
    "look": TaskSettings(name="look", model="m", images=1, inputs={"photo": InputSettings(kind="image")}),
    "compare": TaskSettings(name="compare", model="m", images=3, inputs={"photo": InputSettings(kind="image")}),
    "pick": TaskSettings(
        name="pick",
        model="m",
        prompt="{color}",
        prompt_input="color",
        inputs={"color": InputSettings(kind="choice", choices=("red", "blue"))},
    ),
}
SETTINGS = Settings(models={"m": ModelSettings(name="m", uri="gs://a/b")}, tasks=TASKS)


@pytest.mark.parametrize(
    "text",
    [
        "Paris",
        "Paris is the capital of France.",
        "SELECT COUNT(*) FROM t;",
        "프랑스의 수도는 파리입니다.",
        "🇫🇷 Paris",
        "no no, the the answer is that it is Paris, the capital of the French Republic, since 987",
        "1\n2\n3\n4",
    ],
)
def test_an_answer_is_an_answer(text: str) -> None:
    assert problem(QUESTION, text) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("  \n ", "empty"),
        (None, "not a string"),
        ({"text": "Paris"}, "not a string"),
        (QUESTION.prompt, "the prompt itself"),
        ("\ufffd\ufffd\ufffd abc", "unreadable"),
        ("\x00\x01\x02\x03", "unreadable"),
        ("la " * 30, "repeats itself"),
        ("!" * 64, "repeats itself"),
        ("ab" * 40, "repeats itself"),
    ],
)
def test_nonsense_is_named(text: object, why: str) -> None:
    assert why in str(problem(QUESTION, text))


def test_an_expected_word_must_be_in_the_answer() -> None:
    asked = Question("sql", {}, "SELECT")
    assert problem(asked, "SELECT 1;") is None
    assert "lacks 'SELECT'" in str(problem(asked, "I do not know"))


def test_every_task_is_asked_with_its_defaults_choices_and_a_picture() -> None:
    sql, look, compare, pick = smoke.questions(SETTINGS, {})
    assert sql.body["inputs"] == {"context": "CREATE TABLE t (a int)", "dialect": "SQLite"}
    assert sql.body["prompt"] == smoke.PROMPT
    assert look.body["inputs"]["photo"].startswith("data:image/png;base64,")
    assert "images" not in look.body
    assert len(compare.body["images"]) == 2
    assert pick.body["prompt"] == "red"


def test_the_settings_own_question_wins() -> None:
    wanted = SmokeSettings(inputs={"question": "How many?", "context": "t"}, expect="SELECT")
    sql, *_ = smoke.questions(SETTINGS, {"sql": wanted})
    assert sql.body["inputs"] == {"context": "t", "dialect": "SQLite", "question": "How many?"}
    assert "prompt" not in sql.body
    assert sql.expect == "SELECT"


def test_a_smoke_test_for_a_task_that_is_not_there_is_refused() -> None:
    with pytest.raises(DeployError, match=r"deploy\.smoke\.sqll: no such task; the tasks are compare, look, pick, sql"):
        smoke.questions(SETTINGS, {"sqll": SmokeSettings()})
