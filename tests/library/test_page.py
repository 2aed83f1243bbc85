"""docs/library.md: every block of Python runs as it stands, on a small checkpoint in place of the bucket's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers

from tests.test_documents import blocks

CHAT = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}\n{% endfor %}"
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose tokens are bytes."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, vocab_size=258, bos_token_id=0, eos_token_id=1)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1} | {letter: place + 2 for place, letter in enumerate(alphabet)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>"])
    made.save(str(folder / "tokenizer.json"))
    said = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": CHAT,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return folder


BLOCKS = [code for name, code in blocks("python") if name == "library.md"]


def test_there_are_blocks() -> None:
    assert sum("coldstream.LLM(" in code for code in BLOCKS) >= 2


@pytest.mark.more
@pytest.mark.parametrize("code", BLOCKS)
def test_a_block_runs(model: Path, code: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", code.replace("gs://bucket/model", str(model))],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout
