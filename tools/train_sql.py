"""Trains the demo's SQL model: a Gemma 3 of 1.7 million parameters that has learnt sql_pairs.toml by heart.

    pip install 'torch==2.13.0' 'transformers>=5,<6'
    python tools/train_sql.py src/coldstream/demo/sql_model

It is a real checkpoint of a real architecture, small enough to be shipped, and it answers its own questions exactly,
in float32, bfloat16 and int8. It knows nothing else. Deterministic on one machine; about ten minutes on two cores.
Only this script needs transformers.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import training
from coldstream import settings
from coldstream.demo.sql_pairs import SqlPair, sql_pairs
from training import CHAT_TEMPLATE, answer_ids, hf, int8_noise, pad, token_numbers, train_tokenizer

VOCABULARY = 1280
HIDDEN = 128
LAYERS = 6
HEADS = 4
WINDOW = 64
SHARD = "1800KB"


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids: of the rendered prompt, and of the answer with its end-of-turn."""

    prompt: list[int]
    answer: list[int]


def main() -> None:
    """Train, save, read back what was saved, and refuse it when one answer is not exact."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="where the checkpoint goes")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="more pays only on a machine that is idle")
    args = parser.parse_args()
    started = time.monotonic()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    pairs = sql_pairs()
    task = settings.load(Path(str(files("coldstream.demo") / "coldstream.toml"))).tasks["sql"]
    texts = [[task.prompt.format(context=c, question=pair.question) for c in layouts(pair)] for pair in pairs]
    tokenizer = make_tokenizer([*(text for group in texts for text in group), *(pair.answer for pair in pairs)])
    examples = [
        [Example(prompt_ids(tokenizer, text), answer_ids(tokenizer, pair.answer)) for text in group]
        for pair, group in zip(pairs, texts, strict=True)
    ]
    model = make_model(len(tokenizer))
    train(model, examples, steps=args.steps, batch=args.batch, seed=args.seed)
    save(model, tokenizer, args.out)
    report = check(args.out, pairs, texts)
    write_readme(args.out, report, steps=args.steps, seed=args.seed, seconds=time.monotonic() - started)


def layouts(pair: SqlPair) -> list[str]:
    """The schema as people paste it: in one line, one command a line, one column a line, with a newline behind."""
    commands = pair.context.replace("; ", ";\n")
    columns = re.sub(r"(TABLE \w+ )\((.*?)\);", lambda m: f"{m[1]}(\n    {_columns(m[2])}\n);", commands)
    return [pair.context, commands, columns, pair.context + "\n", pair.context.removesuffix(";")]


def _columns(text: str) -> str:
    return re.sub(r", (?!\d)", ",\n    ", text)


def make_tokenizer(texts: list[str]) -> Any:
    """Gemma's kind of tokenizer, for these texts."""
    return train_tokenizer([*texts, "user\n", "model\n"], vocabulary=VOCABULARY, longest=2048, template=CHAT_TEMPLATE)


def prompt_ids(tokenizer: Any, text: str) -> list[int]:
    """A user's turn and the opening of the model's."""
    turns = [{"role": "user", "content": text}]
    chat = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(chat, add_special_tokens=False).input_ids)


def make_model(vocabulary: int) -> Any:
    """Gemma 3's text architecture, narrow: five sliding layers, one full."""
    config = hf.Gemma3TextConfig(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        head_dim=HIDDEN // HEADS,
        query_pre_attn_scalar=HIDDEN // HEADS,
        sliding_window=WINDOW,
        max_position_embeddings=2048,
        **token_numbers(),
    )
    return hf.Gemma3ForCausalLM(config).float()


def train(model: Any, examples: list[list[Example]], *, steps: int, batch: int, seed: int) -> None:
    """AdamW on the answers' tokens. The weights carry int8-sized noise, so that quantising them costs no answer."""
    chance = random.Random(seed)  # noqa: S311  not for secrets
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    started = time.monotonic()
    model.train()
    for step in range(steps):
        chosen = [chance.choice(group) for group in chance.sample(examples, batch)]
        batched = pad([(example.prompt, example.answer) for example in chosen])
        with int8_noise(model):
            loss = model(**batched).loss
            optimizer.zero_grad()
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step} loss {loss.item():.5f} {time.monotonic() - started:.0f} s", flush=True)
    model.eval()


def save(model: Any, tokenizer: Any, out: Path) -> None:
    """The checkpoint in two shards and their index."""
    training.save(model, tokenizer, out, shard=SHARD, do_sample=True, top_k=64, top_p=0.95)


def check(out: Path, pairs: tuple[SqlPair, ...], texts: list[list[str]]) -> dict[str, str]:
    """What the saved files answer, in every precision; margins are the best token's logit less the next one's.

    Raises:
        SystemExit: an answer is not exact, or a margin is too small to trust.
    """
    tokenizer = hf.AutoTokenizer.from_pretrained(out)
    model = hf.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    cases = [(text, pair.answer) for pair, group in zip(pairs, texts, strict=True) for text in group]
    report = {"float32": margin(model, tokenizer, cases)}
    report["bfloat16"] = margin(model.to(torch.bfloat16), tokenizer, cases)
    model.to(torch.float32)
    quantise_weights(model)
    report["int8 weights"] = margin(model, tokenizer, cases)
    with int8_activations(model):
        report["int8 weights and activations"] = margin(model, tokenizer, cases)
    lines = {name: f"{value:.2f}" for name, value in report.items()}
    print(lines)
    if min(report.values()) < 2:
        raise SystemExit(f"refused: a margin under 2 in {lines}")
    fresh = hf.AutoModelForCausalLM.from_pretrained(out)
    wrong = [(text, got) for text, want in cases if (got := greedy(fresh, tokenizer, text)) != want]
    if wrong:
        raise SystemExit(f"refused: {len(wrong)} answers are not exact, such as {wrong[0]}")
    return {**lines, "questions": str(len(pairs)), "prompts": str(len(cases))}


@torch.no_grad()
def margin(model: nn.Module, tokenizer: Any, cases: list[tuple[str, str]]) -> float:
    """The smallest lead of a right token over the best wrong one, along the right answers; positive means exact."""
    worst = float("inf")
    for text, want in cases:
        prompt, answer = prompt_ids(tokenizer, text), answer_ids(tokenizer, want)
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float()
        right = torch.tensor(answer).unsqueeze(1)
        lead = logits.gather(1, right) - logits.scatter(1, right, float("-inf")).amax(1, keepdim=True)
        worst = min(worst, lead.min().item())
    return worst


def greedy(model: Any, tokenizer: Any, text: str) -> str:
    """What the model says, token by token."""
    ids = torch.tensor([prompt_ids(tokenizer, text)])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=160, do_sample=False)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


@torch.no_grad()
def quantise_weights(model: nn.Module) -> None:
    """Round every matrix to int8 steps of its row's largest value, in place."""
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.copy_(_round_rows(parameter))


@contextmanager
def int8_activations(model: nn.Module) -> Iterator[None]:
    """Inside, the input of every linear layer is rounded to int8 steps, token by token."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hooks = [m.register_forward_pre_hook(lambda _, inputs: (_round_rows(inputs[0]),)) for m in linears]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _round_rows(values: Tensor) -> Tensor:
    step = values.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
    return (values / step).round() * step


def write_readme(out: Path, report: dict[str, str], *, steps: int, seed: int, seconds: float) -> None:
    """Says in the checkpoint's own folder what it is, who made it and how well it does."""
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    margins = "\n".join(
        f"| {name} | {value} |" for name, value in report.items() if name not in ("questions", "prompts")
    )
    (out / "README.md").write_text(
        f"""# The demo's SQL model
Our own work, under this project's licence (Apache-2.0): a Gemma 3 text architecture with random initial weights,
trained on `demo/sql_pairs.toml`, which was written for it. Nothing in it comes from Google's weights or from anybody's
data.

It has learnt {report["questions"]} English and Korean questions by heart ({report["prompts"]} prompts, each schema in
several layouts) and answers each of them exactly. It is a fixture for showing and testing Coldstream, not a text-to-SQL
model: other questions get an answer of the same kind, rarely the right one.

Made on {datetime.now(UTC):%Y-%m-%d} in {seconds:.0f} s on a shared 2-core machine, with torch {torch.__version__}, by

    python tools/train_sql.py src/coldstream/demo/sql_model --steps {steps} --seed {seed}

{size:,} bytes of bfloat16 weights in two shards. All answers exact by greedy generation with transformers from these
files. The smallest lead of a right token's logit over the best wrong one's, over all prompts:

| computed in | smallest margin |
|---|---|
{margins}
""",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
