"""The whole way: a checkpoint that sees, streamed and assembled by the real start, asked over HTTP with a photo."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from coldstream.serve.startup import Startup
from coldstream.settings import EngineSettings, ModelSettings, Settings, TaskSettings
from coldstream.timeline import Timeline
from tests.engine.vision.test_encoder import TURN, backend
from tests.support.tiny import Tiny
from tests.support.tiny_vision import SIZE, TOKENS, file_names, gemma3_vision, photo

PROMPT = "what is it?"


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return gemma3_vision()


@pytest.fixture(scope="module")
def folder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As transformers 4.57 would have saved it."""
    path = tmp_path_factory.mktemp("seeing")
    tensors = {name: tensor.contiguous() for name, tensor in file_names(tiny.tensors, "4.57").items()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(tiny.config))
    (path / "tokenizer.json").write_text(backend().to_str())
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "chat_template": TURN}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    transformers.Gemma3ImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(path)
    return path


@pytest.fixture
async def seeing(folder: Path, serve) -> AsyncIterator:
    async for served in started(folder, serve):
        yield served


async def started(folder: Path, serve) -> AsyncIterator:
    settings = Settings(
        {"m": ModelSettings("m", str(folder), precision="float32")},
        {"look": TaskSettings("look", "m", images=1), "text": TaskSettings("text", "m")},
        engine=EngineSettings(kv_bytes=4_000_000, threads=1),
    )
    startup = Startup(settings, Timeline(), on_change=lambda: None)
    startup.begin()
    try:
        yield await serve(startup.models, settings)
    finally:
        startup.end()


def expected(tiny: Tiny, number: int, steps: int) -> list[int]:
    """The ids that transformers generates greedily from the same picture and prompt, through its own processor."""
    extra = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend(), bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", extra_special_tokens=extra
    )
    processor = transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessor(size={"height": SIZE, "width": SIZE}), fast, image_seq_length=TOKENS
    )
    text = f"<bos><start_of_image>{PROMPT}"
    inputs = processor(text=text, images=[photo(number)], return_tensors="pt", add_special_tokens=False)
    made: list[int] = []
    with torch.inference_mode():
        while len(made) < steps:
            made.append(int(tiny.model(**inputs).logits[0, -1].argmax()))
            if made[-1] == 1:  # <eos>
                return made[:-1]
            new = torch.tensor([[made[-1]]])
            inputs["input_ids"] = torch.cat((inputs["input_ids"], new), 1)
            for name in ("attention_mask", "token_type_ids"):
                inputs[name] = torch.cat((inputs[name], torch.full_like(new, int(name == "attention_mask"))), 1)
    return made


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    photo(number).save(buffer, "PNG")
    return buffer.getvalue()


async def test_a_photo_is_answered_as_transformers_answers_it(seeing, tiny: Tiny) -> None:
    body = {"type": "look", "prompt": PROMPT, "max_tokens": 6, "details": True}
    want = {number: expected(tiny, number, 6) for number in (1, 2)}
    assert want[1] != want[2]
    for number in (1, 2, 1):
        image = base64.b64encode(png(number)).decode()
        answer = await seeing.client.post("/generate", json={**body, "image": image}, timeout=60)
        assert answer.status_code == 200, answer.text
        assert answer.json()["text"] == backend().decode(want[number], skip_special_tokens=True)


async def test_text_is_answered_beside_it(seeing) -> None:
    answer = await seeing.client.post(
        "/generate", json={"type": "text", "prompt": "hello", "max_tokens": 3}, timeout=60
    )
    assert answer.status_code == 200, answer.text


@pytest.fixture
async def blind(folder: Path, tmp_path: Path, serve) -> AsyncIterator:
    """The same checkpoint as a trainer saves it that never saw an image: without the tower's tensors."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    tensors = {name: item for name, item in load_file(folder / "model.safetensors").items() if "language" in name}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    async for served in started(tmp_path, serve):
        yield served


async def test_without_its_tower_text_is_served_images_are_refused_and_the_load_s_state_says_so(blind) -> None:
    answer = await blind.client.post("/generate", json={"type": "text", "prompt": "hello", "max_tokens": 3}, timeout=60)
    assert answer.status_code == 200, answer.text
    body = {"type": "look", "prompt": PROMPT, "image": base64.b64encode(png(1)).decode()}
    refused = await blind.client.post("/generate", json=body, timeout=60)
    assert refused.status_code == 422
    assert "text only" in refused.text
    (warning,) = blind.state.models["m"].load.as_json()["warnings"]
    assert "vision_config" in warning
