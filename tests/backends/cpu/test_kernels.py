"""Every compiled variant: right to the last integer where it can be, the same bits in any batch, and like torch."""

from __future__ import annotations

import math
import platform
import subprocess
import sys
from ctypes import Structure, c_int64
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coldstream.backends.cpu import compile as compiling
from coldstream.backends.cpu import library
from coldstream.backends.cpu import packed as packed_module
from coldstream.backends.cpu.library import STRUCTS, Kernels, LayerWeights, TowerWeights, Visible, load
from coldstream.backends.cpu.packed import (
    Matrix,
    PackedMatrix,
    is_built,
    open_library,
    openmp,
    rotation_order,
    runnable,
)
from coldstream.errors import UnsupportedConfig
from coldstream.host.cpu import CpuFeatures
from tests.support.tensor_kernels import TensorKernels

RUNNABLE = runnable(CpuFeatures.of_this_machine())


@pytest.fixture(scope="module", params=RUNNABLE)
def kernels(request: pytest.FixtureRequest) -> TensorKernels:
    return TensorKernels(Kernels(compiling.SOURCE.with_name(request.param)))


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed(kernels: TensorKernels, weight: Tensor, *, bias: Tensor | None = None) -> PackedMatrix:
    matrix = PackedMatrix(weight.shape[1], weight.shape[0], bias=None if bias is None else bias.numpy())
    kernels.pack(matrix, weight, 0)
    return matrix


def same(a: Tensor, b: Tensor) -> float:
    """The relative distance."""
    return float((a - b).norm() / b.norm().clamp(min=1e-9))


def test_the_best_variant_for_this_cpu_is_what_loads() -> None:
    assert is_built()
    assert load().path.name == RUNNABLE[0]


def test_without_a_compiled_variant_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedConfig, match="reinstall coldstream"):
        load(tmp_path)


@pytest.mark.parametrize("name", STRUCTS)
def test_a_library_compiled_from_other_structs_is_an_error_that_names_them(name: str) -> None:
    class Larger(Structure):
        _fields_ = (("all_of_it", STRUCTS[name]), ("one_more", c_int64))

    with pytest.raises(UnsupportedConfig, match=rf"its {name} has \d+ bytes.*reinstall coldstream"):
        open_library(compiling.SOURCE.with_name(RUNNABLE[0]), STRUCTS | {name: Larger})


def test_a_library_that_does_not_say_its_structs_is_refused() -> None:
    with pytest.raises(UnsupportedConfig, match="its Unheard has an unknown number of bytes"):
        open_library(compiling.SOURCE.with_name(RUNNABLE[0]), {"Unheard": Matrix})


def test_every_struct_that_ctypes_declares_is_compared() -> None:
    declared = {thing for room in (library, packed_module) for thing in vars(room).values() if isinstance(thing, type)}
    assert {thing for thing in declared if issubclass(thing, Structure)} - {Structure} == set(STRUCTS.values())


def test_what_is_no_library_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / compiling.ANY).write_bytes(b"\x7fELF, but no more")
    with pytest.raises(UnsupportedConfig, match=r"cannot be loaded.*apt-get install libgomp1"):
        load(tmp_path)


@pytest.mark.parametrize("brought", ["torch/lib/libgomp.so.1", "torch.libs/libgomp-24e2ab19.so.1.0.0"])
def test_the_openmp_that_torchs_wheel_brings_is_found_by_its_path(brought: str, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    assert openmp(None) == openmp(tmp_path / "torch") == "libgomp.so.1"
    (tmp_path / brought).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / brought).touch()
    assert openmp(tmp_path / "torch") == str(tmp_path / brought)


@pytest.mark.parametrize("first", ["import torch", "pass"])
def test_there_is_one_openmp_in_a_process_whatever_comes_first(first: str) -> None:
    code = f"""
{first}
from coldstream.backends.cpu.packed import best_library, open_library
open_library(best_library(), {{}})
import torch
torch.ones(300, 300) @ torch.ones(300, 300)
print(*{{line.split()[-1] for line in open("/proc/self/maps") if "gomp" in line}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [Path(path).parent for path in done.stdout.split()] == [Path(torch.__file__).with_name("lib")]


def test_variants_are_those_of_the_machine() -> None:
    assert set(compiling.variants("aarch64")) == {compiling.ANY}
    every = {compiling.ANY, compiling.AVX2, compiling.AVX_VNNI, compiling.VNNI}
    assert set(compiling.variants("x86_64")) == every
    assert all(compiling.SOURCE.with_name(name).exists() for name in compiling.variants(platform.machine()))


@settings(max_examples=60, deadline=None)
@given(k=st.integers(1, 300), n=st.integers(1, 70), tokens=st.integers(1, 110), bias=st.booleans())
def test_a_product_of_any_shape_is_what_its_own_rows_say(
    kernels: TensorKernels, k: int, n: int, tokens: int, bias: bool
) -> None:
    """Against the packed rows themselves there is only the rounding of activations; no shape reads beyond its end."""
    offset = randn(n, seed=3) if bias else None
    matrix = packed(kernels, randn(n, k, seed=k), bias=offset)
    weight = kernels.rows(matrix, torch.arange(n))
    x = randn(tokens, k, seed=n)
    want = x @ weight.T if offset is None else x @ weight.T + offset
    allowed = x.abs().amax(1, keepdim=True) * math.sqrt(k) / 127 * weight.norm(dim=1) * math.sqrt(k) + 1e-4
    assert bool(((kernels.multiply(matrix, x) - want).abs() <= allowed).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_rows_come_back_within_half_a_step_of_every_dtype(kernels: TensorKernels, dtype: torch.dtype) -> None:
    weight = (randn(50, 96) * torch.logspace(-6, 2, 50)[:, None]).to(dtype)
    back = kernels.rows(packed(kernels, weight), torch.arange(50))
    exact = weight.float()
    assert bool(((back - exact).norm(dim=1) <= 0.01 * exact.norm(dim=1)).all())


def test_subnormal_and_largest_float16_are_read_exactly(kernels: TensorKernels) -> None:
    for value in (2**-24, 2**-14, 65504.0, -0.5):
        back = kernels.rows(packed(kernels, torch.full((1, 1), value, dtype=torch.float16)), torch.tensor([0]))
        assert float(back) == pytest.approx(value, rel=1e-6)


def test_sums_do_not_overflow_where_everything_is_largest(kernels: TensorKernels) -> None:
    for k in (64, 640, 2048, 21504, 150_016):
        spike = torch.zeros(1, k)
        spike[0, :: rotation_order(k)] = 1.0  # rotated, every column is as large as any
        got = kernels.multiply(packed(kernels, spike), spike)
        assert float(got) == pytest.approx(float(spike.sum()), rel=1e-3)


def test_a_row_of_zeros_is_zeros_and_one_of_infinity_does_not_spread(kernels: TensorKernels) -> None:
    matrix = packed(kernels, randn(24, 64))
    assert torch.equal(kernels.multiply(matrix, torch.zeros(3, 64)), torch.zeros(3, 24))
    x = randn(3, 64)
    alone = kernels.multiply(matrix, x[:1])
    x[1] = math.inf
    assert torch.equal(kernels.multiply(matrix, x)[:1], alone)


@settings(max_examples=30, deadline=None)
@given(first=st.integers(0, 40), rows=st.integers(1, 40))
def test_rows_packed_in_pieces_are_the_rows_packed_at_once(kernels: TensorKernels, first: int, rows: int) -> None:
    weight = randn(80, 48)
    whole, pieces = packed(kernels, weight), packed(kernels, torch.zeros(80, 48))
    for start, end in ((first, first + rows), (0, first), (first + rows, 80)):
        if start < end:
            kernels.pack(pieces, weight[start:end], start)
    ids = torch.arange(80)
    assert torch.equal(kernels.rows(pieces, ids), kernels.rows(whole, ids))


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 120))
def test_a_row_has_the_same_bits_alone_and_in_any_batch(kernels: TensorKernels, count: int) -> None:
    matrix, x = packed(kernels, randn(70, 192)), randn(120, 192)
    together = kernels.multiply(matrix, x[:count])
    assert torch.equal(together, torch.cat([kernels.multiply(matrix, row[None]) for row in x[:count]]))


def test_a_cpu_runs_what_it_has_instructions_for_the_best_first() -> None:
    every = CpuFeatures(avx2=True, avx_vnni=True, avx512_vnni=True, bfloat16=False)
    assert runnable(every) == (compiling.VNNI, compiling.AVX_VNNI, compiling.AVX2, compiling.ANY)
    assert runnable(CpuFeatures(avx2=False, avx_vnni=False, avx512_vnni=False, bfloat16=False)) == (compiling.ANY,)


# -- half layers -------------------------------------------------------------------------------------------------------

CLOSE = 3e-3
"""Where an activation lies between two levels, the last bit of a float decides, and torch's need not be ours."""
HIDDEN, INNER, HEADS, KV_HEADS, DIM = 64, 96, 4, 2, 32


def layer(
    kernels: TensorKernels, activation: str, *, sandwich: bool, qk_norm: bool
) -> tuple[LayerWeights, list[Tensor]]:
    shapes = ((HEADS + 2 * KV_HEADS) * DIM, HIDDEN), (HIDDEN, HEADS * DIM), (2 * INNER, HIDDEN), (HIDDEN, INNER)
    matrices = [packed(kernels, randn(*shape, seed=i) / math.sqrt(shape[1])) for i, shape in enumerate(shapes)]
    sizes = (HIDDEN, DIM, DIM, HIDDEN, HIDDEN, HIDDEN)
    norms = [1 + 0.1 * randn(size, seed=9) for size in sizes]
    kept = (True, qk_norm, qk_norm, sandwich, True, sandwich)
    weights = LayerWeights(
        HEADS,
        KV_HEADS,
        DIM,
        activation,  # type: ignore[arg-type]
        1e-6,
        tuple(norm.numpy() if keep else None for norm, keep in zip(norms, kept, strict=True)),
        *matrices,
    )
    return weights, [kernels.rows(matrix, torch.arange(matrix.n)) for matrix in matrices]


def rounded(x: Tensor) -> Tensor:
    """What the kernels multiply with in place of a row, once it is rotated: 127 levels to either side for every 64."""
    order = rotation_order(x.shape[-1])
    hadamard = torch.ones(1, 1)
    while len(hadamard) < order:
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    turned = (x.unflatten(-1, (-1, order)) @ hadamard).flatten(-2)
    groups = F.pad(turned, (0, -x.shape[-1] % 64)).unflatten(-1, (-1, 64))
    step = groups.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    whole = ((groups / step).round() * step).flatten(-2)[..., : x.shape[-1]]
    return whole.unflatten(-1, (-1, order)).matmul(hadamard).flatten(-2) / order


def norm(x: Tensor, weight: Tensor | None) -> Tensor:
    return x if weight is None else F.rms_norm(x, (x.shape[-1],), weight, 1e-6)


@pytest.mark.parametrize("tokens", [1, 5, 101])
@pytest.mark.parametrize(
    ("activation", "sandwich"), [("gelu_tanh", True), ("silu", False), ("gelu", False), ("relu", True)]
)
def test_half_layers_are_what_torch_makes_of_the_same_weights(
    kernels: TensorKernels, activation: str, sandwich: bool, tokens: int
) -> None:
    weights, (qkv, output, gate_up, down) = layer(kernels, activation, sandwich=sandwich, qk_norm=sandwich)
    before, q_norm, k_norm, after, before_mlp, after_mlp = (
        None if norm is None else torch.from_numpy(norm) for norm in weights.norms
    )
    x = 3 * randn(tokens, HIDDEN, seed=5)
    angles = randn(tokens, 1, DIM // 2, seed=6)
    cos, sin = angles.cos().repeat(1, 1, 2), torch.cat((-angles.sin(), angles.sin()), -1)

    got = kernels.before_attention(weights, x, cos, sin)
    q, k, v = (rounded(norm(x, before)) @ qkv.T).view(tokens, -1, DIM).split((HEADS, KV_HEADS, KV_HEADS), 1)
    turned = [part * cos + torch.cat(part.chunk(2, -1)[::-1], -1) * sin for part in (norm(q, q_norm), norm(k, k_norm))]
    assert same(got, torch.cat([*turned, v], 1).reshape(tokens, -1)) < CLOSE

    attended = randn(tokens, HEADS * DIM, seed=7)
    want = x + norm(rounded(attended) @ output.T, after)
    gate, up = (rounded(norm(want, before_mlp)) @ gate_up.T).chunk(2, -1)
    nonlinear = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}.get(
        activation, lambda y: F.gelu(y, approximate="tanh")
    )
    want = want + norm(rounded(nonlinear(gate) * up) @ down.T, after_mlp)
    kernels.after_attention(weights, attended, x)
    assert same(x, want) < CLOSE


@pytest.mark.parametrize("tokens", [1, 5, 101])
@pytest.mark.parametrize(("hidden", "inner", "heads"), [(64, 96, 4), (36, 43, 3)])
def test_a_tower_layers_halves_are_what_torch_makes_of_the_same_weights(
    kernels: TensorKernels, hidden: int, inner: int, heads: int, tokens: int
) -> None:
    shapes = (3 * hidden, hidden), (hidden, hidden), (inner, hidden), (hidden, inner)
    biases = [randn(shape[0], seed=20 + i) for i, shape in enumerate(shapes)]
    matrices = [
        packed(kernels, randn(*shape, seed=i) / math.sqrt(shape[1]), bias=bias)
        for i, (shape, bias) in enumerate(zip(shapes, biases, strict=True))
    ]
    norms = (1 + 0.1 * randn(hidden, seed=1), randn(hidden, seed=2), 1 + 0.1 * randn(hidden, seed=3), randn(hidden))
    first, first_bias, second, second_bias = (norm.numpy() for norm in norms)
    weights = TowerWeights(heads, "gelu_tanh", 1e-6, (first, first_bias, second, second_bias), *matrices)
    qkv, output, up, down = [
        partial(F.linear, weight=kernels.rows(matrix, torch.arange(matrix.n)), bias=bias)
        for matrix, bias in zip(matrices, biases, strict=True)
    ]
    x = 3 * randn(tokens, hidden, seed=5) + 1

    got = kernels.tower_before(weights, x)
    parts = qkv(rounded(F.layer_norm(x, (hidden,), *norms[:2], 1e-6))).view(tokens, 3, heads, -1)
    assert same(got, parts.permute(1, 2, 0, 3)) < CLOSE

    attended = randn(tokens, hidden, seed=7)
    want = x + output(rounded(attended))
    inside = F.gelu(up(rounded(F.layer_norm(want, (hidden,), *norms[2:], 1e-6))), approximate="tanh")
    want = want + down(rounded(inside))
    kernels.tower_after(weights, attended, x)
    assert same(x, want) < CLOSE


# -- attention ---------------------------------------------------------------------------------------------------------

SIZE, SLOTS = 8, 1024


class Cache:
    """Keys and values of whole sequences, put where their blocks say."""

    def __init__(self, lengths: list[int], heads: int, kv_heads: int, dim: int) -> None:
        total = sum(lengths)
        self.q, self.k, self.v = (
            randn(total, heads, dim),
            randn(total, kv_heads, dim, seed=1),
            randn(total, kv_heads, dim),
        )
        self.keys, self.values = torch.full((2, kv_heads, SLOTS, dim), math.nan).unbind()
        blocks = torch.randperm(SLOTS // SIZE, generator=torch.Generator().manual_seed(2)).tolist()
        self.tables = [[blocks.pop() for _ in range(-(-length // SIZE))] for length in lengths]
        self.lengths = lengths
        self.starts = [sum(lengths[:i]) for i in range(len(lengths))]

    def run(self, kernels: TensorKernels, spans: list[tuple[int, int, int]], window: int | None) -> Tensor:
        """Attend to positions `start ... end - 1` of each (sequence, start, end)."""
        rows = torch.cat([torch.arange(self.starts[i] + start, self.starts[i] + end) for i, start, end in spans])
        counts = [end - start for _, start, end in spans]
        firsts = [0 if window is None else max(0, start + 1 - window) // SIZE for _, start, _ in spans]
        tables = [self.tables[i][first:] for (i, _, _), first in zip(spans, firsts, strict=True)]
        visible = Visible(
            SIZE,
            window,
            row=np.array([sum(counts[:i]) for i in range(len(counts))], np.int64),
            start=np.array([start for _, start, _ in spans], np.int64),
            count=np.array(counts, np.int64),
            first=np.array(firsts, np.int64),
            first_block=np.array([sum(map(len, tables[:i])) for i in range(len(tables))], np.int64),
            blocks=np.array([block for table in tables for block in table], np.int64),
            upper=np.array([position + 1 for _, start, end in spans for position in range(start, end)], np.int64),
        )
        return kernels.attention(visible, self.q[rows], self.k[rows], self.v[rows], self.keys, self.values, scale=0.25)

    def exact(self, sequence: int, window: int | None) -> Tensor:
        """What torch says of a whole sequence."""
        own = slice(self.starts[sequence], self.starts[sequence] + self.lengths[sequence])
        q, k, v = (x[own].transpose(0, 1)[None] for x in (self.q, self.k, self.v))
        distance = torch.arange(self.lengths[sequence])[:, None] - torch.arange(self.lengths[sequence])
        mask = (distance >= 0) & (distance < (window or 1 << 30))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.25, enable_gqa=True)
        return out[0].transpose(0, 1).flatten(1)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=4),
    window=st.sampled_from([None, 1, 7, 64, 100]),
    shape=st.sampled_from([(4, 1, 16), (4, 2, 32), (3, 3, 16), (8, 1, 64)]),
    data=st.data(),
)
def test_attention_is_torchs_and_has_the_same_bits_however_it_is_cut(
    kernels: TensorKernels, lengths: list[int], window: int | None, shape: tuple[int, int, int], data: st.DataObject
) -> None:
    whole, cut = Cache(lengths, *shape), Cache(lengths, *shape)
    at_once = whole.run(kernels, [(i, 0, length) for i, length in enumerate(lengths)], window)
    for i, length in enumerate(lengths):
        own = slice(whole.starts[i], whole.starts[i] + length)
        assert torch.allclose(at_once[own], whole.exact(i, window), atol=2e-5)
        done = 0
        while done < length:
            count = data.draw(st.integers(1, length - done))
            part = cut.run(kernels, [(i, done, done + count)], window)
            assert torch.equal(part, at_once[own][done : done + count])
            done += count


def test_tokens_of_an_image_see_one_another(kernels: TensorKernels) -> None:
    cache = Cache([40], 2, 1, 16)
    upper = torch.arange(1, 41)
    upper[10:20] = 20
    one = np.array([0])
    visible = Visible(
        SIZE, None, row=one, start=one, count=one + 40, first=one, first_block=one,
        blocks=np.array(cache.tables[0]), upper=upper.numpy(),
    )  # fmt: skip
    got = kernels.attention(visible, cache.q, cache.k, cache.v, cache.keys, cache.values, scale=0.25)
    q, k, v = (x.transpose(0, 1)[None] for x in (cache.q, cache.k, cache.v))
    mask = torch.arange(40)[None] < upper[:, None]
    want = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.25, enable_gqa=True)
    assert torch.allclose(got, want[0].transpose(0, 1).flatten(1), atol=2e-5)


# -- rows between products ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "n"), [(1, 48), (7, 33), (300, 256)])
def test_rows_between_products_are_what_torch_makes_of_them(kernels: TensorKernels, rows: int, n: int) -> None:
    x, weight, bias = 3 * randn(rows, n), 1 + 0.1 * randn(n, seed=1), randn(n, seed=2)
    assert same(kernels.normalise(x, weight, 1e-6), F.rms_norm(x, (n,), weight, 1e-6)) < 1e-6
    assert same(kernels.centre(x, weight, bias, 1e-6), F.layer_norm(x, (n,), weight, bias, 1e-6)) < 1e-5
    sums, more = x.clone(), randn(rows, n, seed=3)
    kernels.residual(sums, more.clone(), weight, 1e-6)
    assert same(sums, x + F.rms_norm(more, (n,), weight, 1e-6)) < 1e-6
    kernels.residual(sums, more.clone(), None, 1e-6)
    assert same(sums, x + F.rms_norm(more, (n,), weight, 1e-6) + more) < 1e-6
    soft = 10 * x
    kernels.soften(soft)
    assert same(soft, (10 * x).softmax(-1)) < 1e-5
    for name, nonlinear in (("silu", F.silu), ("gelu", F.gelu), ("relu", F.relu)):
        active, both = x.clone(), torch.cat((x, more), 1)
        kernels.activate(active, name)
        assert same(active, nonlinear(x)) < 1e-5
        assert same(kernels.gated(both, name), nonlinear(x) * more) < 1e-5


@pytest.mark.parametrize("normed", [True, False])
def test_heads_are_turned_where_they_lie(kernels: TensorKernels, normed: bool) -> None:
    tokens, d = 70, 24
    wide, weight = randn(tokens, 5 * d), 1 + 0.1 * randn(d, seed=1) if normed else None
    angles = randn(tokens, d // 2, seed=6)
    cos, sin = angles.cos().repeat(1, 2), torch.cat((-angles.sin(), angles.sin()), -1)
    heads = norm(wide.view(tokens, 5, d)[:, 1:3], weight)
    want = wide.clone().view(tokens, 5, d)
    want[:, 1:3] = heads * cos[:, None] + torch.cat(heads.chunk(2, -1)[::-1], -1) * sin[:, None]
    kernels.turn(wide, 1, 2, d, (cos, sin), weight, 1e-6)
    assert same(wide, want.view(tokens, -1)) < 1e-6


@pytest.mark.parametrize("n", [1, 64, 4_096, 5_000])
def test_the_mass_of_a_row_and_its_segments_tops(kernels: TensorKernels, n: int) -> None:
    x = 4 * randn(n)
    x[n // 2] = float("-inf") if n > 1 else 0.0
    top = float(x.max() / 0.7)
    expected = float((x.double() / 0.7 - top).exp().sum())
    assert kernels.mass(x, 0.7, top) == pytest.approx(expected, rel=1e-6)
    if n % 64 == 0:
        assert torch.equal(kernels.tops(x), x.view(-1, 64).amax(1))
