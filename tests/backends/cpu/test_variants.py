"""Every variant of the kernels gives the same bits, so that an answer does not depend on the processor.

The one for any processor, plain C, is what the others are held against. Those with instructions that this machine lacks
are run too: compiled from the same source with such instructions emulated (emulated.h).
"""

from __future__ import annotations

import ctypes
import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coldstream.backends.cpu import compile as compiling
from coldstream.backends.cpu.library import Kernels, LayerWeights, TowerWeights, Visible
from coldstream.backends.cpu.packed import LAYOUT_VERSION, PackedMatrix, runnable
from coldstream.host.cpu import CpuFeatures
from tests.support.tensor_kernels import TensorKernels

CPU = CpuFeatures.of_this_machine()
EMULATED = {"emulated AVX512-VNNI": 512, "emulated AVX-VNNI": 256} if CPU.avx2 else {}
HEADER = Path(__file__).with_name("emulated.h")


@pytest.fixture(
    scope="module",
    params=[
        *(name for name in runnable(CPU) if name != compiling.ANY),
        *(pytest.param(name, marks=pytest.mark.more) for name in EMULATED),
    ],
)
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TensorKernels:
    if request.param not in EMULATED:
        return TensorKernels(Kernels(compiling.SOURCE.with_name(request.param)))
    flags = ("-march=x86-64-v3", "-O1", "-include", str(HEADER), f"-DEMULATED={EMULATED[request.param]}")
    library = compiling.compile_variant(tmp_path_factory.mktemp("emulated") / "kernels.so", flags)
    return TensorKernels(Kernels(library))


@pytest.fixture(scope="module")
def plain() -> TensorKernels:
    return TensorKernels(Kernels(compiling.SOURCE.with_name(compiling.ANY)))


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed(kernels: TensorKernels, weight: Tensor, *, bias: Tensor | None = None) -> PackedMatrix:
    matrix = PackedMatrix(weight.shape[1], weight.shape[0], bias=None if bias is None else bias.numpy())
    kernels.pack(matrix, weight, 0)
    return matrix


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


def whole(rows: int, columns: int, seed: int, extreme: bool) -> Tensor:
    """Integers that both sides keep as they are: no Hadamard block divides these columns, and every group has a 127."""
    random = torch.Generator().manual_seed(seed)
    values = torch.randint(-127, 128, (rows, columns), generator=random)
    if extreme:
        values = values.sign() * 127
    values[:, ::64] = 127
    return values


columns_without_rotation = st.integers(1, 900).filter(lambda k: k % 8 != 0)


@settings(max_examples=60, deadline=None)
@given(
    k=columns_without_rotation,
    n=st.integers(1, 70),
    tokens=st.integers(1, 100),
    extreme=st.tuples(st.booleans(), st.booleans()),
)
def test_sums_are_those_of_the_integers_themselves(
    variant: TensorKernels, k: int, n: int, tokens: int, extreme: tuple[bool, bool]
) -> None:
    """With scales of 1, and sums that float32 holds exactly: no saturation, no byte or row taken for another."""
    weight, x = whole(n, k, 1, extreme[0]), whole(tokens, k, 2, extreme[1])
    got = variant.multiply(packed(variant, weight.float()), x.float())
    assert torch.equal(got.double(), (x @ weight.T).double())


@settings(max_examples=60, deadline=None)
@given(
    k=st.sampled_from([8, 16, 48, 64, 72, 640, 1000, 1152, 1344]),
    n=st.integers(1, 70),
    tokens=st.integers(1, 60),
    bias=st.booleans(),
    scale=st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e6]),
    peak=st.booleans(),
)
def test_a_product_has_the_same_bits(
    variant: TensorKernels, plain: TensorKernels, k: int, n: int, tokens: int, bias: bool, scale: float, peak: bool
) -> None:
    weight, x, offset = randn(n, k, seed=k), scale * randn(tokens, k, seed=n), randn(n) if bias else None
    if peak:
        x[:, k // 2] = 40 * scale
    one, other = (kernels.multiply(packed(kernels, weight, bias=offset), x) for kernels in (variant, plain))
    assert same_bits(one, other)


@settings(max_examples=30, deadline=None)
@given(k=st.integers(1, 300), n=st.integers(1, 50))
def test_a_packed_matrix_has_the_same_bytes_where_its_header_says(
    variant: TensorKernels, plain: TensorKernels, k: int, n: int
) -> None:
    """One order of bytes for every processor: a packed copy can be made on one and read on another."""
    one, other = (packed(kernels, randn(n, k, seed=k)) for kernels in (variant, plain))
    assert contents(one) == contents(other)
    if k % 8:
        integers = whole(n, k, 3, False)
        data, scales = contents(packed(variant, integers.float()))
        quads = -(-k // 4)
        places = [((o // 16 * quads + c // 4) * 16 + o % 16) * 4 + c % 4 for o in range(n) for c in range(k)]
        assert [data[at] - 128 for at in places] == integers.flatten().tolist()
        assert scales[:n] == [1.0] * n


LAYOUTS = {1: "c1bf9023395f68b2"}
"""What a packed matrix of such a version comes to."""


def test_a_layout_has_its_version(plain: TensorKernels) -> None:
    """Packed copies are kept: bytes that change without their version would be taken for what they are not."""
    digest = hashlib.sha256()
    for n, k in ((5, 3), (16, 64), (33, 200), (70, 640)):
        # fractions that floats hold exactly, from no generator of another's
        weight = torch.tensor([[((o * 977 + c * 331) % 2039 - 1019) / 512 for c in range(k)] for o in range(n)])
        data, scales = contents(packed(plain, weight))
        digest.update(data + np.array(scales, np.float32).tobytes())
    assert LAYOUTS[LAYOUT_VERSION] == digest.hexdigest()[:16]


def contents(matrix: PackedMatrix) -> tuple[bytes, list[float]]:
    """The bytes and the scales of a matrix, with what pads them."""
    rows = -(-matrix.n // 16) * 16
    data = ctypes.string_at(matrix.struct.packed, rows * -(-matrix.k // 4) * 4)
    return data, list((ctypes.c_float * rows).from_address(matrix.struct.scales))


@pytest.mark.parametrize("tokens", [1, 5, 53])
@pytest.mark.parametrize("activation", ["gelu_tanh", "silu", "gelu", "relu"])
def test_a_decoders_layer_has_the_same_bits(
    variant: TensorKernels, plain: TensorKernels, activation: str, tokens: int
) -> None:
    hidden, inner, heads, kv_heads, dim = 72, 104, 4, 2, 32
    shapes = ((heads + 2 * kv_heads) * dim, hidden), (hidden, heads * dim), (2 * inner, hidden), (hidden, inner)
    norms = tuple((1 + 0.1 * randn(size, seed=9)).numpy() for size in (hidden, dim, dim, hidden, hidden, hidden))
    angles = randn(tokens, dim // 2, seed=6)
    cos, sin = angles.cos().repeat(1, 2), torch.cat((-angles.sin(), angles.sin()), -1)

    def run(kernels: TensorKernels) -> tuple[Tensor, Tensor]:
        matrices = [packed(kernels, randn(*shape, seed=i) / math.sqrt(shape[1])) for i, shape in enumerate(shapes)]
        weights = LayerWeights(heads, kv_heads, dim, activation, 1e-6, norms, *matrices)  # type: ignore[arg-type]
        x = 3 * randn(tokens, hidden, seed=5)
        qkv = kernels.before_attention(weights, x, cos, sin)
        kernels.after_attention(weights, randn(tokens, heads * dim, seed=7), x)
        return qkv, x

    assert all(same_bits(*pair) for pair in zip(run(variant), run(plain), strict=True))


@pytest.mark.parametrize("tokens", [1, 53])
def test_a_towers_layer_has_the_same_bits(variant: TensorKernels, plain: TensorKernels, tokens: int) -> None:
    hidden, inner = 36, 43
    shapes = (3 * hidden, hidden), (hidden, hidden), (inner, hidden), (hidden, inner)
    norms = tuple(randn(hidden, seed=seed).numpy() for seed in range(4))

    def run(kernels: TensorKernels) -> tuple[Tensor, Tensor]:
        matrices = [packed(kernels, randn(*shape), bias=randn(shape[0], seed=4)) for shape in shapes]
        weights = TowerWeights(3, "gelu_tanh", 1e-6, norms, *matrices)
        x = randn(tokens, hidden, seed=5)
        qkv = kernels.tower_before(weights, x)
        kernels.tower_after(weights, randn(tokens, hidden, seed=7), x)
        return qkv, x

    assert all(same_bits(*pair) for pair in zip(run(variant), run(plain), strict=True))


@settings(max_examples=30, deadline=None)
@given(
    tokens=st.integers(1, 90),
    start=st.integers(0, 70),
    window=st.sampled_from([None, 1, 7, 64]),
    shape=st.sampled_from([(4, 1, 16), (4, 2, 32), (3, 3, 16), (7, 1, 48), (8, 1, 64)]),
    loudness=st.sampled_from([0.1, 1.0, 30.0]),
)
def test_attention_has_the_same_bits(
    variant: TensorKernels,
    plain: TensorKernels,
    tokens: int,
    start: int,
    window: int | None,
    shape: tuple[int, int, int],
    loudness: float,
) -> None:
    heads, kv_heads, dim = shape
    q, k, v = (loudness * randn(tokens, count, dim, seed=i) for i, count in enumerate((heads, kv_heads, kv_heads)))
    slots, zero = 160, np.array([0])
    visible = Visible(
        slots, window, row=zero, start=zero + start, count=zero + tokens, first=zero, first_block=zero, blocks=zero,
        upper=np.arange(start + 1, start + tokens + 1),
    )  # fmt: skip

    def run(kernels: TensorKernels) -> Tensor:
        keys, values = loudness * randn(2, kv_heads, slots, dim, seed=8)
        return kernels.attention(visible, q, k, v, keys, values, scale=0.25)

    assert same_bits(run(variant), run(plain))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40),
    n=st.integers(1, 300),
    loudness=st.sampled_from([0.0, 1e-20, 1.0, 90.0]),
    activation=st.sampled_from(["gelu_tanh", "silu", "gelu", "relu"]),
    has_norm=st.booleans(),
)
def test_rows_between_products_have_the_same_bits(
    variant: TensorKernels, plain: TensorKernels, rows: int, n: int, loudness: float, activation: str, has_norm: bool
) -> None:
    """What float32's decoder and the towers do to rows, on every width with a rest of its own."""
    x, both, weight = loudness * randn(rows, n), loudness * randn(rows, 2 * n, seed=1), 1 + randn(n, seed=2)

    def run(kernels: TensorKernels) -> list[Tensor]:
        summed, added = x.clone(), both[:, :n].clone(memory_format=torch.contiguous_format)
        kernels.residual(summed, added, weight if has_norm else None, 1e-6)
        activated, softened = x.clone(), x.clone()
        kernels.activate(activated, activation)
        kernels.soften(softened)
        apart = kernels.normalise(x, weight, 1e-6), kernels.centre(x, weight, x[0].clone(), 1e-6)
        return [summed, activated, softened, *apart, kernels.gated(both, activation)]

    assert all(same_bits(*pair) for pair in zip(run(variant), run(plain), strict=True))


@settings(max_examples=20, deadline=None)
@given(tokens=st.integers(1, 20), heads=st.integers(1, 4), half=st.integers(1, 40), has_norm=st.booleans())
def test_turned_heads_have_the_same_bits(
    variant: TensorKernels, plain: TensorKernels, tokens: int, heads: int, half: int, has_norm: bool
) -> None:
    d = 2 * half
    angles, norm = randn(tokens, half), 1 + randn(d, seed=3) if has_norm else None
    turn = angles.cos().repeat(1, 2), torch.cat((-angles.sin(), angles.sin()), -1)

    def run(kernels: TensorKernels) -> Tensor:
        qkv = randn(tokens, (heads + 2) * d, seed=4)
        kernels.turn(qkv, 1, heads, d, turn, norm, 1e-6)
        return qkv

    assert same_bits(run(variant), run(plain))


@settings(max_examples=40, deadline=None)
@given(
    vocab=st.one_of(st.integers(1, 300), st.integers(1, 200).map(lambda count: 64 * count)),
    temperature=st.sampled_from([0.01, 0.7, 1.0, 30.0]),
    loudness=st.sampled_from([0.0, 1.0, 50.0]),
    forbidden=st.booleans(),
    points=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=4),
)
def test_a_draw_is_the_same(
    variant: TensorKernels,
    plain: TensorKernels,
    vocab: int,
    temperature: float,
    loudness: float,
    forbidden: bool,
    points: list[float],
) -> None:
    """A seed gives the same tokens wherever a request is answered, with forbidden tokens among them too."""
    logits = loudness * randn(vocab)
    if forbidden:
        logits[1::3] = -math.inf
    top = float(logits.max() / temperature)

    def run(kernels: TensorKernels) -> tuple[object, ...]:
        best = kernels.tops(logits).tolist() if vocab % 64 == 0 else None
        drawn = [kernels.pick(logits, temperature, top, point) for point in points]
        return kernels.mass(logits, temperature, top), drawn, best

    assert run(variant) == run(plain)
