"""A lean `import torch` computes what a plain one does, and the rest of torch comes when it is looked at."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from coldstream.loading.torch_import import PROVEN_RELEASES

MODEL = """
import torch
import torch.nn.functional as F
torch.manual_seed(0)
x, w = torch.randn(5, 64), torch.randn(48, 64)
y = F.rms_norm(F.linear(x, w), (48,))
q = torch.quantize_per_channel(w, torch.full((48,), 0.05), torch.zeros(48, dtype=torch.long), 0, torch.qint8)
z = torch.ops.quantized.linear_dynamic(x, torch.ops.quantized.linear_prepack(q, None), False)
a = F.scaled_dot_product_attention(y[None], y[None], y[None], is_causal=True).bfloat16()
print(y.sum().item(), z.sum().item(), a.float().sum().item(), torch.multinomial(y.softmax(-1), 1).tolist())
"""
LEAN = "from coldstream.loading.torch_import import import_torch, complete; import_torch()\n"


def run(code: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_the_release_that_we_pin_is_a_proven_one() -> None:
    assert torch.__version__.startswith(tuple(f"{release}." for release in PROVEN_RELEASES))


@pytest.mark.more
def test_a_model_computes_the_same() -> None:
    assert run(LEAN + MODEL) == run(MODEL)


def test_what_is_not_needed_is_not_executed_before_it_is_looked_at() -> None:
    code = LEAN + (
        "import sys, torch\n"
        "print('py_sym_types' in dir(torch.distributions), 'Normal' in vars(torch.distributions))\n"
        "print(torch.distributions.Normal(0.0, 1.0).mean.item(), 'Normal' in vars(torch.distributions))\n"
    )
    assert run(code).split() == ["False", "False", "0.0", "True"]


@pytest.mark.more
def test_complete_gives_the_meta_kernels() -> None:
    code = LEAN + (
        "complete()\n"
        "import torch\n"
        "m = torch.nn.Linear(4, 4, device='meta')\n"
        "print(torch.nn.functional.scaled_dot_product_attention(*[torch.empty(1, 2, 3, 4, device='meta')] * 3).shape)\n"
        "print(torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),)).graph_signature is not None)\n"
    )
    assert run(code).split("\n")[1] == "True"


def test_several_models_import_torch_once_and_the_timeline_says_so_once() -> None:
    code = (
        "import sys, threading\n"
        "from coldstream.loading.torch_import import TorchImport\n"
        "from coldstream.timeline import Timeline\n"
        "timeline = Timeline()\n"
        "torch = TorchImport(1, timeline)\n"
        "there = []\n"
        "work = lambda: (torch.finish(), there.append('torch' in sys.modules))\n"
        "threads = [threading.Thread(target=work) for _ in range(3)]\n"
        "[thread.start() for thread in threads], [thread.join() for thread in threads]\n"
        "print(there, [span.name for span in timeline.spans()])\n"
    )
    assert run(code) == "[True, True, True] ['map libtorch', 'import torch']\n"
