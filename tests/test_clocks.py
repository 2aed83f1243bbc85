"""No test asserts on a wall clock: what is slow on a busy machine is not wrong, and a hang ends by the timeout."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
CLOCKS = {"monotonic", "perf_counter", "monotonic_ns", "perf_counter_ns", "time", "time_ns"}


def calls(node: ast.AST) -> Iterator[str]:
    """The functions of `time` that are called in it."""
    for inner in ast.walk(node):
        match inner:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="time"), attr=name)):
                yield name


def test_no_assertion_reads_a_clock() -> None:
    found = [
        f"{path.relative_to(TESTS)}:{node.lineno}"
        for path in sorted(TESTS.rglob("*.py"))
        if "node_modules" not in path.parts and "import time" in (text := path.read_text("utf-8"))
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Assert) and CLOCKS & set(calls(node))
    ]
    assert found == []
