"""What a precision costs in quality: KL divergence and perplexity against float32, on real text.

    python -m coldstream.bench.quality DIR_OR_URI [--precision int8] [--tokens 256]

The texts in `texts/` were written for this: English, Korean, Python and SQL. Every token's next-token distribution is
compared; KL is in nats, of the float32 distribution from the other, averaged over tokens. A change of perplexity is
relative to float32. The targets, mean KL at most 0.02 and perplexity at most 1% up, are the exit code.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import cast

import numpy as np
from tokenizers import Tokenizer

from coldstream.backends.cpu.address import Floats
from coldstream.backends.cpu.alone import LoneSequences
from coldstream.backends.cpu.choice import stand_up
from coldstream.backends.cpu.decoder import CpuDecoder, CpuPrecision
from coldstream.errors import ObjectNotFound, TokenizerError
from coldstream.weights.checkpoint.checkpoint import Checkpoint, open_checkpoint
from coldstream.weights.load import iter_tensors

TEXTS = ("english", "korean", "code", "sql")
LARGEST_KL = 0.02
LARGEST_PERPLEXITY_RISE = 0.01

_ROWS = 64
"""Tokens whose logits are compared at a time: 64 rows of 262,144 float32 are 64 MiB, and there are two."""


@dataclass(frozen=True, slots=True)
class TextQuality:
    """One text. `perplexity` and `reference_perplexity` are of the text under either model."""

    text: str
    tokens: int
    mean_kl: float
    largest_kl: float
    top1_agreement: float
    perplexity: float
    reference_perplexity: float


@dataclass(frozen=True, slots=True)
class Quality:
    """All texts of one model at one precision."""

    uri: str
    precision: str
    texts: tuple[TextQuality, ...]

    @property
    def mean_kl(self) -> float:
        """Nats a token, over all tokens."""
        return self._mean("mean_kl")

    @property
    def top1_agreement(self) -> float:
        """How often both would choose the same token."""
        return self._mean("top1_agreement")

    @property
    def perplexity_rise(self) -> float:
        """Relative change of perplexity over all tokens: 0.01 is 1% worse than float32."""
        logs = [(item.tokens, math.log(item.perplexity / item.reference_perplexity)) for item in self.texts]
        return math.exp(sum(n * value for n, value in logs) / sum(n for n, _ in logs)) - 1

    @property
    def is_good(self) -> bool:
        """Whether both targets hold."""
        return self.mean_kl <= LARGEST_KL and self.perplexity_rise <= LARGEST_PERPLEXITY_RISE

    def _mean(self, name: str) -> float:
        total = sum(item.tokens for item in self.texts)
        return sum(item.tokens * cast(float, getattr(item, name)) for item in self.texts) / total


def run_quality(
    uri: str,
    *,
    precision: CpuPrecision = "int8",
    tokens: int = 256,
    texts: Mapping[str, str] | None = None,
    on_text: Callable[[str], None] | None = None,
) -> Quality:
    """Stream the checkpoint twice, in float32 and in `precision`, and compare. `tokens` bounds each text's length.

    Raises what streaming and assembling raise, and TokenizerError where there is no tokenizer.json.
    """
    checkpoint = open_checkpoint(uri)
    tokenizer = read_tokenizer(checkpoint)
    prompts = {name: tokenizer.encode(text).ids[:tokens] for name, text in (texts or read_texts()).items()}
    reference, tested = filled(checkpoint, uri, "float32"), filled(checkpoint, uri, precision)
    results = []
    for name, ids in prompts.items():
        if on_text is not None:
            on_text(name)
        results.append(compare(name, ids, reference=reference, tested=tested))
    return Quality(uri, precision, tuple(results))


def read_texts() -> dict[str, str]:
    """The texts that come with the package, by name."""
    folder = files("coldstream.bench") / "texts"
    return {name: (folder / f"{name}.txt").read_text(encoding="utf-8") for name in TEXTS}


def compare(name: str, ids: Sequence[int], *, reference: CpuDecoder, tested: CpuDecoder) -> TextQuality:
    """Run one text through both decoders in one pass each, and compare every next-token distribution."""
    kl, same, losses, reference_losses = [], [], [], []
    begin = 0
    for expected, got in zip(distributions(reference, ids), distributions(tested, ids), strict=True):
        target = np.array(ids[begin + 1 : begin + 1 + len(got)])[:, None]
        begin += len(got)
        kl.append((np.exp(expected) * (expected - got)).sum(-1))
        same.append(expected.argmax(-1) == got.argmax(-1))
        losses.append(-np.take_along_axis(got, target, 1)[:, 0])
        reference_losses.append(-np.take_along_axis(expected, target, 1)[:, 0])
    divergence = np.concatenate(kl)
    return TextQuality(
        text=name,
        tokens=len(divergence),
        mean_kl=float(divergence.mean()),
        largest_kl=float(divergence.max()),
        top1_agreement=float(np.concatenate(same).mean()),
        perplexity=math.exp(np.concatenate(losses).mean()),
        reference_perplexity=math.exp(np.concatenate(reference_losses).mean()),
    )


def distributions(decoder: CpuDecoder, ids: Sequence[int]) -> Iterator[Floats]:
    """Log probabilities, float32 `[<= 64, vocab]` at a time, of every token's successor."""
    attend = LoneSequences(decoder, capacity=len(ids))
    positions = attend.begin(len(ids))
    hidden = decoder.hidden_states(np.array(ids), positions, attend, np.arange(len(ids) - 1))
    for first in range(0, len(hidden), _ROWS):
        logits = decoder.logits(hidden[first : first + _ROWS])
        top = logits.max(-1, keepdims=True)
        yield logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def filled(checkpoint: Checkpoint, uri: str, precision: CpuPrecision) -> CpuDecoder:
    """A decoder with the checkpoint's weights. Raises what streaming and assembling raise."""
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    decoder, assembly = stand_up(checkpoint.config, shapes, precision=precision)
    for name, tensor in iter_tensors(uri, framework="numpy"):
        assembly.assign(name, tensor)
    assembly.finish()
    return decoder


def read_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The checkpoint's tokenizer.json. Raises TokenizerError where there is none."""
    try:
        return Tokenizer.from_buffer(asyncio.run(checkpoint.read_file("tokenizer.json")))
    except ObjectNotFound as exc:
        raise TokenizerError(f"{checkpoint.location}: no tokenizer.json, so there is no text to compare on") from exc


def main() -> int:
    """The command line: one JSON line, exit code 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m coldstream.bench.quality", description=__doc__)
    parser.add_argument("uri")
    parser.add_argument("--precision", choices=("float32", "int8"), default="int8")
    parser.add_argument("--tokens", type=int, default=256)
    args = parser.parse_args()
    result = run_quality(args.uri, precision=args.precision, tokens=args.tokens)
    means = {key: getattr(result, key) for key in ("mean_kl", "top1_agreement", "perplexity_rise", "is_good")}
    print(json.dumps(means | asdict(result)))
    return 0 if result.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
