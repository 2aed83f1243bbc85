"""What the fuzzer (fuzz/header.py) was given and found, replayed."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[2] / "fuzz"
CORPUS = sorted((FUZZ / "corpus").iterdir())


def test_there_is_a_corpus() -> None:
    assert len(CORPUS) > 20


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_the_fuzzer_finds_nothing_in_its_corpus(path: Path) -> None:
    one = runpy.run_path(str(FUZZ / "header.py"))["one"]
    one(path.read_bytes())
