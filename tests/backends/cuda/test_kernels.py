"""Every kernel against torch, on Triton's interpreter: over shapes, tables, windows and images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.interpreted import interpreted  # isort: skip

from coldstream.backends.protocol import Group
from coldstream.backends.spans import SequenceSpan
from coldstream.backends.torch import paged
from coldstream.backends.torch.kv_cache import KvCache, TorchAttend
from coldstream.backends.torch.layers import Norm, PendingTurn, activation
from coldstream.backends.torch.paged import PagedAttend, PagedKernels
from coldstream.backends.torch.weight_only import rounded
from coldstream.engine.kvcache.pool import Table

# numpy warns of what a GPU does in silence: a sigmoid far from zero.
pytestmark = [pytest.mark.filterwarnings("ignore:overflow encountered in exp"), pytest.mark.timeout(600)]
SIZE = 32
KERNELS = interpreted()
CPU = torch.device("cpu")
# An interpreter's launch takes a tenth of a second; what fails is small as it is.
SLOW = settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])


@dataclass(frozen=True)
class Layer:
    window: int | None


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    head_dim: int
    layers: tuple[Layer, ...]
    attention_scale: float = 0.3


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_close(got: Tensor, want: Tensor, *, atol: float, rtol: float) -> None:
    """As torch.testing's, which imports torch.distributed for it."""
    assert got.dtype == want.dtype
    worst = float((got.float() - want.float()).abs().max())
    assert torch.allclose(got.float(), want.float(), atol=atol, rtol=rtol), worst


@st.composite
def steps(draw: Any) -> tuple[Shape, list[SequenceSpan]]:
    """Sequences of any length that decode or read a piece, with images and blocks that lie anywhere."""
    kv_heads = draw(st.sampled_from([1, 2]))
    window = draw(st.sampled_from([5, 33, 64, 600]))
    shape = Shape(
        kv_heads * draw(st.sampled_from([1, 2, 3])),
        kv_heads,
        draw(st.sampled_from([8, 64, 80])),
        (Layer(None), Layer(window)),
    )
    free = list(draw(st.permutations(range(100))))
    spans, row = [], 0
    for _ in range(draw(st.integers(1, 2))):
        start = draw(st.sampled_from([0, 1, 31, 40, 511, 512]))
        count = draw(st.sampled_from([1, 1, 2, 7]))
        end = start + count
        images = []
        if count > 4 and draw(st.booleans()):
            first = draw(st.integers(start, end - 3))
            images.append((first, draw(st.integers(first + 2, end))))
        tables = []
        for layer in shape.layers:
            low = 0 if layer.window is None else max(0, start + 1 - layer.window) // SIZE
            many = -(-end // SIZE) - low
            tables.append(Table(1, low, [free.pop() for _ in range(many)], together=False))
        spans.append(SequenceSpan(row, start, end, tables, images))
        row += count
    return shape, spans


def caches(shape: Shape, dtype: torch.dtype = torch.float32) -> tuple[KvCache, KvCache]:
    """The same random keys and values twice: for torch's attention and for the kernels."""
    groups = [Group(layer.window, 100) for layer in shape.layers]
    made = [KvCache(shape, groups, size=SIZE, dtype=dtype) for _ in range(2)]
    for layer in range(len(shape.layers)):
        for name, seed in (("keys", 1), ("values", 2)):
            values = noise(shape.kv_heads, 100 * SIZE, shape.head_dim, seed=seed + layer, dtype=dtype)
            for cache in made:
                getattr(cache, name)[layer].copy_(values)
    return made[0], made[1]


@SLOW
@given(steps())
def test_attention_is_torchs_over_the_same_blocks(step: tuple[Shape, list[SequenceSpan]]) -> None:
    shape, spans = step
    tokens = sum(span.count for span in spans)
    q = noise(tokens, shape.heads, shape.head_dim)
    k, v = (noise(tokens, shape.kv_heads, shape.head_dim, seed=seed) for seed in (3, 4))
    theirs, ours = caches(shape)
    expected, got = TorchAttend(theirs, spans), PagedAttend.of(ours, PagedKernels(KERNELS, CPU), spans)
    for layer in range(len(shape.layers)):
        assert_close(got(layer, q, k, v), expected(layer, q, k, v), atol=2e-5, rtol=2e-5)
        assert torch.equal(ours.keys[layer], theirs.keys[layer])


def test_attention_in_bfloat16() -> None:
    shape = Shape(4, 2, 64, (Layer(None), Layer(40)))
    tables = [Table(1, 0, list(range(5, 30)), together=False)] * 2
    spans = [SequenceSpan(0, 100, 120, tables), SequenceSpan(20, 700, 701, tables)]
    q, k, v = (noise(21, heads, 64, seed=heads, dtype=torch.bfloat16) for heads in (4, 2, 2))
    theirs, ours = caches(shape, torch.bfloat16)
    expected, got = TorchAttend(theirs, spans), PagedAttend.of(ours, PagedKernels(KERNELS, CPU), spans)
    for layer in range(2):
        assert_close(got(layer, q, k, v), expected(layer, q, k, v), atol=2e-2, rtol=2e-2)


def test_a_token_gets_the_same_bits_alone_and_beside_others() -> None:
    """Parts begin at fixed positions, so that nothing of a sequence's sums depends on who else is in the step."""
    shape = Shape(4, 1, 16, (Layer(None),))
    long = SequenceSpan(0, 1300, 1301, [Table(1, 0, list(range(50)), together=False)])
    other = SequenceSpan(1, 90, 91, [Table(2, 0, [60, 61, 62], together=False)])
    results = []
    for spans in ([long], [long, other]):
        tokens = len(spans)
        q, k, v = (noise(2, heads, 16, seed=heads)[:tokens] for heads in (4, 1, 1))
        cache = caches(shape)[1]
        results.append(PagedAttend.of(cache, PagedKernels(KERNELS, CPU), spans)(0, q, k, v)[0])
    assert 2 * paged.PART < 1301
    assert torch.equal(*results)


@SLOW
@given(
    heads=st.sampled_from([1, 2, 6]),
    head_dim=st.sampled_from([8, 64, 80, 256]),
    normed=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    dropped=st.booleans(),
)
def test_norm_rope_and_slots_in_one_go(
    heads: int, head_dim: int, normed: bool, dtype: torch.dtype, dropped: bool
) -> None:
    tokens, capacity = 3, 64
    qkv = noise(tokens, heads + 2, head_dim, dtype=dtype)
    weights = [noise(head_dim, seed=seed) if normed else None for seed in (5, 6)]
    cos, sin = (noise(tokens, 1, head_dim, seed=seed) for seed in (7, 8))
    pending = PendingTurn(qkv, *weights, 1e-6, cos, sin)
    keys, values = (torch.zeros(1, capacity, head_dim, dtype=dtype) for _ in range(2))
    q = torch.empty(tokens, heads, head_dim, dtype=dtype)
    slots = torch.tensor([40, -1 if dropped else 3, 9], dtype=torch.int32)
    KERNELS.place(pending, q, keys, values, slots)
    want_q, want_k = pending.applied(qkv[:, :heads], qkv[:, heads : heads + 1])
    close = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 4e-2, "rtol": 2e-2}
    assert_close(q, want_q, **close)
    for row, slot in enumerate(slots.tolist()):
        if slot >= 0:
            assert_close(keys[0, slot], want_k[row, 0], **close)
            assert torch.equal(values[0, slot], qkv[row, heads + 1])
    assert int((values != 0).any(-1).sum()) == tokens - dropped


@SLOW
@given(
    hidden=st.sampled_from([16, 48, 640, 1152]),
    adds=st.booleans(),
    sandwich=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_residuals_and_norms(hidden: int, adds: bool, sandwich: bool, dtype: torch.dtype) -> None:
    x, out = noise(3, hidden), noise(3, hidden, seed=1, dtype=dtype)
    before, after = (Norm(hidden, eps=1e-6, offset=1.0, device=CPU) for _ in range(2))
    before.fill(noise(hidden, seed=2))
    after.fill(noise(hidden, seed=3))
    sandwich &= adds
    want = x + (after(out.float()) if sandwich else out.float()) if adds else x.clone()
    y = KERNELS.add_norm(
        x, before.weight, 1e-6, dtype=dtype, out=out if adds else None, after=after.weight if sandwich else None
    )
    assert_close(x, want, atol=1e-5, rtol=1e-5)
    assert_close(y, before(want).to(dtype), atol=1e-5 if dtype == torch.float32 else 5e-2, rtol=1e-2)


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh", "relu"])
@pytest.mark.parametrize("inner", [16, 1040])
def test_gate_and_up(name: Any, inner: int) -> None:
    x = 3 * noise(3, 2 * inner)
    want = activation(name)(x[:, :inner]) * x[:, inner:]
    assert_close(KERNELS.gated(x, name), want, atol=1e-5, rtol=1e-5)


@SLOW
@given(
    rows=st.sampled_from([1, 5, 16, 17, 70]),
    outs=st.sampled_from([16, 33, 96]),
    inner=st.sampled_from([16, 48, 272]),
    biased=st.booleans(),
    to_float=st.booleans(),
)
def test_a_product_with_8_bit_weights(rows: int, outs: int, inner: int, biased: bool, to_float: bool) -> None:
    biased &= not to_float
    x, bias = noise(rows, inner, dtype=torch.bfloat16), noise(outs, seed=2, dtype=torch.bfloat16)
    weight, scales = rounded(noise(outs, inner, seed=1))
    dtype = torch.float32 if to_float else torch.bfloat16
    want = F.linear(x.float(), weight.float() * scales[:, None], bias.float() if biased else None)
    got = KERNELS.multiply8(x, weight, scales, bias if biased else None, dtype=dtype)
    assert_close(got.float(), want, atol=1e-3 if to_float else 5e-1, rtol=1e-2)


@given(st.integers(0, 2**32))
def test_rounding_is_off_by_half_a_level_at_most(seed: int) -> None:
    weight = noise(7, 40, seed=seed) * noise(7, 1, seed=seed + 1).exp()
    weight[3] = 0
    levels, scales = rounded(weight)
    assert (levels.float() * scales[:, None] - weight).abs().le(scales[:, None] * 0.5001).all()
