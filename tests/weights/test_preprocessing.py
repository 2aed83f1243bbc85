"""Tokenizer, processor and pipeline: transformers' own objects, as of its own reading of the folder, nothing left."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import transformers
from PIL import Image

import coldstream
from coldstream.errors import SettingsError, TokenizerError
from tests.support.loads import apart, write
from tests.support.tiny import Tiny
from tests.support.tiny_vision import gemma3_vision

IMAGES = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return gemma3_vision()


@pytest.fixture(scope="module")
def folder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    write(made, tiny, apart)
    config = json.loads((made / "tokenizer_config.json").read_text())
    # As its file says, not as the class of the model's family would build it, which looks for <unk>.
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "extra_special_tokens": IMAGES}
    (made / "tokenizer_config.json").write_text(json.dumps(config))
    (made / "processor_config.json").write_text(json.dumps({"processor_class": "Gemma3Processor"}))
    return made


def places() -> set[Path]:
    """Folders of ours where such folders are made."""
    return {path for place in ("/dev/shm", tempfile.gettempdir()) for path in Path(place).glob("coldstream-*")}


def test_the_tokenizer_is_transformers_own_and_its_folder_is_gone(folder: Path, tmp_path: Path) -> None:
    before = places()
    ours, theirs = coldstream.tokenizer(str(folder)), transformers.AutoTokenizer.from_pretrained(folder)
    assert type(ours) is type(theirs)
    assert ours("hello world").input_ids == theirs("hello world").input_ids
    talk = [{"role": "user", "content": "hello"}]
    assert ours.apply_chat_template(talk, tokenize=False) == theirs.apply_chat_template(talk, tokenize=False)
    assert ours.name_or_path == str(coldstream.open_checkpoint(str(folder)).location)
    assert places() <= before
    ours.save_pretrained(tmp_path)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)("hello").input_ids == ours("hello").input_ids


async def test_inside_a_running_loop_as_a_notebook_has_it(folder: Path) -> None:
    checkpoint = coldstream.open_checkpoint(str(folder))
    assert coldstream.tokenizer(checkpoint)("a").input_ids == coldstream.tokenizer(str(folder))("a").input_ids
    assert coldstream.verify(str(folder)).total_bytes > 0


def test_the_processor_reads_pictures_and_text(folder: Path) -> None:
    made = coldstream.processor(str(folder))
    assert isinstance(made, transformers.Gemma3Processor)
    read: Any = made(text="<start_of_image> hello", images=[Image.new("RGB", (60, 40))], return_tensors="pt")
    assert read["pixel_values"].shape[0] == 1


def test_a_pipeline_answers_as_the_model_does(tmp_path: Path, folder: Path) -> None:
    made = coldstream.pipeline("text-generation", _llama(tmp_path, folder))
    said = made("hello", max_new_tokens=3, do_sample=False, return_full_text=False)
    theirs = transformers.pipeline("text-generation", model=str(tmp_path), dtype="auto")
    assert said == theirs("hello", max_new_tokens=3, do_sample=False, return_full_text=False)


def _llama(folder: Path, files: Path) -> str:
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 131}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=False)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((files / name).read_bytes())
    return str(folder)


def test_what_has_no_effect_or_cannot_be_made_is_refused_by_name(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(SettingsError, match="revision"):
        coldstream.tokenizer(str(folder), revision="main")
    with pytest.raises(SettingsError, match="text-classification"):
        coldstream.pipeline("text-classification", str(folder))  # type: ignore[arg-type]
    broken = _llama(tmp_path, folder)
    (tmp_path / "tokenizer.json").write_text("{")
    before = places()
    with pytest.raises(TokenizerError, match="transformers makes no tokenizer"):
        coldstream.tokenizer(broken)
    assert places() <= before
