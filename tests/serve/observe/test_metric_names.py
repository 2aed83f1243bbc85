"""docs/metrics.md names every metric of a server; the dashboard and the alerts ask for no other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from coldstream.engine.stats import Stats
from coldstream.engines.vllm.stats import VllmStats
from tests.support.production import stack
from tests.support.scripted import ScriptedEngine, ScriptedModel

DOCS = Path(__file__).parents[3] / "docs"
NAME = re.compile(r"\bcoldstream_\w+")
SELECTOR = re.compile(r"(coldstream_\w+)\{([^}]*)\}")
LEGEND = re.compile(r"\{\{ ?(?:\$labels\.)?(\w+) ?\}\}")


class NativeEngine(ScriptedEngine):
    """Its stats are the native engine's."""

    def stats(self) -> Any:
        return Stats(**{item.name: 0 for item in fields(Stats)})


class OtherEngine(ScriptedEngine):
    """Its stats are vLLM's."""

    def stats(self) -> Any:
        return VllmStats(**{item.name: 0 for item in fields(VllmStats)})


@pytest.fixture(scope="module")
def families() -> dict[str, Metric]:
    """What /metrics says, by name, of a server with both engines that has answered nothing yet."""
    engines = NativeEngine(list), OtherEngine(list)
    models = {name: ScriptedModel(engine) for name, engine in zip(("native", "vllm"), engines, strict=True)}
    text = stack(models).open().metrics.text().decode()
    for engine in engines:
        engine.close()
    return {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in text_string_to_metric_families(text)
    }


def queries() -> Iterator[tuple[str, str]]:
    """Each query of the dashboard and the alerts, with the text that shows its labels."""
    for panel in json.loads((DOCS / "grafana.json").read_text())["panels"]:
        for target in panel["targets"]:
            yield target["expr"], target["legendFormat"]
    for group in yaml.safe_load((DOCS / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["expr"], rule["annotations"]["summary"]


def family_of(name: str, families: dict[str, Metric]) -> Metric | None:
    """A histogram's samples have names of their own."""
    whole = families.get(re.sub(r"_(bucket|sum|count)$", "", name))
    return whole if whole is not None and whole.type == "histogram" else families.get(name)


def test_the_page_names_each_metric_and_no_other(families: dict[str, Metric]) -> None:
    assert set(NAME.findall((DOCS / "metrics.md").read_text())) == set(families)


def test_every_query_asks_for_metrics_that_there_are(families: dict[str, Metric]) -> None:
    assert len(list(queries())) >= 15
    for expression, _ in queries():
        names = NAME.findall(expression)
        assert names, expression
        assert [name for name in names if family_of(name, families) is None] == [], expression
        if "rate(" in expression or "histogram_quantile" in expression:
            found = [family_of(name, families) for name in names]
            assert {family.type for family in found if family is not None} <= {"counter", "histogram"}, expression


def test_every_label_of_a_query_is_one_that_the_page_names() -> None:
    rows = re.findall(r"^\| `(coldstream_\w+)` \| (?:counter|histogram) \| ([\w, ]+) \|", _page(), re.MULTILINE)
    labels = {name: {*known.split(", "), "le"} for name, known in rows}
    for expression, legend in queries():
        known = set[str]()
        for name in NAME.findall(expression):
            known |= labels.get(re.sub(r"_(bucket|sum|count)$", "", name), {"model"})
        for _, selector in SELECTOR.findall(expression):
            assert set(re.findall(r"(\w+)\s*[!=]", selector)) <= known, expression
        by = {label for group in re.findall(r"by \(([\w, ]+)\)", expression) for label in group.split(", ")}
        assert by <= known, expression
        assert set(LEGEND.findall(legend)) <= (by or known), (expression, legend)


def _page() -> str:
    return (DOCS / "metrics.md").read_text()
