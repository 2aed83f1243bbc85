"""The same greedy tokens as transformers: text, sliding windows, images; in float32 exactly, in bfloat16 but for ties.

Models are tiny, random and made by transformers itself, so that nothing has to be brought along. A random model makes
more of a rounding with every layer, so that two right computations in bfloat16 part soon; what is judged is how far
each is from the truth, which is transformers in float32 with weights that bfloat16 holds. Ours may be off by `WORSE`
times what transformers' bfloat16 is; and where it parts, the two tokens' logits may not differ by more than twice what
bfloat16 changes there in transformers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coldstream.bench.gpu.report import BenchReport
from coldstream.bench.gpu.served import ask, request, serving
from coldstream.bench.gpu.theirs import greedy
from coldstream.engine.request import PromptImage, Request, SamplingParams
from coldstream.settings import Device, Precision

WORSE = 1.25
TOKENS = 64
_IMAGE_SIZE, _IMAGE_TOKENS, _BEGIN, _IMAGE, _END = 56, 4, 1000, 1001, 1002
_TEXT: Mapping[str, Any] = {
    "vocab_size": 1196,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 8192,
}
_GEMMA: Mapping[str, Any] = {
    **_TEXT,
    "sliding_window": 512,
    "query_pre_attn_scalar": 64,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    },
}


@dataclass(frozen=True, slots=True)
class ParityCase:
    """A model and a prompt; `images` are uint8 `[56, 56, 3]`, `starts` where their tokens begin."""

    name: str
    model: Any
    ids: Sequence[int]
    images: tuple[Any, ...] = ()
    starts: tuple[int, ...] = ()


def cases(longest: int = 4200) -> list[ParityCase]:
    """Text of both families, a prompt of many tokens with a window of 512, and two images."""
    import transformers

    long = [3 + (7 * place + place // 11) % 900 for place in range(longest)]
    gemma = _random(transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**_GEMMA)))
    llama = _random(transformers.LlamaForCausalLM(transformers.LlamaConfig(**_TEXT)))
    ids, starts = [2, 5, 9], []
    for after in ([11, 12], [13]):
        ids.append(_BEGIN)
        starts.append(len(ids))
        ids += [*[_IMAGE] * _IMAGE_TOKENS, _END, *after]
    pictures = np.random.default_rng(0).integers(0, 256, (2, _IMAGE_SIZE, _IMAGE_SIZE, 3), dtype=np.uint8)
    return [
        ParityCase("Llama, text", llama, long[:200]),
        ParityCase("Gemma 3, text", gemma, long[:200]),
        ParityCase(f"Gemma 3, {longest} tokens, window 512", gemma, long),
        ParityCase("Gemma 3, two images", _seeing(), ids, tuple(pictures), tuple(starts)),
    ]


def _seeing() -> Any:
    import transformers

    tower: dict[str, Any] = {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": _IMAGE_SIZE,
        "patch_size": 14,
        "vision_use_head": False,
    }
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**_GEMMA),
        vision_config=transformers.SiglipVisionConfig(**tower),
        mm_tokens_per_image=_IMAGE_TOKENS,
        boi_token_index=_BEGIN,
        image_token_index=_IMAGE,
        eoi_token_index=_END,
    )
    return _random(transformers.Gemma3ForConditionalGeneration(config))


def _random(model: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.copy_(spread + 1 if parameter.ndim == 1 and "norm" in name else spread)
    return model.eval()


def saved(case: ParityCase, folder: Path, tokenizer: Path) -> Path:
    """The model's files, with a tokenizer that has names for all of its ids."""
    place = folder / case.name.replace(" ", "-").replace(",", "")
    case.model.save_pretrained(place)
    data = json.loads((tokenizer / "tokenizer.json").read_text())
    if case.images:
        for token in data["added_tokens"]:
            token["special"] = token["special"] or token["id"] in (_BEGIN, _IMAGE, _END)
        (place / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 56, "width": 56}}))
    (place / "tokenizer.json").write_text(json.dumps(data))
    for name in ("tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        shutil.copyfile(tokenizer / name, place / name)
    return place


def run(report: BenchReport, case: ParityCase, folder: Path, *, device: Device, tokens: int = TOKENS) -> None:
    """A line for float32, and three for bfloat16."""
    mine = _ours(case, folder, device, "float32", tokens)
    theirs = Reference(case, folder, torch.float32, device)
    made, logits = theirs.generated(tokens)
    place = _parting(mine.token_ids, made)
    text = f"{case.name}, float32: {tokens} of {tokens} tokens are transformers'"
    if place is not None:
        gap = float(logits[place][made[place]] - logits[place][mine.token_ids[place]])
        text = f"{case.name}, float32: parts from transformers at token {place}, where the logits differ by {gap:.1e}"
    report.judge(text, place is None)
    _run_bfloat16(report, case, folder, device=device, tokens=tokens)


def _run_bfloat16(report: BenchReport, case: ParityCase, folder: Path, *, device: Device, tokens: int) -> None:
    mine = _ours(case, folder, device, "bfloat16", tokens)
    ids = [*case.ids, *mine.token_ids]
    rounded = Reference(case, folder, torch.bfloat16, device)
    exact = Reference(case, folder, torch.float32, device).with_weights_rounded()
    theirs, truth = (model.scored(ids) for model in (rounded, exact))
    first = 1 if mine.prompt else len(case.ids)
    own = torch.tensor([*mine.prompt, *mine.logprobs], dtype=torch.float64)
    following = torch.tensor(ids[first:])
    errors = [
        float((scores - _logprobs(truth[first - 1 : -1], following)).abs().mean())
        for scores in (own, _logprobs(theirs[first - 1 : -1], following))
    ]
    report.judge(
        f"{case.name}, bfloat16: log probabilities of {len(own)} tokens are off by {errors[0]:.3f} nats in the mean, "
        f"transformers' by {errors[1]:.3f} (at most {WORSE} times that)",
        errors[0] <= WORSE * errors[1],
    )
    made, logits = rounded.generated(tokens)
    place = _parting(mine.token_ids, made)
    if place is None:
        report.judge(f"{case.name}, bfloat16: {tokens} of {tokens} tokens are transformers'", True)
        return
    row = len(case.ids) - 1 + place
    gap = float(logits[place][made[place]] - logits[place][mine.token_ids[place]])
    bound = 2 * float((theirs[row] - truth[row]).abs().max())
    report.judge(
        f"{case.name}, bfloat16: parts from transformers at token {place}, where the logits differ by {gap:.1e} "
        f"(at most {bound:.1e}, twice what bfloat16 changes there in transformers)",
        gap <= bound,
    )


def _parting(mine: Sequence[int], theirs: Sequence[int]) -> int | None:
    return next((n for n, pair in enumerate(zip(mine, theirs, strict=True)) if pair[0] != pair[1]), None)


def _logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    return torch.log_softmax(logits, -1).gather(1, ids[:, None])[:, 0]


@dataclass(frozen=True, slots=True)
class Mine:
    """What the engine answered: ids, their log probabilities, and those of the prompt's tokens but the first."""

    token_ids: Sequence[int]
    logprobs: Sequence[float]
    prompt: Sequence[float]


def _ours(case: ParityCase, folder: Path, device: Device, precision: Precision, tokens: int) -> Mine:
    placed = tuple(
        PromptImage(start, start + _IMAGE_TOKENS, pixels, bytes([number]))
        for number, (start, pixels) in enumerate(zip(case.starts, case.images, strict=True))
    )
    sampling = SamplingParams(
        max_tokens=tokens, ignore_eos=True, logprobs=0, prompt_logprobs=None if case.images else 0
    )
    asked = Request("parity", tuple(case.ids), sampling, images=placed)
    with serving(str(folder), device=device, precision=precision, max_sequences=4, step_tokens=1024) as loaded:
        answer = ask(loaded, [asked])[0]
    return Mine(answer.token_ids, answer.logprobs, answer.prompt_logprobs)


class Reference:
    """transformers' model of a case in a precision; `with_weights_rounded` to bfloat16, computed in its own."""

    def __init__(self, case: ParityCase, folder: Path, dtype: torch.dtype, device: Device) -> None:
        self._case, self._dtype, self._device = case, dtype, device
        # Loaded as dtype says: `model.to` would round the rotary frequencies as well.
        self._model: Any = type(case.model).from_pretrained(folder, dtype=dtype).to(device)

    def with_weights_rounded(self) -> Reference:
        """This one, changed."""
        with torch.no_grad():
            for parameter in self._model.parameters():
                parameter.copy_(parameter.bfloat16())
        return self

    @torch.inference_mode()
    def generated(self, tokens: int) -> tuple[list[int], Sequence[Tensor]]:
        """Greedy ids, and the float32 logits `[vocab]` of each."""
        ids = torch.tensor([self._case.ids], device=self._device)
        made = greedy(self._model, ids, tokens, return_dict_in_generate=True, output_logits=True, **self._images(ids))
        return made.sequences[0, len(self._case.ids) :].tolist(), [row[0].float() for row in made.logits]

    @torch.inference_mode()
    def scored(self, ids: Sequence[int]) -> Tensor:
        """float64 logits `[len(ids), vocab]` on the host; row n is of the token that follows the n-th."""
        placed = torch.tensor([ids], device=self._device)
        logits: Tensor = self._model(placed, **self._images(placed)).logits
        return logits[0].double().cpu()

    def _images(self, ids: Tensor) -> dict[str, Any]:
        if not self._case.images:
            return {}
        pixels = torch.from_numpy(np.stack(self._case.images)).permute(0, 3, 1, 2).float() / 127.5 - 1
        return {"pixel_values": pixels.to(self._device, self._dtype), "token_type_ids": (ids == _IMAGE).long()}


def int8_beside_bfloat16(report: BenchReport, folder: Path, *, device: Device) -> None:
    """What 8-bit weights change of a prompt's log probabilities, on the demo's model, which was trained."""
    ids = [2 + (5 * place) % 1000 for place in range(256)]
    found: dict[str, list[float]] = {}
    precisions: tuple[Precision, ...] = ("bfloat16", "int8")
    for precision in precisions:
        with serving(str(folder), device=device, precision=precision) as loaded:
            found[precision] = ask(loaded, [request("scored", ids, 1, prompt_logprobs=0)])[0].prompt_logprobs
    mean = float(np.mean(np.abs(np.subtract(found["bfloat16"], found["int8"]))))
    report.say(f"int8 beside bfloat16: log probabilities of a prompt's tokens differ by {mean:.4f} nats in the mean")
