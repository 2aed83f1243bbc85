"""A tiny checkpoint that sees, in the files that a test wants, and networks that hold them back or damage them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

from tests.engine.vision.test_encoder import TURN, backend
from tests.support.proxy import Trouble
from tests.support.tiny import Tiny
from tests.support.tiny_vision import SIZE, file_names

TEXT_1, TEXT_2, TOWER = (f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))


def is_tower(name: str) -> bool:
    return "vision_tower" in name or "multi_modal_projector" in name


def write(folder: Path, tiny: Tiny, file_of: Callable[[str], str]) -> None:
    """As transformers 5.23 would have saved it, in the files that `file_of` names."""
    tensors = {name: tensor.contiguous() for name, tensor in file_names(tiny.tensors, "5.23").items()}
    index = {name: file_of(name) for name in tensors}
    for file in set(index.values()):
        mine = {name: tensor for name, tensor in tensors.items() if index[name] == file}
        save_file(mine, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps(tiny.config))
    (folder / "tokenizer.json").write_text(backend().to_str())
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "chat_template": TURN}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    transformers.Gemma3ImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)


def apart(name: str) -> str:
    if is_tower(name):
        return TOWER
    return TEXT_1 if "embed_tokens" in name or ".layers.0." in name else TEXT_2


def mixed(name: str) -> str:
    """The last layer lies with the tower."""
    return TOWER if ".layers.6." in name else apart(name)


def tower_start(file: Path) -> int:
    """The byte at which the first of the tower's tensors lies."""
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    return 8 + size + min(item["data_offsets"][0] for name, item in header.items() if is_tower(name))


def reads_of(path: str, span: tuple[int, int] | None, *files: str) -> bool:
    """Whether this is a read of those files' tensors; headers are read from 0 on."""
    return path.split("?")[0].endswith(files) and span is not None and span[0] > 0


class Wait:
    """What is read of a file, from byte `start` on, waits for `now`, and then passes, or meets `then`."""

    def __init__(self, file: str, *, start: int = 0, then: Trouble | None = None) -> None:
        self.now, self._file, self._start, self._then = threading.Event(), file, start, then

    def __call__(self, path: str, span: tuple[int, int] | None) -> Trouble | None:
        if not reads_of(path, span, self._file) or span is None or span[0] < self._start:
            return None
        return replace(self._then or Trouble("call"), action=lambda: self.now.wait(60) and None)


class Once:
    """The first read of a file is damaged; what is read a second time waits for `now`."""

    def __init__(self, file: str) -> None:
        self.now, self._file, self._seen = threading.Event(), file, set[tuple[int, int]]()

    def __call__(self, path: str, span: tuple[int, int] | None) -> Trouble | None:
        if not reads_of(path, span, self._file) or span is None:
            return None
        if span in self._seen:
            return Trouble("call", action=lambda: self.now.wait(60) and None)
        self._seen.add(span)
        return Trouble("corrupt", at=100) if len(self._seen) == 1 else None


def said(tiny: Tiny, prompt: str, steps: int) -> str:
    """What transformers answers greedily."""
    ids = [2, *backend().encode(prompt).ids]
    made: list[int] = []
    with torch.inference_mode():
        while len(made) < steps and (not made or made[-1] != 1):
            made.append(int(tiny.model(input_ids=torch.tensor([ids + made])).logits[0, -1].argmax()))
    return backend().decode(made, skip_special_tokens=True)
