"""Trains an SQL model for questions of no list: a small Gemma 3, a schema and a question in, SQLite out.

    pip install 'torch==2.13.0' 'transformers>=5,<6'
    python tools/sql_train.py train RUN --minutes 60 --processes 2     # goes on where RUN stopped
    python tools/sql_train.py export RUN OUT
    python tools/sql_score.py OUT                                      # how many held-out questions it answers rightly

The demo has the model of train_sql.py until one of this is good: docs/lab/2026-11-30-sql-model.md has the last steps.

Questions come from tools/sql_*.py and never twice; those of sql_pairs.toml are mixed in, so that they are answered as
they are written. Only this script needs transformers.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn.functional import cross_entropy

import sql_words
import training
from sql_batches import Batch, Packed
from sql_model import Model, Muon, Shape, spell, wire
from sql_tokenizer import LONGEST, make_tokenizer
from training import hf, int8_noise, token_numbers

WARM_STEPS = 60
EASY_STEPS = 80
SAVED_EVERY = 150.0


class Run:
    """A run in a folder: its tokenizer, and its state, which a later run goes on with.

    `place` is this process's number and how many there are: each has its own questions, gradients are averaged.
    """

    def __init__(self, folder: Path, *, rate: float, tokens: int, seed: int, place: tuple[int, int]) -> None:
        self.folder, self.rate, self.tokens = folder, rate, tokens
        self.number, self.many = place
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        if self.number == 0 and not (folder / "tokenizer.json").exists():
            make_tokenizer(0).save_pretrained(folder)
        meeting = f"file://{folder.resolve()}/meet"
        distributed.init_process_group("gloo", init_method=meeting, rank=self.number, world_size=self.many)
        distributed.barrier()
        tokenizer = hf.AutoTokenizer.from_pretrained(folder)
        names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        self.model = Model(Shape(len(names)))
        spell(self.model, names, sql_words.meanings())
        wire(self.model)
        matrices = [p for name, p in self.model.named_parameters() if p.dim() == 2 and "embed" not in name]
        self.rest = [p for name, p in self.model.named_parameters() if p.dim() == 1 or "embed" in name]
        adam = torch.optim.AdamW(self.rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
        self.optimizers = [Muon(matrices, rate), adam]
        self.step = self.seen = 0
        self._load()
        for layer in self.model.layers:
            layer.compile(dynamic=True)
        self.data = Packed(tokenizer, seed + 1000 * self.step + self.number)

    def _load(self) -> None:
        if not (self.folder / "state.pt").exists():
            return
        state = torch.load(self.folder / "state.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.step, self.seen = state["step"], state["seen"]

    def save(self) -> None:
        """The state, in place of the last one."""
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        state = {"model": self.model.state_dict(), "optimizers": optimizers, "step": self.step, "seen": self.seen}
        torch.save(state, self.folder / "state.new")
        (self.folder / "state.new").replace(self.folder / "state.pt")

    def learn(self, gone: float) -> tuple[float, float]:
        """One step; `gone` is how much of the time is over. Its loss, and the share of answers' tokens that were right.

        The rate falls to zero in the last third. In the last part the weights carry int8-sized noise.
        """
        factor = min(1.0, (self.step + 1) / WARM_STEPS) * min(1.0, (1 - gone) * 3 + 0.01)
        for optimizer, lr in zip(self.optimizers, (self.rate, self.rate * 0.15), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
        batch = self.data.batch(self.tokens, easy=self.step < EASY_STEPS)
        with int8_noise(self.model) if gone > 0.6 else nullcontext():
            logits, wanted = self._said(batch)
            loss = cross_entropy(logits, wanted)
            torch.autograd.backward(loss)
        self._share()
        torch.nn.utils.clip_grad_norm_(self.rest, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.seen += self.many * len(batch.ids)
        return loss.item(), (logits.argmax(-1) == wanted).float().mean().item()

    def _said(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits over the batch's own tokens and some hundred others, which is enough to tell apart; what was right."""
        vocabulary = self.model.s.vocabulary
        kept = torch.zeros(vocabulary, dtype=torch.bool)
        kept[batch.ids] = True
        kept[torch.randint(vocabulary, (900,))] = True
        states = self.model(batch.ids, batch.positions, batch.places)[batch.speaking]
        return states @ self.model.embed_tokens.weight[kept].T, (kept.cumsum(0) - 1)[batch.labels]

    def _share(self) -> None:
        """Every gradient becomes the mean over the processes."""
        if self.many == 1:
            return
        with_grad = [p for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([p.grad.flatten() for p in with_grad if p.grad is not None]) / self.many
        distributed.all_reduce(flat)
        for parameter, part in zip(with_grad, torch.split(flat, [p.numel() for p in with_grad]), strict=True):
            parameter.grad = part.view_as(parameter)


def train(folder: Path, *, minutes: float, place: tuple[int, int], **how: Any) -> None:
    """Go on with a run for so many minutes of the wall's clock."""
    run = Run(folder, place=place, **how)
    started = saved = time.monotonic()
    losses: list[float] = []
    rights: list[float] = []
    while True:
        clock = torch.tensor([(time.monotonic() - started) / 60 / minutes])
        distributed.broadcast(clock, 0)
        if clock.item() >= 1:
            break
        loss, right = run.learn(clock.item())
        losses.append(loss)
        rights.append(right)
        if run.number == 0 and run.step % 50 == 0:
            n, cpu = len(losses), time.process_time()
            means = f"loss {sum(losses) / n:.4f} right {sum(rights) / n:.4f}"
            print(f"{time.strftime('%H:%M:%S')} step {run.step} seen {run.seen:,} {means} cpu {cpu:.0f}", flush=True)
            losses, rights = [], []
        if run.number == 0 and time.monotonic() - saved > SAVED_EVERY:
            run.save()
            saved = time.monotonic()
    if run.number == 0:
        run.save()


def gemma_config(s: Shape, **more: Any) -> Any:
    """transformers' config of a Gemma 3 text model of this shape; `more` are further keys of it."""
    rope = {"rope_type": "default", "rope_theta": s.theta}
    return hf.Gemma3TextConfig(
        vocab_size=s.vocabulary,
        hidden_size=s.hidden,
        intermediate_size=s.inner,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        num_key_value_heads=s.kv_heads,
        head_dim=s.head,
        query_pre_attn_scalar=s.head,
        layer_types=["full_attention"] * s.layers,
        rope_parameters={"full_attention": rope, "sliding_attention": rope},
        **more,
    )


def export(run: Path, out: Path) -> None:
    """The run's weights as a bfloat16 checkpoint of Gemma 3."""
    tokenizer = hf.AutoTokenizer.from_pretrained(run)
    state = torch.load(run / "state.pt", weights_only=True)
    s = Shape(len(tokenizer))
    config = gemma_config(s, max_position_embeddings=LONGEST, **token_numbers())
    model = hf.Gemma3ForCausalLM(config).float()
    model.model.load_state_dict(state["model"])
    training.save(model, tokenizer, out, shard="5MB", do_sample=True, top_k=64, top_p=0.95)
    for path in out.iterdir():
        path.chmod(0o644)
    write_readme(out, step=state["step"], seen=state["seen"], parameters=sum(p.numel() for p in model.parameters()))


def write_readme(out: Path, *, step: int, seen: int, parameters: int) -> None:
    """Says in the checkpoint's own folder what it is and how it was made."""
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    (out / "README.md").write_text(
        f"""# The demo's SQL model
Our own work, under this project's licence (Apache-2.0): a Gemma 3 text architecture of {parameters:,} parameters,
trained from our own start on questions that `tools/sql_*.py` make. Nothing in it comes from Google's weights or from
anybody's data.

It writes one SQLite SELECT for a schema and a question in English or Korean: filters, counts, sums, averages, groups,
orders, limits, dates, and joins of tables that a key ties. The demo's task lets it name only what the schema and the
question have (`sql_schema` in coldstream.toml). It is small, and wrong now and then: read what it writes.
`docs/lab/2026-11-30-sql-model.md` says how often it is right; `tests/demo/test_sql_model.py` measures it.

Made on {datetime.now(UTC):%Y-%m-%d} on a shared 2-core machine, with torch {torch.__version__}, in {step:,} steps over
{seen:,} tokens, by

    python tools/sql_train.py train RUN --minutes N
    python tools/sql_train.py export RUN src/coldstream/demo/sql_model

{size:,} bytes of bfloat16 weights in two shards.
""",
        encoding="utf-8",
    )


def main() -> None:
    """Train or export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("train")
    one.add_argument("run", type=Path)
    one.add_argument("--minutes", type=float, default=60)
    one.add_argument("--tokens", type=int, default=2600, help="in a batch of each process")
    one.add_argument("--rate", type=float, default=0.02)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--processes", type=int, default=1)
    two = commands.add_parser("export")
    two.add_argument("run", type=Path)
    two.add_argument("out", type=Path)
    args = parser.parse_args()
    if args.command == "export":
        export(args.run, args.out)
        return
    args.run.mkdir(parents=True, exist_ok=True)
    (args.run / "meet").unlink(missing_ok=True)
    how = {"minutes": args.minutes, "tokens": args.tokens, "rate": args.rate, "seed": args.seed}
    spawned = multiprocessing.get_context("spawn")
    others = [
        spawned.Process(target=train, args=(args.run,), kwargs={**how, "place": (n, args.processes)}, daemon=True)
        for n in range(1, args.processes)
    ]
    for other in others:
        other.start()
    print("pids", os.getpid(), *(other.pid for other in others), flush=True)
    train(args.run, place=(0, args.processes), **how)


if __name__ == "__main__":
    main()
