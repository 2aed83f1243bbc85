"""All attacks of tools/siege.py in turn, on a server of its own with 1.5 GB of memory and gemma-3-270m's vocabulary.

A token's logits are as wide as the vocabulary, which is where that model's memory goes; the rest of it is the demo's.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import coldstream.demo
from siege import Peak, connected, memory, serving
from siege_attacks import ATTACKS, Target

pytestmark = pytest.mark.more
MODEL = Path(coldstream.demo.__file__).parent / "sql_model"
VOCABULARY = 262_144
MEMORY = 1536
GROWS = 256
"""MB at most beside what the server had before the first attack, whatever is decoded or compiled meanwhile."""


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """The demo's model with as many tokens as Gemma 3 has; what it does not know has no weight."""
    folder = shutil.copytree(MODEL, tmp_path_factory.mktemp("siege") / "wide")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": VOCABULARY}))
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if tensor.ndim == 2 and len(tensor) == config["vocab_size"]:
                more = torch.zeros(VOCABULARY - len(tensor), tensor.shape[1], dtype=tensor.dtype)
                tensors[name] = torch.cat([tensor, more])
        save_file(tensors, path, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def besieged(wide) -> Iterator[tuple[int, int, float]]:
    """Its process, its port, and MB that it has once it has answered; at the end it must hear of SIGTERM."""
    with serving(str(wide), MEMORY) as (process, port, _):
        assert complete(port) == 200
        yield process.pid, port, memory(process.pid)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def ask(port: int, method: str, path: str, body: str | None = None) -> int:
    headers = {"content-type": "application/json", "authorization": "Bearer honest-key"}
    with connected(port, 120) as client:
        client.request(method, path, body, headers)
        answer = client.getresponse()
        answer.read()
        return answer.status


def complete(port: int) -> int:
    return ask(port, "POST", "/v1/completions", json.dumps({"model": "default", "prompt": "The", "max_tokens": 2}))


@pytest.mark.parametrize("name", ATTACKS)
def test_after_an_attack_the_server_is_there_and_answers_the_honest(besieged, name) -> None:
    pid, port, before = besieged
    with Peak(pid) as peak:
        ATTACKS[name](Target(port, "attacker-key", is_watched=False))
        assert ask(port, "GET", "/ready") == 200
        assert complete(port) == 200
    assert peak.megabytes - before < GROWS
