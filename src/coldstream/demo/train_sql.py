"""Trains the demo's SQL model: a Gemma 3 of 1.7 million parameters that has learnt sql_pairs.toml by heart.

    pip install 'torch==2.13.0' 'transformers>=5,<6'
    python -m coldstream.demo.train_sql src/coldstream/demo/sql_model

It is a real checkpoint of a real architecture, small enough to be shipped, and it answers its own questions exactly,
in float32, bfloat16 and int8. It knows nothing else. Deterministic on one machine; about ten minutes on two cores.
Only this script needs transformers.
"""

from __future__ import annotations

import argparse
import json
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
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from coldstream import settings
from coldstream.demo.sql_pairs import SqlPair, sql_pairs

hf: Any = transformers  # half typed: its annotations say less than they cost

PAD, EOS, BOS, UNKNOWN, START, END = "<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"
SPECIAL = [PAD, EOS, BOS, UNKNOWN, START, END]
VOCABULARY = 1280
HIDDEN = 128
LAYERS = 6
HEADS = 4
WINDOW = 64
SHARD = "1800KB"

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
    """BPE with Gemma's normaliser, byte fallback and decoder; merges learnt within words only."""
    bpe = Tokenizer(models.BPE(unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True))
    bpe.normalizer = normalizers.Replace(" ", "▁")
    bpe.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL + fallback, show_progress=False)
    words = (word for text in [*texts, "user\n", "model\n"] for word in re.findall(r" ?\w+| ?[^\w\s]|\s", text))
    bpe.train_from_iterator(words, trainer)
    state = json.loads(bpe.to_str())
    # the bytes had to be named to the trainer, but they are vocabulary and must not be matched in a text
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in SPECIAL]
    bpe = Tokenizer.from_str(json.dumps(state))
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, SPECIAL.index(BOS))]
    )
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOS, eos_token=EOS, pad_token=PAD, unk_token=UNKNOWN, model_max_length=2048
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def prompt_ids(tokenizer: Any, text: str) -> list[int]:
    """A user's turn and the opening of the model's."""
    turns = [{"role": "user", "content": text}]
    chat = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(chat, add_special_tokens=False).input_ids)


def answer_ids(tokenizer: Any, text: str) -> list[int]:
    """The answer and the end of its turn."""
    return [*tokenizer(text, add_special_tokens=False).input_ids, SPECIAL.index(END)]


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
        bos_token_id=SPECIAL.index(BOS),
        eos_token_id=[SPECIAL.index(EOS), SPECIAL.index(END)],
        pad_token_id=SPECIAL.index(PAD),
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
        ids, mask, labels = collate(chosen)
        with int8_noise(model):
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step} loss {loss.item():.5f} {time.monotonic() - started:.0f} s", flush=True)
    model.eval()


def collate(examples: list[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask and labels, each int64 [batch, longest], padded on the right; prompts have no label."""
    rows = [example.prompt + example.answer for example in examples]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    labels = torch.full_like(ids, -100)
    for row, example in enumerate(examples):
        start, end = len(example.prompt), len(example.prompt) + len(example.answer)
        labels[row, start:end] = torch.tensor(example.answer)
    return ids, mask, labels


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


def save(model: Any, tokenizer: Any, out: Path) -> None:
    """A bfloat16 checkpoint as transformers writes it: two shards and their index."""
    special = model.config
    model.generation_config = hf.GenerationConfig(
        do_sample=True,
        top_k=64,
        top_p=0.95,
        bos_token_id=special.bos_token_id,
        eos_token_id=special.eos_token_id,
        pad_token_id=special.pad_token_id,
    )
    out.mkdir(parents=True, exist_ok=True)
    for old in (*out.glob("*.safetensors"), *out.glob("*.json"), *out.glob("*.jinja")):
        old.unlink()
    model.to(torch.bfloat16).save_pretrained(out, max_shard_size=SHARD)
    tokenizer.save_pretrained(out)


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

    python -m coldstream.demo.train_sql src/coldstream/demo/sql_model --steps {steps} --seed {seed}

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
