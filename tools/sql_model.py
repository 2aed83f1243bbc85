"""Gemma 3's text model in plain torch, as the SQL model is trained: several questions share one schema's tokens.

Parameters have transformers' names, so that a state is one of Gemma3ForCausalLM.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the model."""

    vocabulary: int
    hidden: int = 192
    inner: int = 384
    layers: int = 5
    heads: int = 6
    kv_heads: int = 2
    head: int = 32
    theta: float = 1e6


class Places(NamedTuple):
    """Where the tokens of a flat batch are: of the schemas `[rows, longest]` and of the questions with their answers
    `[rows * many, longest]`, padded with the last token; the way back `[tokens]`; and what questions see, as a mask."""

    schema: Tensor
    questions: Tensor
    many: int
    back: Tensor
    mask: Tensor


class Norm(nn.Module):
    """Root mean square, scaled by one and a learnt weight."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, x.shape[-1:], 1 + self.weight, 1e-6)


class Attention(nn.Module):
    """Grouped queries with normed queries and keys."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.q_proj = nn.Linear(s.hidden, s.heads * s.head, bias=False)
        self.k_proj = nn.Linear(s.hidden, s.kv_heads * s.head, bias=False)
        self.v_proj = nn.Linear(s.hidden, s.kv_heads * s.head, bias=False)
        self.o_proj = nn.Linear(s.heads * s.head, s.hidden, bias=False)
        self.q_norm, self.k_norm = Norm(s.head), Norm(s.head)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], places: Places) -> Tensor:
        s = self.s
        n, repeat = x.shape[0], s.heads // s.kv_heads
        q = rotate(self.q_norm(self.q_proj(x).view(n, s.heads, s.head)), turn)
        k = rotate(self.k_norm(self.k_proj(x).view(n, s.kv_heads, s.head)), turn).repeat_interleave(repeat, 1)
        v = self.v_proj(x).view(n, s.kv_heads, s.head).repeat_interleave(repeat, 1)
        schema, questions, many = places.schema, places.questions, places.many
        first_k, first_v = k[schema].transpose(1, 2), v[schema].transpose(1, 2)
        first = scaled_dot_product_attention(
            q[schema].transpose(1, 2), first_k, first_v, is_causal=True, scale=s.head**-0.5
        )
        all_k = torch.cat((first_k.repeat_interleave(many, 0), k[questions].transpose(1, 2)), 2)
        all_v = torch.cat((first_v.repeat_interleave(many, 0), v[questions].transpose(1, 2)), 2)
        then = scaled_dot_product_attention(
            q[questions].transpose(1, 2), all_k, all_v, attn_mask=places.mask, scale=s.head**-0.5
        )
        rows = torch.cat([part.transpose(1, 2).reshape(-1, s.heads * s.head) for part in (first, then)])
        out: Tensor = self.o_proj(rows[places.back])
        return out


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Positions by rotation, the two halves of a head as pairs."""
    cos, sin = turn
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Mlp(nn.Module):
    """Gated, with Gemma's activation."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(s.hidden, s.inner, bias=False)
        self.up_proj = nn.Linear(s.hidden, s.inner, bias=False)
        self.down_proj = nn.Linear(s.inner, s.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))
        return out


class Layer(nn.Module):
    """Attention and the gated part, normed before and behind."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(s), Mlp(s)
        self.input_layernorm, self.post_attention_layernorm = Norm(s.hidden), Norm(s.hidden)
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = Norm(s.hidden), Norm(s.hidden)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], places: Places) -> Tensor:
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), turn, places))
        out: Tensor = x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        return out


class Model(nn.Module):
    """Tokens `[n]` with their positions to the last states `[n, hidden]`."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.embed_tokens = nn.Embedding(s.vocabulary, s.hidden)
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.layers))
        self.norm = Norm(s.hidden)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2 and "embed" not in name:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)

    def forward(self, ids: Tensor, positions: Tensor, places: Places) -> Tensor:
        half = self.s.head // 2
        angle = positions[:, None, None] * self.s.theta ** (-torch.arange(half) / half)
        turn = (angle.cos(), angle.sin())
        x = self.embed_tokens(ids) * self.s.hidden**0.5
        for layer in self.layers:
            x = layer(x, turn, places)
        out: Tensor = self.norm(x)
        return out

    def logits(self, states: Tensor) -> Tensor:
        """`[..., hidden]` to `[..., vocabulary]`, by the embedding itself."""
        return states @ self.embed_tokens.weight.T


@torch.no_grad()
def spell(model: Model, tokens: Sequence[str], meanings: Mapping[str, Sequence[str]], seed: int = 0) -> None:
    """Start each token's vector from its letters and its meanings.

    So `Price`, `_price` and ` prices` are alike before any training, and so is what the word lists say to be alike:
    `meanings` has a token's word in lower case and what it means. The first coordinate is the same for every token.
    """
    size = model.s.hidden
    generator = torch.Generator().manual_seed(seed)
    known: dict[str, Tensor] = {}

    def vector(name: str) -> Tensor:
        if name not in known:
            known[name] = torch.nn.functional.normalize(torch.randn(size, generator=generator), dim=0)
        return known[name]

    for number, token in enumerate(tokens):
        word = re.sub(r"^[▁_ ]|,$", "", token).lower()
        framed = f"<{word}>"
        grams = [framed[i : i + n] for n in (2, 3, 4) for i in range(len(framed) - n + 1)] + [
            framed[:3],
            framed[:4],
            framed,
        ]
        mixed = 0.6 * torch.nn.functional.normalize(torch.randn(size, generator=generator), dim=0)
        mixed += 0.3 * vector(f"mark {token[:1] if token[:1] in '▁_' else 'upper' if token[:1].isupper() else ''}")
        if word:
            mixed += 0.7 * torch.nn.functional.normalize(torch.stack([vector(gram) for gram in grams]).sum(0), dim=0)
        if found := meanings.get(word):
            mixed += 0.8 * torch.nn.functional.normalize(
                torch.stack([vector(f"meaning {one}") for one in found]).sum(0), dim=0
            )
        mixed[0] = 0.0
        mixed = torch.nn.functional.normalize(mixed, dim=0)
        mixed[0] = 0.4
        model.embed_tokens.weight[number] = torch.nn.functional.normalize(mixed, dim=0)


@torch.no_grad()
def wire(model: Model, seed: int = 0) -> None:
    """Start with the attention that copying needs: to the token before, to what is alike, and to what followed the like.

    In the first layer the first key head looks one token back and hands on what it sees; in the second and the fourth,
    the first key head looks for that, so that a name once begun goes on as it did before. The second key head of every
    layer looks for tokens like its own. Positions are in a head's fast pairs, contents in its slow ones.
    """
    s = model.s
    generator = torch.Generator().manual_seed(seed)
    half, each = s.head // 2, s.heads // s.kv_heads
    slow = list(range(5, half))
    slow += [pair + half for pair in slow]
    turn = s.theta ** (-torch.arange(half) / half)

    def content() -> Tensor:
        """`[head, hidden]`: contents into the slow pairs."""
        rows = torch.zeros(s.head, s.hidden)
        rows[slow] = torch.randn(len(slow), s.hidden, generator=generator) / s.hidden**0.5
        rows[:, 0] = 0
        return rows

    def seen() -> tuple[Tensor, Tensor]:
        """A value's rows `[head, hidden]`, and their way out `[hidden, head]`."""
        rows = torch.linalg.qr(torch.randn(s.hidden, s.head, generator=generator))[0].T
        rows[:, 0] = 0
        return rows, rows.T.clone()

    back, _ = seen()
    handed = torch.linalg.qr(torch.randn(s.hidden, s.head, generator=generator))[0]
    handed[0] = 0
    for number, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        a = layer.self_attn
        q, k, v, o = (getattr(a, f"{name}_proj").weight for name in "qkvo")
        layer.post_attention_layernorm.weight.fill_(-0.4)
        layer.post_feedforward_layernorm.weight.fill_(-0.7)
        like = content()
        k[s.head :] = like
        v[s.head :], out = seen()
        for head in range(each, s.heads):
            q[head * s.head : (head + 1) * s.head] = like + 0.3 * content()
            o[:, head * s.head : (head + 1) * s.head] = (
                out if head == each else 0.5 * o[:, head * s.head : (head + 1) * s.head]
            )
        if number == 0:
            k[: s.head] = 0
            k[:4, 0] = 1.0
            v[: s.head] = back
            for head in range(each):
                rows = torch.zeros(s.head, s.hidden)
                rows[:4, 0] = torch.cos(-turn[:4] * (1 + head // 2))
                rows[half : half + 4, 0] = torch.sin(-turn[:4] * (1 + head // 2))
                q[head * s.head : (head + 1) * s.head] = rows
                o[:, head * s.head : (head + 1) * s.head] = (
                    handed if head == 0 else 0.3 * o[:, head * s.head : (head + 1) * s.head]
                )
            a.q_norm.weight.fill_(1.0)
            a.k_norm.weight.fill_(1.0)
        elif number in (1, 3):
            mix = torch.zeros(s.head, s.head)
            mix[slow] = torch.randn(len(slow), s.head, generator=generator) / s.head**0.5
            k[: s.head] = mix @ handed.T
            v[: s.head], out = seen()
            for head in range(each):
                q[head * s.head : (head + 1) * s.head] = mix @ back
                o[:, head * s.head : (head + 1) * s.head] = out
            a.q_norm.weight.fill_(0.6)
            a.k_norm.weight.fill_(0.6)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal: for matrices (Jordan et al., "Muon", 2024)."""

    def __init__(self, matrices: Sequence[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix."""
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                kept = state["momentum"]
                kept.lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonal(parameter.grad.lerp(kept, group["momentum"]))
                scale = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
                parameter.mul_(1 - 0.01 * group["lr"])
                parameter.add_(update, alpha=-group["lr"] * scale)


def orthogonal(x: Tensor, steps: int = 4) -> Tensor:
    """Nearly orthogonal, by Newton and Schulz."""
    turned = x.shape[0] > x.shape[1]
    x = x.T if turned else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if turned else x
