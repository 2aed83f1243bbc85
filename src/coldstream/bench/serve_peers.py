"""Servers that `coldstream bench serve` starts: ours, and the peers that are installed, each at its best settings.

Each one is a child process on a free port of 127.0.0.1, with the same number of CPU threads, and is asked through its
own OpenAI endpoint. What cannot be started is skipped with the reason, never silently.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2

from coldstream.bench import child
from coldstream.bench.serve_load import Api, Endpoint
from coldstream.errors import SettingsError
from coldstream.settings import EngineName, Precision

_DEADLINE = 900.0
_PATIENCE = 15.0
_PAUSE = 0.1
_IGNORE_EOS: Mapping[str, Any] = {"ignore_eos": True}
_VLLM_CACHE = 4 << 30
"""Bytes of keys and values, with our server and without it; on a CPU vLLM would take of all the machine's."""
_NO_EOS: Mapping[str, Any] = {"generation_config": '{"eos_token_id": -1, "pad_token_id": 0}'}
"""For `transformers serve`, which takes a whole GenerationConfig; no token has this id."""

_XLLAMACPP = """
import sys, threading, xllamacpp
model, port, slots, context, threads = sys.argv[1], *map(int, sys.argv[2:])
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_parallel = model, port, slots
params.n_ctx, params.cpuparams.n_threads = context * slots, threads
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
threading.Event().wait()
"""


_MODULE = """
import runpy, sys
sys.path.append(sys.argv[1])
del sys.argv[:2]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
"""A module of ours in a Python that has its own packages; ours come last."""


@dataclass(frozen=True, slots=True)
class PeerPlan:
    """What all servers get alike: sequences at once, tokens a sequence may have, threads; `engine` is ours alone.

    `pythons` are those of peers that have an environment of their own, by the peer's kind.
    `precision` is our server's and vLLM's; `vllm_args` are options of `vllm serve`, for it and for our server on
    engine vllm.
    """

    sequences: int
    context: int
    threads: int
    engine: EngineName | None = None
    pythons: Mapping[str, str] = field(default_factory=dict)
    vllm_args: tuple[str, ...] = ()
    precision: Precision = "auto"


@dataclass(frozen=True, slots=True)
class PeerServer:
    """How to start one. `{port}` in the command stands for its port; `ready` is asked until it answers 200.

    `model` is the name that requests must carry; None takes the first one that /v1/models lists. `needs` says what is
    not installed, `settings` in words what was chosen; `config` is what the file holds that `{config}` in the command
    stands for.
    """

    name: str
    command: tuple[str, ...]
    ready: str = "/v1/models"
    model: str | None = None
    extra: Mapping[str, Any] | None = None
    needs: str | None = None
    settings: str = "as it comes"
    config: str = ""


def _coldstream(model: str, plan: PeerPlan) -> PeerServer:
    common = ("-m", "coldstream", "serve", "--host", "127.0.0.1", "--port", "{port}", "--quiet")
    command: tuple[str, ...] = (sys.executable, *common, "--precision", plan.precision)
    config = ""
    if plan.engine == "vllm":  # with the limits that vLLM itself is given
        command, config = (*command, "--config", "{config}"), _on_vllm(model, plan)
    else:
        command = (*command, model, *(("--engine", plan.engine) if plan.engine else ()))
    name = f"coldstream, {plan.engine}" if plan.engine else "coldstream"
    return PeerServer(name, command, ready="/readyz", model="default", extra=_IGNORE_EOS, config=config)


def _on_vllm(model: str, plan: PeerPlan) -> str:
    keys = {"uri": model, "engine": "vllm", "max_context": plan.context, "vllm_args": list(plan.vllm_args)}
    limits = {"max_sequences": plan.sequences, "kv_bytes": _VLLM_CACHE}
    lines = ["[models.default]", *map(_toml, keys.items()), "[engine]", *map(_toml, limits.items())]
    return "\n".join(lines) + "\n"


def _toml(item: tuple[str, object]) -> str:
    """A key's line; a text of JSON is one of TOML, too."""
    return f"{item[0]} = {json.dumps(item[1])}"


def _transformers(model: str, plan: PeerPlan) -> PeerServer:
    script = shutil.which("transformers", path=str(Path(sys.executable).parent)) or shutil.which("transformers")
    command = (script or "transformers", "serve", model, "--host", "127.0.0.1", "--port", "{port}", "--device", "cpu")
    missing = None if script and importlib.util.find_spec("accelerate") else "pip install 'transformers[serving]'"
    return PeerServer("transformers serve", command, ready="/health", model=model, extra=_NO_EOS, needs=missing)


def _vllm(model: str, plan: PeerPlan) -> PeerServer:
    script = shutil.which("vllm", path=str(Path(sys.executable).parent)) or shutil.which("vllm")
    memory = ("--kv-cache-memory-bytes", str(_VLLM_CACHE))
    sizes = ("--max-model-len", str(plan.context), "--max-num-seqs", str(plan.sequences))
    limits = (*memory, *sizes, "--dtype", plan.precision, *plan.vllm_args)
    command = (script or "vllm", "serve", model, "--host", "127.0.0.1", "--port", "{port}", *limits)
    return PeerServer(
        "vllm", command, ready="/health", model=model, extra=_IGNORE_EOS, needs=None if script else "vllm"
    )


def _llama_cpp(model: str, plan: PeerPlan) -> PeerServer:
    sizes = (str(plan.sequences), str(plan.context), str(plan.threads))
    python, missing = _python("llama.cpp", plan, "xllamacpp")
    command = (python, "-c", _XLLAMACPP, model, "{port}", *sizes)
    said = f"its own server (xllamacpp), {plan.sequences} slots, {plan.threads} threads"
    return PeerServer(
        "llama.cpp", command, ready="/health", model=model, extra=_IGNORE_EOS, needs=missing, settings=said
    )


def _ik_llama_cpp(model: str, plan: PeerPlan) -> PeerServer:
    python, missing = _python("ik_llama.cpp", plan, "ik_llama_cpp", "ik-llama-cpp-python")
    said = f"llama_decode on all sequences, tensors repacked, {plan.threads} threads"
    return PeerServer("ik_llama.cpp", _behind_front(python, "ik_llama", model, plan), needs=missing, settings=said)


def _openvino(model: str, plan: PeerPlan) -> PeerServer:
    python, missing = _python("openvino", plan, "openvino_genai", "openvino-genai")
    said = f"ContinuousBatchingPipeline, the CPU's defaults, {plan.threads} threads"
    return PeerServer("openvino", _behind_front(python, "openvino_genai", model, plan), needs=missing, settings=said)


def _behind_front(python: str, module: str, model: str, plan: PeerPlan) -> tuple[str, ...]:
    ours = str(Path(__file__).parents[2])
    sizes = (str(plan.sequences), str(plan.context), str(plan.threads))
    return (python, "-c", _MODULE, ours, f"coldstream.bench.peers.{module}", model, "{port}", *sizes)


def _python(kind: str, plan: PeerPlan, module: str, package: str | None = None) -> tuple[str, str | None]:
    """The Python that a peer runs in, and what is not installed in it; of one of its own, what it says will tell."""
    if kind in plan.pythons:
        return plan.pythons[kind], None
    return sys.executable, None if importlib.util.find_spec(module) else f"pip install {package or module}"


SERVERS: Mapping[str, Callable[[str, PeerPlan], PeerServer]] = {
    "coldstream": _coldstream,
    "llama.cpp": _llama_cpp,
    "ik_llama.cpp": _ik_llama_cpp,
    "openvino": _openvino,
    "transformers": _transformers,
    "vllm": _vllm,
}
"""By the kind that --peer takes, with a model: a folder, for llama.cpp's a .gguf file, for ours any URI."""


def server(name: str, model: str, plan: PeerPlan) -> PeerServer:
    """The server of that name for a model: a kind, or "kind:label" where one kind serves several models.

    Raises:
        SettingsError: there is none of that kind.
    """
    kind, _, label = name.partition(":")
    if kind not in SERVERS:
        raise SettingsError(f"--peer {name}: unknown; known here: {', '.join(SERVERS)}")
    made = SERVERS[kind](model, plan)
    return replace(made, name=f"{made.name} {label}") if label else made


@contextmanager
def running(chosen: PeerServer, *, api: Api, environment: Mapping[str, str] | None = None) -> Iterator[Endpoint]:
    """Start a server, wait until it is ready, end it.

    Raises:
        SettingsError: it ended before it was ready, or was not ready within 15 minutes; the message has its last words.
    """
    port = child.free_port()
    with tempfile.TemporaryDirectory(prefix="coldstream-bench-") as folder:
        log, config = Path(folder, "log"), Path(folder, "coldstream.toml")
        config.write_text(chosen.config, encoding="utf-8")
        places = {"{port}": str(port), "{config}": str(config)}
        command = tuple(places.get(part, part) for part in chosen.command)
        process = child.spawn(command, log=log, environment=environment)
        try:
            base = f"http://127.0.0.1:{port}"
            _wait(base + chosen.ready, chosen.name, lambda: process.poll() is None, log)
            model = chosen.model or _first_model(base)
            yield Endpoint(f"{base}/v1", model, api, extra=chosen.extra or {})
        finally:
            child.end(process, patience=_PATIENCE)


def _wait(url: str, name: str, is_alive: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + _DEADLINE
    with httpx2.Client(trust_env=False, timeout=10.0) as http:
        while time.monotonic() < deadline:
            if not is_alive():
                raise SettingsError(f"{name} ended before it was ready: {child.last_lines(log, 3)}")
            try:
                if http.get(url).status_code == 200:
                    return
            except httpx2.TransportError:
                pass  # the port is still shut; whether it ever opens, the process and the deadline tell
            time.sleep(_PAUSE)
    raise SettingsError(f"{name} was not ready within {_DEADLINE:g} s: {child.last_lines(log, 3)}")


def _first_model(base: str) -> str:
    with httpx2.Client(trust_env=False, timeout=10.0) as http:
        return str(http.get(f"{base}/v1/models").json()["data"][0]["id"])
