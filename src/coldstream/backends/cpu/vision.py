"""Gemma 3's eyes on the CPU: the SigLIP tower (Zhai et al. 2023) and the projector, on numpy and our kernels.

Patches go through the first matrix as one product, the layers see all patches of an image at once, and an average pool
and a projection leave `tokens_per_image` vectors of the text model's width. The tower has one gate of its own, so that
text never waits for it. Pan and scan is not done: an image is seen once, whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coldstream.backends.cpu.address import Floats
from coldstream.backends.cpu.layer import Making
from coldstream.backends.cpu.library import Kernels, TowerWeights
from coldstream.backends.cpu.linear import Matrices, PackedMatrices
from coldstream.backends.cpu.norms import LayerNorm, RmsNorm
from coldstream.backends.gate import Gate
from coldstream.backends.parameter import Parameter
from coldstream.errors import EngineError
from coldstream.model.image_processor import ImageProcessor, Pixels
from coldstream.model.vision_config import VisionConfig

_QUERIES = 512
"""Patches whose scores are held at a time: 512 x 4,096 float32 are 8 MiB."""


class _TowerLayer:
    """Norm, attention of all patches to all, norm, MLP, with residuals."""

    def __init__(self, config: VisionConfig, making: Making) -> None:
        hidden, inner = config.hidden_size, config.intermediate_size
        matrices = partial(making.matrices, bias=True)
        self._config, self._kernels, self._is_packed = config, making.kernels, making.is_packed
        self.before_attention, self.before_mlp = LayerNorm(hidden), LayerNorm(hidden)
        self.qkv, self.output = matrices(hidden, (hidden, hidden, hidden)), matrices(hidden, (hidden,))
        self.up, self.down = matrices(hidden, (inner,)), matrices(inner, (hidden,))
        self._built: TowerWeights | None = None

    def __call__(self, x: Floats) -> None:
        """Add to x, float32 `[patches, hidden]`, in place."""
        if self._is_packed:
            weights = self._weights()
            attended = _attended(self._kernels.tower_before(weights, x), self._kernels)
            self._kernels.tower_after(weights, attended, x)
            return
        kernels, config = self._kernels, self._config
        first, second = self.before_attention, self.before_mlp
        qkv = self.qkv.product(kernels.of_rows.centre(x, first.weight, first.bias, config.norm_eps))
        split = qkv.reshape(len(x), 3, config.heads, -1).transpose(1, 2, 0, 3)
        x += self.output.product(_attended(np.ascontiguousarray(split), kernels))
        inner = self.up.product(kernels.of_rows.centre(x, second.weight, second.bias, config.norm_eps))
        kernels.of_rows.activate(inner, config.activation)
        x += self.down.product(inner)

    def _weights(self) -> TowerWeights:
        """The layer as the kernels take it, once the tower's gate is open."""
        if self._built is None:
            config, first, second = self._config, self.before_attention, self.before_mlp
            norms = (first.weight, first.bias, second.weight, second.bias)
            all_matrices = (self.qkv, self.output, self.up, self.down)
            packed = (item.matrix for item in all_matrices if isinstance(item, PackedMatrices))
            self._built = TowerWeights(config.heads, config.activation, config.norm_eps, norms, *packed)
        return self._built

    def parameters(self, prefix: str) -> Iterator[Parameter]:
        yield from _norm_parameters(self.before_attention, f"{prefix}layer_norm1")
        yield from _matrix_parameters(self.qkv, [f"{prefix}self_attn.{name}_proj" for name in "qkv"])
        yield from _matrix_parameters(self.output, [f"{prefix}self_attn.out_proj"])
        yield from _norm_parameters(self.before_mlp, f"{prefix}layer_norm2")
        yield from _matrix_parameters(self.up, [f"{prefix}mlp.fc1"])
        yield from _matrix_parameters(self.down, [f"{prefix}mlp.fc2"])


class CpuTower:
    """Pixels to vectors. Filled through `parameters()` (see `Assembly`), as the decoder is."""

    def __init__(self, config: VisionConfig, making: Making) -> None:
        self.config = config
        self.gate = Gate("vision tower")
        self._kernels = making.kernels
        hidden, patch = config.hidden_size, config.channels * config.patch_size**2
        self._patches = making.matrices(patch, (hidden,), bias=True)
        self._positions = np.zeros((config.patches_per_side**2, hidden), np.float32)
        self._layers = [_TowerLayer(config, making) for _ in range(config.layers)]
        self._after = LayerNorm(hidden)
        self._norm = RmsNorm(hidden, offset=1.0)
        self._projection = making.matrices(hidden, (config.text_hidden_size,), bias=False)

    def encode(self, pixels: Floats) -> Floats:
        """Normalised float32 `[3, image_size, image_size]` -> float32 `[tokens_per_image, text hidden]`.

        Waits for the tower's bytes; raises what the load failed with.
        """
        self.gate.wait()
        config, kernels = self.config, self._kernels
        x = self._patches.product(_unfolded(pixels, config.patch_size))
        x += self._positions
        for layer in self._layers:
            layer(x)
        pooled = self._pooled(kernels.of_rows.centre(x, self._after.weight, self._after.bias, config.norm_eps))
        return self._projection.product(kernels.of_rows.normalise(pooled, self._norm.weight, config.norm_eps))

    def _pooled(self, x: Floats) -> Floats:
        """The mean of each square of patches: `[patches, hidden]` -> `[tokens_per_image, hidden]`."""
        config = self.config
        squares = x.reshape(config.tokens_per_side, config.pool, config.tokens_per_side, config.pool, -1)
        pooled: Floats = squares.mean((1, 3)).reshape(config.tokens_per_image, -1)
        return pooled

    def parameters(self) -> Iterator[Parameter]:
        """In order of execution; names as `model.names.tower_parameter` gives them."""
        config = self.config
        patch = (config.hidden_size, config.channels, config.patch_size, config.patch_size)
        embeddings = "embeddings.patch_embedding"
        yield Parameter(f"{embeddings}.weight", patch, "vision", self._fill_patches)
        yield Parameter(f"{embeddings}.bias", patch[:1], "vision", partial(self._patches.fill_bias, 0))
        positions = self._positions.shape
        yield Parameter("embeddings.position_embedding.weight", positions, "vision", self._fill_positions)
        for index, layer in enumerate(self._layers):
            yield from layer.parameters(f"encoder.layers.{index}.")
        yield from _norm_parameters(self._after, "post_layernorm")
        size = (config.hidden_size,)
        yield Parameter("multi_modal_projector.mm_soft_emb_norm.weight", size, "vision", self._norm.fill)
        shape = (config.hidden_size, config.text_hidden_size)
        yield Parameter("multi_modal_projector.mm_input_projection_weight", shape, "vision", self._fill_projection)

    def _fill_patches(self, weight: NDArray[Any]) -> None:
        self._patches.fill(0, weight.reshape(len(weight), -1))

    def _fill_positions(self, weight: NDArray[Any]) -> None:
        self._positions[:] = weight

    def _fill_projection(self, weight: NDArray[Any]) -> None:
        self._projection.fill(0, np.ascontiguousarray(weight.T))  # it is saved as what vectors are multiplied with


class CpuSight:
    """A tower together with the way pictures become its pixels: what the engine looks at images with."""

    def __init__(self, tower: CpuTower, processor: ImageProcessor) -> None:
        self._tower, self._processor = tower, processor
        self.tokens_per_image = tower.config.tokens_per_image
        self.image_id = tower.config.image_id

    def encode(self, pixels: Pixels) -> Floats:
        """uint8 `[height, width, 3]`, as the processor resized it -> float32 `[tokens_per_image, text hidden]`.

        Raises:
            EngineError: the result is not finite.
        """
        vectors = self._tower.encode(self._processor.normalise(pixels))
        if not np.isfinite(vectors).all():
            raise EngineError("the vision tower's result is not finite; load the model in float32")
        return vectors


def _attended(qkv: Floats, kernels: Kernels) -> Floats:
    """q, k and v, `[3, heads, patches, head_dim]` -> `[patches, heads * head_dim]`; all patches see all."""
    _, heads, patches, d = qkv.shape
    out = np.empty((patches, heads, d), np.float32)
    scale = np.float32(1 / math.sqrt(d))
    scores = np.empty((min(_QUERIES, patches), patches), np.float32)
    for head in range(heads):
        q, k, v = qkv[:, head]
        q = q * scale
        for first in range(0, patches, _QUERIES):
            some = q[first : first + _QUERIES]
            weights = np.matmul(some, k.T, out=scores[: len(some)])
            kernels.of_rows.soften(weights)
            out[first : first + _QUERIES, head] = weights @ v
    return out.reshape(patches, -1)


def _unfolded(pixels: Floats, patch: int) -> Floats:
    """`[3, height, width]` -> `[patches, 3 * patch * patch]`, row by row, each as the convolution's kernel lies."""
    channels, height, width = pixels.shape
    squares = pixels.reshape(channels, height // patch, patch, width // patch, patch)
    return squares.transpose(1, 3, 0, 2, 4).reshape(-1, channels * patch * patch)


def _norm_parameters(norm: LayerNorm, name: str) -> Iterator[Parameter]:
    yield Parameter(f"{name}.weight", norm.weight.shape, "vision", norm.fill)
    yield Parameter(f"{name}.bias", norm.bias.shape, "vision", norm.fill_bias)


def _matrix_parameters(matrices: Matrices, names: Sequence[str]) -> Iterator[Parameter]:
    for part, name in enumerate(names):
        shape = (matrices.sizes[part], matrices.in_features)
        yield Parameter(f"{name}.weight", shape, "vision", partial(matrices.fill, part))
        yield Parameter(f"{name}.bias", shape[:1], "vision", partial(matrices.fill_bias, part))
