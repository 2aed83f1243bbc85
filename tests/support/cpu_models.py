"""The CPU's own decoder, filled from torch's tensors, and steps of it by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ml_dtypes import bfloat16
from numpy.typing import NDArray
from torch import Tensor

from coldstream.backends.cpu.alone import LoneSequences
from coldstream.backends.cpu.choice import stand_up
from coldstream.backends.cpu.decoder import CpuDecoder, CpuPrecision


def as_stored(tensor: Tensor) -> NDArray[Any]:
    """The same numbers, as a checkpoint's tensor comes to this backend."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(bfloat16)
    return tensor.numpy()


def filled_cpu_decoder(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], precision: CpuPrecision = "float32"
) -> CpuDecoder:
    decoder, assembly = stand_up(config, {name: tuple(t.shape) for name, t in tensors.items()}, precision=precision)
    for name, tensor in tensors.items():
        assembly.assign(name, as_stored(tensor))
    assembly.finish()
    return decoder


def one_step(decoder: CpuDecoder, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Logits of every token of a batch of prompts, in one flat step."""
    attend = LoneSequences(decoder, count=len(prompts), capacity=max(map(len, prompts)))
    positions = attend.begin(*map(len, prompts))
    ids = np.array([token for prompt in prompts for token in prompt])
    return torch.from_numpy(decoder.forward(ids, positions, attend, np.arange(len(ids))).copy())


def cpu_greedy(decoder: CpuDecoder, prompt: Sequence[int], steps: int) -> tuple[list[int], Tensor]:
    """`steps` greedy tokens, and the logits that chose them with those of the prompt: `[prompt + steps - 1, vocab]`."""
    attend = LoneSequences(decoder, capacity=len(prompt) + steps)
    ids, chosen, logits = list(prompt), list[int](), list[Tensor]()
    for _ in range(steps):
        positions = attend.begin(len(ids))
        made = decoder.forward(np.array(ids), positions, attend, np.arange(len(ids)))
        logits.append(torch.from_numpy(made.copy()))
        chosen.append(int(logits[-1][-1].argmax()))
        ids = chosen[-1:]
    return chosen, torch.cat(logits)
