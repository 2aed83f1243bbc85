"""/openapi.json says what POST /generate takes: JSON, and the form that stands for it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from coldstream.serve.api.schema import GenerateRequest
from coldstream.serve.app import create_app
from coldstream.serve.images.multipart import parse
from tests.support.production import stack
from tests.support.scripted import ScriptedEngine, ScriptedModel


@pytest.fixture
def form() -> Any:
    """The form's schema, from the document that the server serves."""
    engine = ScriptedEngine()
    made = stack(ScriptedModel(engine))
    body = create_app(made.state, made.metrics).openapi()["paths"]["/generate"]["post"]["requestBody"]
    engine.close()
    assert set(body["content"]) == {"application/json", "multipart/form-data"}
    return body["content"]["multipart/form-data"]["schema"]


def test_the_form_has_the_fields_of_the_json_body(form: Any) -> None:
    assert set(form["properties"]) == set(GenerateRequest.model_fields)


def test_a_form_as_it_is_documented_becomes_a_body_that_is_accepted(form: Any) -> None:
    """Every field once, written as the document says; a photo as a file under the name of its input."""
    written = {"string": "a", "number": "1.0", "integer": "1", "boolean": "true", "object": '{"b": "x"}', "array": "c"}
    parts = {name: written[item["type"]] for name, item in form["properties"].items()}
    (pattern,) = form["patternProperties"]
    assert re.match(pattern, "inputs.photo")
    lines = [f'--x\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{text}\r\n' for key, text in parts.items()]
    photo = '--x\r\nContent-Disposition: form-data; name="inputs.photo"; filename="a.png"\r\n\r\nPNG\r\n--x--\r\n'
    parsed = parse("".join([*lines, photo]).encode(), "multipart/form-data; boundary=x")
    body = GenerateRequest.model_validate(parsed)
    assert body.inputs == {"b": "x", "photo": "UE5H"}
    assert body.images == ["a", "c"]
    assert (body.temperature, body.max_tokens, body.stream) == (1.0, 1, True)
