"""The quality bench: a model is not worse than itself, int8 is a little, and a broken one fails the targets."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from coldstream.bench.quality import TEXTS, Quality, TextQuality, read_texts, run_quality
from coldstream.errors import TokenizerError
from tests.support import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 3 with a tokenizer of single characters."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("model")
    made = tiny.gemma3()
    (path / "config.json").write_text(json.dumps(made.config, default=str))
    save_file({name: tensor.contiguous() for name, tensor in made.tensors.items()}, path / "model.safetensors")
    vocabulary = {chr(32 + index): index for index in range(128)} | {"?": 130}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def test_a_model_is_as_good_as_itself(folder: Path) -> None:
    result = run_quality(str(folder), precision="float32", tokens=20)
    assert [item.text for item in result.texts] == list(TEXTS)
    assert (result.mean_kl, result.top1_agreement, result.perplexity_rise) == (0.0, 1.0, 0.0)
    assert result.is_good


def test_int8_differs_a_little(folder: Path) -> None:
    result = run_quality(str(folder), precision="int8", tokens=70, texts={"one": "SELECT a FROM b WHERE c " * 4})
    assert 0 < result.mean_kl < 0.05
    assert result.texts[0].tokens == 69


def test_a_checkpoint_without_a_tokenizer_is_named(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        run_quality(str(tmp_path))


def test_either_target_missed_is_not_good() -> None:
    def quality(kl: float, rise: float) -> Quality:
        text = TextQuality("one", 10, kl, kl, 1.0, 10 * (1 + rise), 10.0)
        return Quality("u", "int8", (text,))

    assert quality(0.019, 0.009).is_good
    assert not quality(0.021, 0.0).is_good
    assert not quality(0.0, 0.011).is_good
    assert math.isclose(quality(0.0, 0.011).perplexity_rise, 0.011, rel_tol=1e-3)


def test_the_texts_come_with_the_package() -> None:
    assert all(len(text) > 500 for text in read_texts().values())
