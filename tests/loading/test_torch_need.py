"""What needs torch says so, with the line that installs it, where there is none; and nothing else asks for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from coldstream.loading.torch_need import expects_torch
from coldstream.settings import ModelSettings
from tests.support import tiny

# A finder that has no torch: what `pip install coldstream` leaves.
WITHOUT = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Without())
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torch" else find(name, package)
import asyncio
from coldstream.errors import ColdstreamError
"""
LOAD = """
from coldstream.loading.loader import load
from coldstream.settings import EngineSettings, ModelSettings, Settings
model = ModelSettings("m", sys.argv[1], device=sys.argv[2], precision=sys.argv[3])
try:
    loaded = asyncio.run(load(model, Settings({"m": model}, {}, engine=EngineSettings(kv_bytes=4_000_000, threads=1))))
except ColdstreamError as exc:
    print(type(exc).__name__, exc)
else:
    print("loaded", loaded.plan.precision, "torch" in sys.modules)
    loaded.close()
"""


def said(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + code, *arguments], capture_output=True, text=True, timeout=110, check=True
    )
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.parts import tokenizer_files

    path, made = tmp_path_factory.mktemp("model"), tiny.llama(vocab_size=300)
    save_file({name: tensor.contiguous() for name, tensor in made.tensors.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(made.config))
    for name, content in tokenizer_files().items():
        (path / name).write_bytes(content)
    return path


@pytest.mark.parametrize("precision", ["auto", "int8", "float32"])
def test_a_cpu_needs_none(folder: Path, precision: str) -> None:
    assert said(LOAD, str(folder), "auto", precision).split()[0::2] == ["loaded", "False"]


@pytest.mark.parametrize(
    ("device", "precision", "named"),
    [
        ("cpu", "bfloat16", "MissingExtra precision bfloat16 on cpu needs torch; run: pip install 'coldstream[torch]'"),
        ("cuda", "auto", "pip install 'coldstream[torch]'"),
    ],
)
def test_what_needs_it_says_what_to_install(folder: Path, device: str, precision: str, named: str) -> None:
    assert named in said(LOAD, str(folder), device, precision)


def test_an_architecture_of_transformers_is_refused_by_its_name(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "Phi3ForCausalLM" in said(LOAD, str(tmp_path), "cpu", "auto")


def test_the_library_s_torch_tensors_say_so_and_numpy_s_come_without(folder: Path) -> None:
    code = """
import coldstream
print(len(dict(coldstream.iter_tensors(sys.argv[1], framework="numpy"))))
try:
    coldstream.load_state_dict(sys.argv[1])
except ColdstreamError as exc:
    print(type(exc).__name__, exc)
"""
    count, error = said(code, str(folder)).splitlines()
    assert int(count) > 10
    assert error.startswith("MissingExtra")
    assert "pip install 'coldstream[torch]'" in error


@pytest.mark.parametrize(
    ("model", "expects"),
    [
        (ModelSettings("m", "u", precision="int8"), False),
        (ModelSettings("m", "u", device="cpu"), False),
        (ModelSettings("m", "u", device="cpu", precision="bfloat16"), True),
        (ModelSettings("m", "u", device="cuda"), True),
    ],
)
def test_settings_say_when_torch_is_imported_beside_the_listing(model: ModelSettings, expects: bool) -> None:
    assert expects_torch(model) is expects
