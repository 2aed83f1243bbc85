"""Tiny checkpoints in folders, their packed copies, and stores in memory that hold both."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from coldstream.pack.pack import PackReport, pack
from coldstream.weights.packed.forms import CPU_INT8
from coldstream.weights.packed.opening import CopyPlace, WithCopy, open_with_copy
from tests.support.fault_stores import MemoryStore
from tests.support.tiny import Tiny

MANIFEST = f"{CPU_INT8}.json"
TEXT = f"{CPU_INT8}-text.safetensors"


def write(folder: Path, tiny: Tiny, *, shards: int = 1, tensors: Mapping[str, Tensor] | None = None) -> Path:
    """A checkpoint's folder, in one file or several with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    held = {name: tensor.contiguous() for name, tensor in (tensors or tiny.tensors).items()}
    (folder / "config.json").write_text(json.dumps(tiny.config))
    if shards == 1:
        save_file(held, folder / "model.safetensors")
        return folder
    file_of = {name: f"model-{number % shards}.safetensors" for number, name in enumerate(held)}
    for file in set(file_of.values()):
        save_file({name: held[name] for name in held if file_of[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": file_of}))
    return folder


def packed(folder: Path, destination: Path | None = None, *, again: bool = False) -> PackReport:
    return asyncio.run(pack(str(folder), None if destination is None else str(destination), again=again))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def opened(source: MemoryStore, copy: MemoryStore, *, is_named: bool = False) -> WithCopy:
    """By two stores in memory."""
    place = CopyPlace(copy.location, CPU_INT8, is_named=is_named, store=copy)
    return asyncio.run(open_with_copy(source.location, place, store=source))
