"""What the scripts that train the demo's models share: Gemma's kind of tokenizer, batches, int8-sized noise, saving.

Only those scripts import it; it needs transformers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn

hf: Any = transformers  # half typed: its annotations say less than they cost

PAD, EOS, BOS, UNKNOWN, START, END = "<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"
SPECIAL = (PAD, EOS, BOS, UNKNOWN, START, END)
NO_LABEL = -100

# Gemma's turns: the system text goes before the first user's, and an assistant is called "model".
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- set system = messages[0].content | trim if messages[0].role == 'system' else '' -%}
{%- for message in (messages[1:] if system else messages) -%}
{%- if (loop.index0 % 2 == 0) != (message.role == 'user') -%}
{{- raise_exception('user and assistant must take turns, and the user begins') -}}
{%- endif -%}
{{- '<start_of_turn>' ~ ('model' if message.role == 'assistant' else message.role) ~ '\n' -}}
{{- system ~ '\n\n' if system and loop.first -}}
{{- message.content | trim ~ '<end_of_turn>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%}
"""


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocabulary: int,
    longest: int,
    template: str,
    more: dict[str, str] | None = None,
    pieces: bool = False,
) -> Any:
    """BPE with Gemma's normaliser, byte fallback and decoder; merges learnt within words only.

    `longest` is in tokens; `more` are further special tokens by the names that transformers has for them. With `pieces`
    the texts are words already.
    """
    special = [*SPECIAL, *(more or {}).values()]
    bpe = Tokenizer(models.BPE(unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True))
    bpe.normalizer = normalizers.Replace(" ", "▁")
    bpe.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special + fallback, show_progress=False)
    words = (word for text in texts for word in re.findall(r" ?\w+| ?[^\w\s]|\s", text))
    bpe.train_from_iterator(texts if pieces else words, trainer)
    state = json.loads(bpe.to_str())
    # the bytes had to be named to the trainer, but they are vocabulary and must not be matched in a text
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special]
    bpe = Tokenizer.from_str(json.dumps(state))
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, special.index(BOS))]
    )
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        model_max_length=longest,
        **({"extra_special_tokens": more} if more else {}),
    )
    tokenizer.chat_template = template
    return tokenizer


def answer_ids(tokenizer: Any, text: str) -> list[int]:
    """The answer and the end of its turn."""
    return [*tokenizer(text, add_special_tokens=False).input_ids, SPECIAL.index(END)]


def pad(pairs: Sequence[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
    """Prompts with their answers as a batch for transformers; prompts have no label.

    `input_ids`, `attention_mask` and `labels`, each int64 `[batch, longest]`, padded on the right.
    """
    rows = [prompt + answer for prompt, answer in pairs]
    longest = max(map(len, rows))
    labels = torch.full((len(rows), longest), NO_LABEL)
    for row, (prompt, answer) in enumerate(pairs):
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    return {
        "input_ids": torch.tensor([row + [0] * (longest - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
        "labels": labels,
    }


def token_numbers() -> dict[str, Any]:
    """The special tokens by the names that a text model's configuration has for their ids."""
    return {
        "bos_token_id": SPECIAL.index(BOS),
        "eos_token_id": [SPECIAL.index(EOS), SPECIAL.index(END)],
        "pad_token_id": SPECIAL.index(PAD),
    }


@contextmanager
def int8_noise(model: nn.Module) -> Iterator[None]:
    """Inside, every matrix is off by up to half an int8 step of its row; gradients are taken there."""
    with torch.no_grad():
        matrices = [p for p in model.parameters() if p.dim() == 2]
        noise = [(torch.rand_like(p) - 0.5) * (p.abs().amax(1, keepdim=True) / 127) for p in matrices]
        for parameter, delta in zip(matrices, noise, strict=True):
            parameter.add_(delta)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, delta in zip(matrices, noise, strict=True):
                parameter.sub_(delta)


def save(model: Any, tokenizer: Any, out: Path, *, shard: str = "50GB", **sampling: Any) -> None:
    """A bfloat16 checkpoint as transformers writes it, in place of the one that was there."""
    model.generation_config = hf.GenerationConfig(**sampling, **token_numbers())
    out.mkdir(parents=True, exist_ok=True)
    for old in (*out.glob("*.safetensors"), *out.glob("*.json"), *out.glob("*.jinja")):
        old.unlink()
    model.to(torch.bfloat16).save_pretrained(out, max_shard_size=shard)
    tokenizer.save_pretrained(out)
