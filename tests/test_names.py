"""Names: no public class has the name of another one, so that a name in a traceback or an import says which it is; and
what a comment says acts is a thing that has a name (a thread, a request, a caller)."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = ("src", "tests", "bench", "docker", "fuzz", "tools")
SOURCE = ROOT / "src" / "coldstream"
UNNAMED = re.compile(r"(?i)\b(whoever|nobody|somebody)")


def test_no_public_class_has_the_name_of_another_one() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(path.relative_to(SOURCE).as_posix())
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}


def prose(text: str) -> Iterator[tuple[int, str]]:
    """A module's comments and docstrings, those behind a field too, each with its first line's number."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def test_who_acts_in_a_comment_has_a_name() -> None:
    found = []
    for path in (path for folder in CODE for path in sorted((ROOT / folder).rglob("*.py"))):
        text = path.read_text("utf-8")
        if "node_modules" not in path.parts and UNNAMED.search(text):  # reading them all as Python takes seconds
            found += [f"{path}:{line}: {said:.100}" for line, said in prose(text) if UNNAMED.search(said)]
    assert found == []
