"""Who takes part in `coldstream bench coldstart`: Coldstream, the floor, and the peers that are installed. Pure.

Each peer starts with its own fastest settings for a first token and reads a local copy of the checkpoint, which is made
before the clock runs: an advantage that Coldstream does not have.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROMPT = "What is the capital of France?"
_TOKENS = 8


_XLLAMACPP = """
import sys, time
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port = sys.argv[1], int(sys.argv[2])
params.n_ctx, params.warmup = 2048, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[3])
server = xllamacpp.Server(params)
while True:
    time.sleep(3600)
"""


@dataclass(frozen=True, slots=True)
class Contender:
    """A server to start. `{port}` in the command, the body and the environment stands for the port that it gets.

    `token` says whether a line of the streamed reply carries text. `reads` is where the weights come from.
    """

    name: str
    command: tuple[str, ...]
    path: str
    body: Mapping[str, Any]
    token: Callable[[str], bool]
    reads: str
    environment: Mapping[str, str] = field(default_factory=dict)
    watched: bool = False


@dataclass(frozen=True, slots=True)
class Skipped:
    """A peer that does not take part, and why."""

    name: str
    why: str


def coldstream(
    uri: str, *, environment: Mapping[str, str], precision: str | None = None, unpacked: bool = False
) -> Contender:
    """`coldstream serve URI`, as a user starts it; with a precision it is called by that, too.

    From a packed copy, where there is one, unless it is to leave that alone (`unpacked`).
    """
    options = (*(("--precision", precision) if precision else ()), *(("--packed", "off") if unpacked else ()))
    name = ", ".join(("coldstream", *filter(None, (precision, "unpacked" if unpacked else None))))
    command = (sys.executable, "-m", "coldstream", "serve", uri, "--host", "127.0.0.1", "--port", "{port}", "--quiet")
    body = {"prompt": PROMPT, "stream": True, "max_tokens": _TOKENS, "temperature": 0.0}
    return Contender(name, (*command, *options), "/generate", body, _generate_token, uri, environment, watched=True)


def transformers_serve(folder: Path) -> Contender | Skipped:
    """`transformers serve FOLDER`, which loads the model before the first request."""
    name = "transformers serve"
    script = Path(sys.executable).with_name("transformers")
    missing = [m for m in ("transformers", "accelerate", "fastapi", "uvicorn", "openai") if not _installed(m)]
    if missing or not script.exists():
        return Skipped(
            name, f"not installed: {', '.join(missing) or 'its command'} (pip install 'transformers[serving]')"
        )
    body = _chat(str(folder))
    command = (str(script), "serve", str(folder), "--host", "127.0.0.1", "--port", "{port}")
    offline = {"HF_HUB_OFFLINE": "1"}
    return Contender(name, command, "/v1/chat/completions", body, _openai_token, "local copy", offline)


def vllm(folder: Path, script: Path | None = None) -> Contender | Skipped:
    """vLLM without graph capture and with a small context: what starts fastest. `script` is its command."""
    found = str(script) if script is not None else shutil.which("vllm")
    if found is None:
        return Skipped("vllm", "no `vllm` on PATH, and none given with --vllm")
    command = (found, "serve", str(folder), "--host", "127.0.0.1", "--port", "{port}")
    fast = ("--enforce-eager", "--max-model-len", "2048", "--dtype", "bfloat16", "--gpu-memory-utilization", "0.5")
    offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    return Contender(
        "vllm", command + fast, "/v1/completions", _completion(str(folder)), _openai_token, "local copy", offline
    )


def llama_server(gguf: Path | None) -> Contender | Skipped:
    """llama.cpp's server, or else the same one out of xllamacpp, on a GGUF file; it cannot read safetensors."""
    script = shutil.which("llama-server")
    if script is None and not _installed("xllamacpp"):
        return Skipped("llama.cpp", "no `llama-server` on PATH, and no xllamacpp (pip install xllamacpp)")
    if gguf is None:
        return Skipped("llama.cpp", "it reads GGUF only: give one of the same model with --gguf")
    if script is not None:
        command: tuple[str, ...] = (
            script,
            "-m",
            str(gguf),
            "--host",
            "127.0.0.1",
            "--port",
            "{port}",
            "-c",
            "2048",
            "--no-warmup",
        )
    else:
        threads = str(len(os.sched_getaffinity(0)))
        command = (sys.executable, "-c", _XLLAMACPP, str(gguf), "{port}", threads)
    return Contender("llama.cpp", command, "/v1/completions", _completion("default"), _openai_token, gguf.name)


def ollama(model: str | None) -> Contender | Skipped:
    """Ollama with a model that it has pulled or created before."""
    script = shutil.which("ollama")
    if script is None:
        return Skipped("ollama", "no `ollama` on PATH")
    if model is None:
        return Skipped("ollama", "it serves models of its own store only: name one with --ollama-model")
    place = {"OLLAMA_HOST": "127.0.0.1:{port}"}
    return Contender("ollama", (script, "serve"), "/v1/completions", _completion(model), _openai_token, model, place)


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _completion(model: str) -> dict[str, Any]:
    return {"model": model, "prompt": PROMPT, "stream": True, "max_tokens": _TOKENS, "temperature": 0.0}


def _chat(model: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": PROMPT}]
    return {"model": model, "messages": messages, "stream": True, "max_tokens": _TOKENS, "temperature": 0.0}


def _event(line: str) -> dict[str, Any]:
    data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
    event = json.loads(data) if data.startswith("{") else {}
    return event if isinstance(event, dict) else {}


def _generate_token(line: str) -> bool:
    return bool(_event(line).get("text"))


def _openai_token(line: str) -> bool:
    return any(
        choice.get("text") or (choice.get("delta") or {}).get("content") for choice in _event(line).get("choices", [])
    )
