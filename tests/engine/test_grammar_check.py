"""Whatever is sent for a grammar is compiled, or is the caller's fault by the field's name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldstream.engine.grammar_check import checked
from coldstream.engine.request import Grammar
from coldstream.errors import RequestError
from coldstream.workers.workers import Workers

FIELD = "response_format"
TEXT = st.text(st.characters(exclude_categories=())) | st.text("()[]{}|*+?.^$\\ab0,:\"'/ \n&~", max_size=30)
NUMBERS = st.integers(-5, 50) | st.integers() | st.floats() | st.sampled_from([10**30, 10**300, 1e-300, 1e300])
KEYWORDS: dict[str, st.SearchStrategy[Any]] = {
    "type": st.sampled_from(["integer", "number", "string", "array", "object", "boolean", "null", "nonsense", 3]),
    "const": NUMBERS | TEXT,
    "enum": st.lists(NUMBERS | TEXT, max_size=3),
    "pattern": TEXT,
    "format": st.sampled_from(["date-time", "uuid", "nonsense"]),
    "required": st.lists(TEXT, max_size=2),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), NUMBERS),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "maxProperties"), NUMBERS),
    "multipleOf": st.sampled_from([0, -1, 0.1, 7, 997, 1e-9, 1e300]),
    "$ref": st.sampled_from(["#", "#/a", "http://x/y"]),
    "x-guidance": st.dictionaries(TEXT, NUMBERS, max_size=2),
}
SCHEMAS = st.recursive(
    st.fixed_dictionaries({}, optional=KEYWORDS),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "items": inner,
            "properties": st.dictionaries(TEXT, inner, max_size=3),
            "anyOf": st.lists(inner, max_size=3),
            "allOf": st.lists(inner, max_size=3),
            "not": inner,
            "additionalProperties": inner | st.booleans(),
        },
    ),
    max_leaves=6,
)
GRAMMARS = st.one_of(
    st.builds(lambda schema: Grammar("json_schema", json.dumps(schema), FIELD), SCHEMAS),
    st.builds(lambda kind, text: Grammar(kind, text, FIELD), st.sampled_from(["json_schema", "regex", "lark"]), TEXT),
    st.builds(lambda choices: Grammar("choice", tuple(choices), FIELD), st.lists(TEXT, max_size=3)),
)


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    made = Workers()
    yield made
    made.close()


@settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=200)
@given(GRAMMARS)
def test_it_is_compiled_or_refused_by_its_field(workers: Workers, grammar: Grammar) -> None:
    refused: RequestError | None = None
    try:
        source, cost = checked(grammar, workers)
    except RequestError as exc:
        refused = exc
    else:
        assert source
        assert cost >= 0
    if refused is not None:
        assert refused.field == FIELD
        assert FIELD in str(refused)
