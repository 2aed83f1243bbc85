"""What the fuzzers (fuzz/) were given and found, replayed."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[2] / "fuzz"
CORPORA = {"header": FUZZ / "corpus", "body": FUZZ / "bodies"}
FOUND = [(name, path) for name, folder in CORPORA.items() for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def fuzzers() -> dict[str, Callable[[bytes], None]]:
    return {name: runpy.run_path(str(FUZZ / f"{name}.py"))["one"] for name in CORPORA}


@pytest.mark.parametrize("name", CORPORA)
def test_there_is_a_corpus(name) -> None:
    assert len(list(CORPORA[name].iterdir())) > 20


@pytest.mark.parametrize(("name", "path"), FOUND, ids=lambda item: item.name if isinstance(item, Path) else item)
def test_the_fuzzer_finds_nothing_in_its_corpus(fuzzers, name, path) -> None:
    fuzzers[name](path.read_bytes())
