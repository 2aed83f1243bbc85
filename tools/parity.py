"""Native decoder beside transformers on a checkpoint folder: logits and greedy tokens, in float32.

    python tools/parity.py DIR [--tokens 64] [--prompt TEXT]

Prints one JSON line: the largest absolute logit difference over the prompt and every generated position, and whether
both chose the same tokens. Needs the `[transformers]` extra and a local folder; exits 1 when they disagree.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor

from coldstream.backends.assembly import Assembly
from coldstream.backends.torch.decoder import Decoder, DecoderPrecision
from coldstream.backends.torch.layers import DenseAttention, DenseSequence
from coldstream.model.config import ModelConfig
from coldstream.model.vision_config import VisionConfig

_PROMPT = "The capital of France is Paris. 한국의 수도는 서울입니다. SELECT name FROM donors WHERE country = 'US'; The"
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Parity:
    """What was compared. `max_abs_difference` is in logits."""

    folder: str
    architecture: str
    prompt_tokens: int
    generated: int
    max_abs_difference: float
    same_tokens: bool

    @property
    def agrees(self) -> bool:
        """Whether it is within 1e-3 with the same greedy tokens."""
        return self.same_tokens and self.max_abs_difference < _TOLERANCE


def load_folder(folder: Path, *, precision: DecoderPrecision = "float32") -> Decoder:
    """A filled decoder from a local folder's safetensors files; read by safetensors, not by the stream."""
    config = json.loads((folder / "config.json").read_text())
    decoder = Decoder(ModelConfig.from_json(config), precision=precision, vision=VisionConfig.from_json(config))
    files: list[Any] = [safe_open(path, framework="pt") for path in sorted(folder.glob("*.safetensors"))]
    where = {name: file for file in files for name in file.keys()}  # noqa: SIM118  not a mapping
    assembly = Assembly(decoder, {name: file.get_slice(name).get_shape() for name, file in where.items()})
    for name, file in where.items():
        assembly.assign(name, file.get_tensor(name))
    assembly.finish()
    return decoder


def greedy(decoder: Decoder, prompt: Sequence[int], steps: int) -> tuple[list[int], Tensor]:
    """`steps` greedy tokens, and the logits that chose them with those of the prompt: `[prompt + steps - 1, vocab]`."""
    attend, sequence = DenseAttention(decoder.config, decoder.device), DenseSequence()
    ids, chosen, logits = torch.tensor(prompt, device=decoder.device), list[int](), list[Tensor]()
    for _ in range(steps):
        positions = attend.begin([(sequence, len(ids))])
        logits.append(decoder.forward(ids, positions, attend, torch.arange(len(ids), device=decoder.device)).clone())
        chosen.append(int(logits[-1][-1].argmax()))
        ids = torch.tensor(chosen[-1:], device=decoder.device)
    return chosen, torch.cat(logits)


def reference(folder: Path, prompt: Sequence[int], steps: int) -> tuple[list[int], Tensor]:
    """The same from transformers, in float32 with eager attention."""
    import transformers  # the extra; 3 s to import

    config = transformers.AutoConfig.from_pretrained(folder)
    cls = getattr(transformers, config.architectures[0])
    model = cls.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids, chosen, logits, past = torch.tensor([prompt]), list[int](), list[Tensor](), None
    with torch.inference_mode():
        for _ in range(steps):
            out = model(input_ids=ids, past_key_values=past, use_cache=True)
            past = out.past_key_values
            logits.append(out.logits[0].float())
            chosen.append(int(logits[-1][-1].argmax()))
            ids = torch.tensor([chosen[-1:]])
    return chosen, torch.cat(logits)


def compare(folder: Path, prompt: Sequence[int], steps: int) -> Parity:
    """Run both, one after the other, and compare."""
    decoder = load_folder(folder)
    ours, our_logits = greedy(decoder, prompt, steps)
    theirs, their_logits = reference(folder, prompt, steps)
    difference = float((our_logits - their_logits).abs().max())
    return Parity(str(folder), decoder.config.architecture, len(prompt), steps, difference, ours == theirs)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python tools/parity.py", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt", default=_PROMPT)
    args = parser.parse_args()
    prompt = Tokenizer.from_file(str(args.folder / "tokenizer.json")).encode(args.prompt).ids
    result = compare(args.folder, prompt, args.tokens)
    print(json.dumps(asdict(result)))
    return 0 if result.agrees else 1


if __name__ == "__main__":
    sys.exit(main())
