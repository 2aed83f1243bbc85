"""What goes wrong for users: one line that names the URI or the field and the next step, an exit code of its own, no
traceback, and nothing written.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coldstream import errors
from coldstream.demo.bucket import LocalBucket
from coldstream.engines.choice import is_vllm_installed

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


def safetensors(shapes: dict[str, tuple[int, ...]]) -> bytes:
    """A sound file of float32 zeros."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 4
        for side in shape:
            size *= side
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(offset)


def folder_with(files: dict[str, bytes]) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        for name, data in files.items():
            (folder / name).write_bytes(data)

    return fill


TOKENIZER = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}
CONFIG = {"config.json": json.dumps(LLAMA).encode(), "tokenizer.json": json.dumps(TOKENIZER).encode()}
ONE = safetensors({"model.norm.weight": (8,)})
INDEX = json.dumps({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}).encode()

FOLDERS: dict[str, tuple[dict[str, bytes], type[errors.ColdstreamError], str]] = {
    "no-config": ({"model.safetensors": ONE}, errors.NoConfig, "config.json"),
    "config-not-json": ({"config.json": b"{", "model.safetensors": ONE}, errors.NoConfig, "config.json"),
    "pickled-only": (CONFIG | {"pytorch_model.bin": b"x"}, errors.NoWeights, "safe_serialization=True"),
    "no-weights": (CONFIG, errors.NoWeights, "model.safetensors"),
    "shard-missing": (CONFIG | {"model.safetensors.index.json": INDEX}, errors.ShardMissing, "model-00001-of-00002"),
    "truncated-header": (CONFIG | {"model.safetensors": ONE[:20]}, errors.HeaderError, "model.safetensors"),
    "corrupt-header": (
        CONFIG | {"model.safetensors": b"\x10" + bytes(7) + b"not json at all!"},
        errors.HeaderError,
        "",
    ),
    "index-disagrees": (
        CONFIG
        | {
            "model.safetensors.index.json": INDEX.replace(b"norm", b"gone"),
            "model-00001-of-00002.safetensors": ONE,
        },
        errors.IndexMismatch,
        "model.gone.weight",
    ),
    "unsafe-name": (
        CONFIG | {"model.safetensors.index.json": INDEX.replace(b"model-00001", b"../model-00001")},
        errors.UnsafeName,
        "../model-00001",
    ),
    "unknown-architecture": (
        CONFIG
        | {
            "config.json": json.dumps(LLAMA | {"architectures": ["Mystery"], "model_type": "mystery"}).encode(),
            "model.safetensors": ONE,
        },
        errors.UnknownArchitecture,
        "Mystery",
    ),
    "unfilled-parameters": (CONFIG | {"model.safetensors": ONE}, errors.ParameterMismatch, "embed_tokens.weight"),
}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBucket]:
    with LocalBucket() as local:
        for name, (files, _, _) in FOLDERS.items():
            folder = tmp_path_factory.mktemp(name)
            folder_with(files)(folder)
            local.add("models", name, folder)
        yield local


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    home = {"HOME": str(cwd), "TMPDIR": str(cwd), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "coldstream", *arguments],
        cwd=cwd,
        env=os.environ | home | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def last_line(finished: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in finished.stderr
    return finished.stderr.strip().splitlines()[-1]


SERVED = ("no-config", "unknown-architecture", "unfilled-parameters")
"""One that opening the checkpoint finds, and those that the load does; `inspect` opens the rest as `serve` would."""


@pytest.mark.parametrize("name", FOLDERS)
def test_a_broken_checkpoint_is_one_line_that_names_it(name: str, bucket: LocalBucket, tmp_path: Path) -> None:
    _, error, word = FOLDERS[name]
    command = ("serve", "--port", "0") if name in SERVED else ("inspect",)
    finished = run(*command, f"gs://models/{name}", cwd=tmp_path, **bucket.environment)
    line = last_line(finished)
    assert finished.returncode == error.exit_code, line
    assert line.startswith("error: ")
    assert word in line
    assert name in line or "config.json" in line
    written = [item.name for item in tmp_path.iterdir() if not item.name.startswith("torchinductor_")]
    assert not written, "nothing may be written (transformers' import makes the one folder that is left out here)"


def test_an_empty_folder_and_a_bucket_that_is_not_there_are_not_found(bucket: LocalBucket, tmp_path: Path) -> None:
    for uri in ("gs://models/nothing-here", "gs://no-such-bucket/model"):
        finished = run("inspect", uri, cwd=tmp_path, **bucket.environment)
        assert finished.returncode == errors.ObjectNotFound.exit_code
        assert uri in last_line(finished)


def test_a_port_in_use_is_named_before_anything_is_fetched(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        finished = run("serve", "gs://models/any", "--host", "127.0.0.1", "--port", port, cwd=tmp_path)
    assert finished.returncode == errors.PortInUse.exit_code
    assert port in last_line(finished)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("serve",), "gs://bucket/model"),
        (("serve", "gs://b/m", "--config", "x.toml"), "not both"),
        (("serve", "--config", "missing.toml"), "missing.toml"),
        (("serve", "gs://b/m", "--port", "70000"), "70000"),
        (("serve", "gs://b/m", "--precision", "int4"), "int8"),
        (("serve", "gs://b/m", "--weights", "both"), "index, file"),
        (("serve", "gs://b/m", "--device", "gpu"), "cuda"),
        (("serve", "gs://b/m", "--engine", "sglang"), "auto, native, vllm"),
    ],
)
def test_a_wrong_option_is_named_with_the_next_step(arguments: tuple[str, ...], word: str, tmp_path: Path) -> None:
    finished = run(*arguments, cwd=tmp_path)
    assert finished.returncode == errors.SettingsError.exit_code
    assert word in last_line(finished)


@pytest.mark.skipif(is_vllm_installed(), reason="vllm is installed")
def test_an_engine_that_is_not_installed_is_told_with_the_line_that_installs_it(tmp_path: Path) -> None:
    folder_with({**CONFIG, "model.safetensors": ONE})(tmp_path)
    finished = run("serve", str(tmp_path), "--engine", "vllm", "--host", "127.0.0.1", "--port", "0", cwd=tmp_path)
    assert finished.returncode == errors.MissingExtra.exit_code
    assert "pip install 'coldstream[vllm]'" in last_line(finished)


def test_a_scheme_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    finished = run("inspect", "ftp://host/model", cwd=tmp_path)
    assert finished.returncode == errors.LocationError.exit_code
    assert "ftp" in last_line(finished)


@pytest.mark.parametrize(
    ("model", "error", "command"),
    [
        ("org/model-1b", errors.ObjectNotFound, "hf download org/model-1b --local-dir model-1b"),
        ("hf://org/model", errors.LocationError, "hf download org/model --local-dir model"),
        ("hf://org/model@main", errors.LocationError, "hf download org/model --revision main --local-dir model"),
        ("https://huggingface.co/org/model", errors.LocationError, "hf download org/model --local-dir model"),
    ],
)
def test_a_model_of_the_hub_is_told_how_to_get_there(
    model: str, error: type[errors.ColdstreamError], command: str, tmp_path: Path
) -> None:
    finished = run("inspect", model, cwd=tmp_path)
    line = last_line(finished)
    assert finished.returncode == error.exit_code, line
    assert command in line
    assert "gs://BUCKET" in line


def test_a_path_that_cannot_be_a_models_id_is_only_not_found(tmp_path: Path) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    for path in ("org/model", "./a/b/c", "/org/model", "model"):
        assert "hf download" not in last_line(run("inspect", path, cwd=tmp_path))


def test_the_traceback_is_there_for_who_asks(tmp_path: Path) -> None:
    finished = run("--debug", "inspect", "ftp://host/model", cwd=tmp_path)
    assert "Traceback" in finished.stderr


def test_a_machine_on_which_nothing_can_be_written_serves_all_the_same(bucket: LocalBucket, tmp_path: Path) -> None:
    folder = tmp_path / "read-only"
    folder.mkdir()
    finished = run("inspect", "gs://models/unfilled-parameters", "--json", cwd=folder, **bucket.environment)
    shutil.rmtree(folder)
    assert json.loads(finished.stdout)["tensors"] == 1
