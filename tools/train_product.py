"""Trains the demo's seeing model: a Gemma 3 with eyes, under a million parameters, that says what drawn products are.

    pip install 'torch==2.13.0' 'transformers>=5,<6' pillow
    python tools/train_product.py src/coldstream/demo/product_model

It learns from some thousand pictures that `pictures.py` draws, and is judged by others: it names the thing, its colour
and the background of pictures that it has never seen, and knows nothing else. Deterministic on one machine; some ten
minutes on one core. Only this script needs transformers.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import training
from coldstream import settings
from coldstream.model.image_processor import ImageProcessor
from pictures import BACKGROUNDS, CATEGORIES, COLORS, THINGS, Product, choose, picture
from training import NO_LABEL, SPECIAL, answer_ids, hf, int8_noise, pad, token_numbers, train_tokenizer

BEGIN_IMAGE, END_IMAGE, IMAGE = "<start_of_image>", "<end_of_image>", "<image_soft_token>"
IMAGE_TOKENS = {"boi_token": BEGIN_IMAGE, "eoi_token": END_IMAGE, "image_token": IMAGE}
BEGIN_IMAGE_ID, END_IMAGE_ID, IMAGE_ID = range(len(SPECIAL), len(SPECIAL) + 3)
VOCABULARY = 640
SIZE, PATCH, TOKENS = 48, 8, 9
HIDDEN, LAYERS, HEADS = 96, 3, 4
LEARNING_RATE = 2e-3
TOWER_LEARNING_RATE = 3e-3
SHIFT = 4  # pixels

# Gemma's turns; a part that is an image becomes its marker.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- set system = messages[0].content | trim if messages[0].role == 'system' else '' -%}
{%- for message in (messages[1:] if system else messages) -%}
{{- '<start_of_turn>' ~ ('model' if message.role == 'assistant' else message.role) ~ '\\n' -}}
{{- system ~ '\\n\\n' if system and loop.first -}}
{%- if message.content is string -%}{{- message.content | trim -}}
{%- else -%}
{%- for part in message.content -%}
{{- '<start_of_image>' if part.type == 'image' else part.text | trim -}}
{%- endfor -%}
{%- endif -%}
{{- '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}
"""


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of prompt and answer, and the picture, float32 `[3, SIZE, SIZE]`."""

    prompt: list[int]
    answer: list[int]
    pixels: Tensor


@dataclass(frozen=True, slots=True)
class Drawn:
    """A product and its picture, float32 `[3, SIZE, SIZE]`."""

    product: Product
    pixels: Tensor


class Maker:
    """Makes examples: a drawn picture, the task's own prompt about it, and what is right to say."""

    def __init__(self, tokenizer: Any, chance: random.Random, config: Path) -> None:
        self._tokenizer = tokenizer
        self._chance = chance
        self._task = settings.load(config).tasks["product"]
        self._processor = ImageProcessor(SIZE, SIZE)

    def draw(self) -> Drawn:
        """A picture of any product, in any shape."""
        product = choose(self._chance)
        size = self._chance.choice(((96, 96), (128, 96), (96, 128), (160, 120), (64, 64)))
        pixels = self._processor.resize(picture(product, self._chance, size))
        return Drawn(product, torch.from_numpy(self._processor.normalise(pixels)))

    def make(self, drawn: Drawn) -> Example:
        """A question about it, for any category and name."""
        category = self._chance.choice(CATEGORIES)
        values = {"product": self._name(), "category": category, "photo": ""}
        prompt = prompt_ids(self._tokenizer, self._task.prompt, values)
        answer = answer_ids(self._tokenizer, drawn.product.description(category))
        return Example(prompt, answer, self.varied(drawn.pixels))

    def varied(self, pixels: Tensor) -> Tensor:
        """The picture a little aside, its edges drawn out, and now and then in a mirror: it shows the same thing."""
        padded = nn.functional.pad(pixels, (SHIFT,) * 4, mode="replicate")
        left, top = self._chance.randint(0, 2 * SHIFT), self._chance.randint(0, 2 * SHIFT)
        moved = padded[:, top : top + SIZE, left : left + SIZE]
        return moved.flip(2) if self._chance.random() < 0.5 else moved

    def some(self, pictures: list[Drawn], count: int) -> list[Drawn]:
        """So many of the pictures, by chance."""
        return self._chance.sample(pictures, count)

    def _name(self) -> str:
        """What people call products: the name says nothing about the picture, and the model must not think so."""
        words = [*THINGS, *COLORS, "test", "Nova", "Classic", "No. 7", "Deluxe", "Mini", "상품", "the one", "product"]
        made = "".join(self._chance.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(self._chance.randint(2, 6)))
        return " ".join(self._chance.choice([*words, made, made.title()]) for _ in range(self._chance.randint(1, 2)))


def main() -> None:
    """Train, save, read back what was saved, and refuse it when it does not see."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="where the checkpoint goes")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--tower-steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--pictures", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", type=Path, default=Path(str(files("coldstream.demo") / "coldstream.toml")))
    args = parser.parse_args()
    started = time.monotonic()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    maker = Maker(tokenizer, random.Random(args.seed), args.config)  # noqa: S311  not for secrets
    model = make_model(len(tokenizer))
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    pictures = [maker.draw() for _ in range(args.pictures)]
    print(f"{len(pictures)} pictures drawn in {time.monotonic() - started:.0f} s", flush=True)
    guide = Guide()
    teach_tower(model, guide, maker, pictures, steps=args.tower_steps, batch=2 * args.batch)
    train(model, guide, maker, pictures, steps=args.steps, batch=args.batch)
    save(model, tokenizer, args.out)
    report = check(args.out, Maker(tokenizer, random.Random(args.seed + 1), args.config))  # noqa: S311
    write_readme(args.out, report, seed=args.seed, seconds=time.process_time())


def make_tokenizer() -> Any:
    """BPE with Gemma's normaliser, byte fallback and decoder, and its image tokens."""
    things, colors, backgrounds = list(THINGS), list(COLORS), list(BACKGROUNDS)
    texts = [
        Product(thing, color, back).description(category)
        for thing in things
        for color in colors
        for back in backgrounds
        for category in CATEGORIES
    ]
    letters = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 .,:-_()\n"
    asked = [f"Describe this product for the category {category}. Name: " for category in CATEGORIES] * 400
    return train_tokenizer(
        [*texts, *asked, letters, "user\n", "model\n"],
        vocabulary=VOCABULARY,
        longest=1024,
        template=CHAT_TEMPLATE,
        more=IMAGE_TOKENS,
    )


def prompt_ids(tokenizer: Any, template: str, values: dict[str, str]) -> list[int]:
    """The image, the task's text, and the opening of the model's turn, as Gemma 3's processor writes them."""
    parts = [{"type": "image"}, {"type": "text", "text": template.format(**values)}]
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
    )
    whole = f"\n\n{BEGIN_IMAGE}{IMAGE * TOKENS}{END_IMAGE}\n\n"
    return list(tokenizer(chat.replace(BEGIN_IMAGE, whole), add_special_tokens=False).input_ids)


def make_model(vocabulary: int) -> Any:
    """Gemma 3's architecture with its SigLIP tower, both narrow: two sliding layers and a full one behind two."""
    text = hf.Gemma3TextConfig(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        intermediate_size=256,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        head_dim=HIDDEN // HEADS,
        query_pre_attn_scalar=HIDDEN // HEADS,
        sliding_window=48,
        layer_types=["sliding_attention"] * (LAYERS - 1) + ["full_attention"],
        max_position_embeddings=1024,
        **token_numbers(),
    )
    vision = hf.SiglipVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    config = hf.Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=TOKENS,
        boi_token_index=BEGIN_IMAGE_ID,
        eoi_token_index=END_IMAGE_ID,
        image_token_index=IMAGE_ID,
    )
    model = hf.Gemma3ForConditionalGeneration(config).float()
    nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.1)  # transformers leaves zeros
    return model


class Guide(nn.Module):
    """Three small heads on the mean of an image's vectors, for training only: they teach the tower what to look at."""

    def __init__(self) -> None:
        super().__init__()
        self._names = (tuple(THINGS), tuple(COLORS), tuple(BACKGROUNDS))
        self.heads = nn.ModuleList(nn.Linear(HIDDEN, len(names)) for names in self._names)

    def forward(self, vectors: Tensor, products: list[Product]) -> Tensor:
        """float32 `[pictures, tokens, hidden]` and what they show -> the sum of three cross entropies."""
        mean = vectors.mean(1)
        wanted = zip(*((item.thing, item.color, item.background) for item in products), strict=True)
        return torch.stack(
            [
                nn.functional.cross_entropy(head(mean), torch.tensor([names.index(item) for item in items]))
                for head, names, items in zip(self.heads, self._names, wanted, strict=True)
            ]
        ).sum()


def teach_tower(model: Any, guide: Guide, maker: Maker, pictures: list[Drawn], *, steps: int, batch: int) -> None:
    """Only the tower and the projector, with the guide: a step costs a fifth of one with words."""
    seeing = [*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters()]
    parameters = [*seeing, *guide.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=TOWER_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, TOWER_LEARNING_RATE, total_steps=steps, pct_start=0.1)
    started = time.monotonic()
    for step in range(steps):
        chosen = maker.some(pictures, batch)
        pixels = torch.stack([maker.varied(drawn.pixels) for drawn in chosen])
        vectors = model.get_image_features(pixels, return_dict=True).pooler_output
        loss = guide(vectors, [drawn.product for drawn in chosen])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"tower step {step} guide {loss.item():.3f} {time.monotonic() - started:.0f} s", flush=True)


def train(model: Any, guide: Guide, maker: Maker, pictures: list[Drawn], *, steps: int, batch: int) -> None:
    """AdamW on the answers' tokens. The weights carry int8-sized noise, so that quantising them costs little.

    The tower has learnt to see: it moves at a tenth of the decoder's rate, or the first steps would blind it again.
    """
    seeing = [*model.model.vision_tower.parameters(), *guide.parameters()]
    saying = [*model.model.language_model.parameters(), *model.model.multi_modal_projector.parameters()]
    parameters, rates = [*seeing, *saying], [LEARNING_RATE / 10, LEARNING_RATE]
    groups = [{"params": group, "lr": rate} for group, rate in zip((seeing, saying), rates, strict=True)]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps, pct_start=0.1)
    started = time.monotonic()
    model.train()
    for step in range(steps):
        chosen = maker.some(pictures, batch)
        inputs = collate([maker.make(drawn) for drawn in chosen])
        with int8_noise(model):
            out = model(**inputs)
            guided = guide(out.image_hidden_states, [drawn.product for drawn in chosen])
            optimizer.zero_grad()
            (out.loss + 0.1 * guided).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            spent = time.monotonic() - started
            print(f"step {step} loss {out.loss.item():.5f} guide {guided.item():.3f} {spent:.0f} s", flush=True)
    model.eval()


def collate(examples: list[Example]) -> dict[str, Tensor]:
    """A padded batch for transformers, with the pictures and where their tokens are."""
    batch = pad([(example.prompt, example.answer) for example in examples])
    return {
        **batch,
        "token_type_ids": (batch["input_ids"] == IMAGE_ID).long(),
        "pixel_values": torch.stack([example.pixels for example in examples]),
    }


def save(model: Any, tokenizer: Any, out: Path) -> None:
    """The checkpoint, with the processor's file."""
    training.save(model, tokenizer, out)
    hf.Gemma3ImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(out)


@torch.no_grad()
def check(out: Path, maker: Maker, count: int = 480) -> dict[str, float]:
    """How often the saved files describe new pictures exactly, teacher-forced: every token the best one.

    Raises:
        SystemExit: fewer than 95 of 100.
    """
    model = hf.Gemma3ForConditionalGeneration.from_pretrained(out, dtype=torch.float32).eval()
    examples = [maker.make(maker.draw()) for _ in range(count)]
    exact = 0
    for start in range(0, count, 24):
        inputs = collate(examples[start : start + 24])
        labels = inputs.pop("labels")[:, 1:]
        best = model(**inputs).logits[:, :-1].argmax(-1)
        exact += int(((best == labels) | (labels == NO_LABEL)).all(1).sum())
    share = exact / count
    print(f"{exact} of {count} new pictures described exactly", flush=True)
    if share < 0.95:
        raise SystemExit(f"refused: only {exact} of {count} new pictures are described exactly")
    return {"exact": float(np.round(share, 3)), "pictures": count}


def write_readme(out: Path, report: dict[str, float], *, seed: int, seconds: float) -> None:
    """Says in the checkpoint's own folder what it is, who made it and how well it does."""
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    (out / "README.md").write_text(
        f"""# The demo's seeing model
Our own work, under this project's licence (Apache-2.0): a Gemma 3 architecture with its SigLIP tower, random initial
weights, trained on pictures that `tools/pictures.py` draws. Nothing in it comes from Google's weights or from anybody's
photos.

It names the thing ({", ".join(THINGS)}), its colour and the background of such a
picture, and ends with a phrase for the category that it is told. It does not read the product's name. It is a fixture
for showing and testing Coldstream: of other pictures it says something of the same kind, rarely the right thing.

Of {report["pictures"]} pictures that were not drawn before, it described {report["exact"]:.1%} exactly, every word.

Made on {datetime.now(UTC):%Y-%m-%d} in {seconds:.0f} s of one core, with torch {torch.__version__}, by

    python tools/train_product.py src/coldstream/demo/product_model --seed {seed}

{size:,} bytes of bfloat16 weights.
""",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
