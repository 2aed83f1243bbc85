"""Schemathesis against /openapi.json: whatever a request looks like, the answer is one that the document announces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from coldstream.serve.health import PROBES
from coldstream.settings import InputSettings, ModelSettings, Settings, TaskSettings
from tests.support.production import stack
from tests.support.scripted import LetterTokenizer, ScriptedEngine, ScriptedModel

CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
)
SQL = TaskSettings("sql", "default", prompt="{a} {b}", prompt_input="a", inputs={"b": InputSettings(default="x")})


PATHS = ("/generate", "/v1/chat/completions", "/v1/completions", "/v1/responses")
READS = ("/v1/models", "/v1/models/{name}", "/v1/tasks", "/v1/tasks/{task}/inputs/{name}", "/metrics", *sorted(PROBES))


@pytest.fixture
def api() -> Iterator[Any]:
    engine = ScriptedEngine()
    model = ScriptedModel(engine, tokenizer=LetterTokenizer(tools=True))
    known = Settings(
        {"default": ModelSettings("default", "gs://b/m")}, {"sql": SQL, "text": TaskSettings("text", "default")}
    )
    yield schemathesis.openapi.from_asgi("/openapi.json", stack(model, known).open().surface)
    engine.close()


def ask(operation: Any, mode: GenerationMode, examples: int) -> None:
    """Send so many random requests, and hold every answer against the document."""

    @given(operation.as_strategy(generation_mode=mode))
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def sends(case: Any) -> None:
        if isinstance(case.body, dict):
            for field, name in (("model", "default"), ("type", "sql")):
                # No fuzzer guesses a model's name; what the rest of a body does is worth more than a 404.
                if isinstance(case.body.get(field), str) and len(case.body[field]) in range(1, 1024, 2):
                    case.body[field] = name
            case.body.pop("inputs", None)  # random names of inputs are refused, whatever else a body holds
        case.call_and_validate(checks=CHECKS)

    sends()


@pytest.mark.more
@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("path", PATHS)
def test_every_answer_to_a_question_is_one_that_the_document_announces(api, path, mode) -> None:
    ask(api[path]["POST"], mode, 30)


@pytest.mark.parametrize("path", READS)
def test_every_read_is_answered_as_the_document_announces(api, path) -> None:
    ask(api[path]["GET"], GenerationMode.POSITIVE, 5)


def test_the_document_announces_nothing_that_is_not_tested_here(api) -> None:
    assert {operation.ok().path for operation in api.get_all_operations()} == {*PATHS, *READS}
