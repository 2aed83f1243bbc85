"""Tokens a second of the engine and of transformers, beside what the card could; launches and waits a step."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from coldstream.bench.gpu.floors import Floor
from coldstream.bench.gpu.report import BenchReport
from coldstream.bench.gpu.served import Answered, ask, request
from coldstream.bench.gpu.theirs import greedy
from coldstream.loading.loaded_model import LoadedModel

_PROMPT = 128
_LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def prompt(length: int, number: int) -> list[int]:
    """Ids of ordinary tokens in every vocabulary; no two prompts begin alike."""
    return [3 + (7 * place + 131 * number) % 990 for place in range(length)]


def decode(
    report: BenchReport,
    loaded: LoadedModel,
    floor: Floor | None,
    *,
    clients: int,
    tokens: int,
) -> float:
    """Tokens a second of so many clients, once all of them have their first token."""
    asked = [request(str(n), prompt(_PROMPT, n), tokens) for n in range(clients)]
    rate = _steady(ask(loaded, asked))
    text = f"{clients:2} clients: {rate:9.1f} tokens/s"
    if floor is not None:
        most = clients / floor.decode_seconds(clients, _PROMPT + tokens // 2)
        text += f", {rate / most:.2f} of the floor's {most:.0f}"
    report.say(text)
    return rate


def _steady(answers: list[Answered]) -> float:
    begin = max(answer.times[0] for answer in answers)
    end = min(answer.times[-1] for answer in answers)
    counted = sum(begin < moment <= end for answer in answers for moment in answer.times)
    return counted / max(end - begin, 1e-9)


def prefill(report: BenchReport, loaded: LoadedModel, floor: Floor | None, *, length: int) -> None:
    """Tokens a second of a prompt that comes alone; the second of two, since the first one makes caches warm."""
    seconds = [ask(loaded, [request(str(n), prompt(length, n), 1)])[0].first_seconds for n in range(2)][1]
    text = f"prefill of {length}: {length / seconds:.0f} tokens/s"
    if floor is not None:
        text += f", {floor.prefill_seconds(length) / seconds:.2f} of what the card could"
    report.say(text)


def profile(report: BenchReport, loaded: LoadedModel, floor: Floor | None) -> None:
    """Launches, waits and device time of a decode step of one client, by torch's profiler."""
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity

    if not torch.cuda.is_available():
        report.say("no GPU: launches, waits and device time are not counted")
        return
    ask(loaded, [request("warm", prompt(_PROMPT, 90), 8)])
    before = loaded.engine.stats().steps
    with torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        began = time.monotonic()
        ask(loaded, [request("profiled", prompt(_PROMPT, 91), 32)])
        wall = time.monotonic() - began
    steps = loaded.engine.stats().steps - before
    names = Counter[str]()
    device = 0.0
    for event in profiler.key_averages():
        names[event.key] += event.count
        device += event.self_device_time_total if event.device_type == DeviceType.CUDA else 0.0
    launches, waits = (sum(names[name] for name in kinds) for kinds in (_LAUNCHES, _WAITS))
    report.say(
        f"a step: {launches / steps:.1f} launches, {names['cudaGraphLaunch'] / steps:.2f} graphs, "
        f"{waits / steps:.2f} waits, {device / steps:.0f} us on the device of {wall / steps * 1e6:.0f} us"
    )
    if floor is not None and device:
        least = floor.decode_seconds(1, _PROMPT + 16) * 1e6
        report.say(
            f"device time of one client's step is {device / steps / least:.2f} x the byte floor's {least:.0f} us"
        )


@torch.inference_mode()
def transformers_rate(
    report: BenchReport, folder: Path, *, device: str, clients: tuple[int, ...], tokens: int
) -> dict[int, float]:
    """`generate` of transformers on the same checkpoint, in bfloat16, as it comes."""
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.to(device)
    rates = {}
    for count in clients:
        ids = torch.tensor([prompt(_PROMPT, n) for n in range(count)], device=device)
        seconds = [_generated(model, ids, length) for length in (2, tokens)]
        rates[count] = count * (tokens - 2) / max(seconds[1] - seconds[0], 1e-9)
        report.say(f"transformers, {count} clients: {rates[count]:.1f} tokens/s")
    return rates


def _generated(model: Any, ids: torch.Tensor, tokens: int) -> float:
    began = time.monotonic()
    made = greedy(model, ids, tokens)
    made[0, -1].item()  # waits for the device
    return time.monotonic() - began
