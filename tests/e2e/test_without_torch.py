"""A server on a CPU answers everything it can be asked, and torch is imported by none of its processes."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from safetensors.torch import save_file

from tests.engine.vision.test_encoder import TURN, backend
from tests.support.servers import free_port
from tests.support.tiny_vision import SIZE, file_names, gemma3_vision, photo

SERVER = """
import json, os, signal, sys, threading, time, urllib.error, urllib.request

url, requests = sys.argv[-1], json.loads(sys.stdin.readline())

def post(path, body):
    asked = urllib.request.Request(url + path, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        return json.load(urllib.request.urlopen(asked, timeout=100))
    except urllib.error.HTTPError as exc:
        return exc.read().decode()

def ask():
    while True:
        try:
            urllib.request.urlopen(url + "/ready", timeout=5)
            break
        except OSError:
            time.sleep(0.05)
    model = json.load(urllib.request.urlopen(url + "/v1/models", timeout=60))["data"][0]["id"]
    answers = [post(path, {"model": model, **body}) for path, body in requests]
    print(json.dumps({"answers": answers, "modules": sorted(sys.modules)}), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=ask, daemon=True).start()
sys.argv = ["coldstream", *sys.argv[1:-1]]
from coldstream.cli import main
main()
"""
POISON = """
import os, pathlib
pathlib.Path(os.environ["IMPORTED"]).write_text("torch was imported")
raise ImportError("torch was imported")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, tiny = tmp_path_factory.mktemp("seeing"), gemma3_vision()
    tensors = {name: tensor.bfloat16().contiguous() for name, tensor in file_names(tiny.tensors, "4.57").items()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(tiny.config))
    tokenizer = backend()
    decoders = tokenizers.decoders
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])  # what grammars ask for
    (path / "tokenizer.json").write_text(tokenizer.to_str())
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "chat_template": TURN}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    transformers.Gemma3ImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(path)
    return path


def answers(folder: Path, precision: str, requests: list[tuple[str, Any]], tmp_path: Path) -> dict[str, Any]:
    """Serve it in a process that finds a torch which must not be imported, ask, and list its modules."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(POISON)
    (tmp_path / "torch" / "version.py").write_text("__version__ = '2.13.0'\ncuda = None\n")
    port = free_port()
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    options = ["serve", str(folder), "--port", str(port), "--precision", precision, "-q"]
    done = subprocess.run(
        [sys.executable, "-c", SERVER, *options, f"http://127.0.0.1:{port}"],
        input=json.dumps(requests) + "\n",
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env=os.environ | {"PYTHONPATH": path, "IMPORTED": str(tmp_path / "imported"), "OMP_NUM_THREADS": "1"},
    )
    assert not (tmp_path / "imported").exists()
    line = next((line for line in done.stdout.splitlines() if line.startswith('{"answers"')), None)
    assert line is not None, done.stderr
    return dict(json.loads(line))


@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_no_answer_needs_torch(folder: Path, precision: str, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    photo(1).save(buffer, "PNG")
    seen = {"url": f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"}
    picture = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": seen}]
    text = {"prompt": "hello " * 20, "max_tokens": 3}
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": [True, None]}}}
    chat = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 6}
    requests: list[tuple[str, Any]] = [
        ("/v1/completions", text),
        ("/v1/completions", {**text, "logprobs": 3, "echo": True}),
        ("/v1/completions", {**text, "n": 2, "temperature": 1.0, "top_p": 0.9, "seed": 3, "frequency_penalty": 0.5}),
        ("/v1/chat/completions", {**chat, "logprobs": True, "top_logprobs": 2, "logit_bias": {"5": -3}}),
        ("/v1/chat/completions", {**chat, "response_format": schema}),
        ("/v1/chat/completions", {**chat, "messages": [{"role": "user", "content": picture}]}),
    ]
    told = answers(folder, precision, requests, tmp_path)
    assert [type(answer) for answer in told["answers"]] == [dict] * len(requests), told["answers"]
    assert told["answers"][4]["choices"][0]["message"]["content"] in ("true", "null")
    foreign = {name for name in told["modules"] if name.partition(".")[0] in ("torch", "transformers", "functorch")}
    assert foreign == set()
