"""Gemma 3's eyes: the SigLIP tower (Zhai et al. 2023) and the projector, which turn a picture into a few text vectors.

Patches go through the first matrix as one product, the layers see all patches of an image at once, and an average pool
and a projection leave `tokens_per_image` vectors of the text model's width. As in the decoder, the residual stream and
the norms are float32, and the matrices run in the decoder's precision. The tower has one gate of its own, so that text
never waits for it. Pan and scan is not done: an image is seen once, whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from coldstream.backends.device import naming_out_of_memory
from coldstream.backends.gate import Gate
from coldstream.backends.parameter import Parameter
from coldstream.backends.torch.layers import Norm, activation
from coldstream.backends.torch.linear import Linear, LinearFactory
from coldstream.errors import EngineError
from coldstream.model.image_processor import ImageProcessor, Pixels
from coldstream.model.vision_config import VisionConfig


class _LayerNorm:
    """Layer norm (Ba et al. 2016) in float32. Its tensors stay where they are: kernels know them by address."""

    def __init__(self, size: int, *, eps: float, device: torch.device) -> None:
        self._size, self._eps = (size,), eps
        self.weight = torch.ones(size, dtype=torch.float32, device=device)
        self.bias = torch.zeros(size, dtype=torch.float32, device=device)

    def fill(self, weight: Tensor) -> None:
        self.weight.copy_(weight)

    def fill_bias(self, bias: Tensor) -> None:
        self.bias.copy_(bias)

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self._size, self.weight, self.bias, self._eps)

    def parameters(self, name: str) -> Iterator[Parameter]:
        shape = tuple(self.weight.shape)
        yield Parameter(f"{name}.weight", shape, "vision", self.fill)
        yield Parameter(f"{name}.bias", shape, "vision", self.fill_bias)


class _TowerLayer:
    """Norm, attention of all patches to all, norm, MLP, with residuals."""

    def __init__(self, config: VisionConfig, linear: LinearFactory, device: torch.device) -> None:
        hidden, inner = config.hidden_size, config.intermediate_size
        norm = partial(_LayerNorm, eps=config.norm_eps, device=device)
        self._config = config
        self._activation = activation(config.activation)
        self.before_attention, self.before_mlp = norm(hidden), norm(hidden)
        self.qkv = linear(hidden, (hidden, hidden, hidden), bias=True)
        self.output = linear(hidden, (hidden,), bias=True)
        self.up = linear(hidden, (inner,), bias=True)
        self.down = linear(inner, (hidden,), bias=True)

    def __call__(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """float32 `[patches, hidden]`, which it may write to -> the same."""
        qkv = self.qkv.joined(self.before_attention(x).to(dtype)).view(len(x), 3, self._config.heads, -1)
        attended = _attended(qkv.permute(1, 2, 0, 3).contiguous())
        x = x + self.output.joined(attended).float()
        inner = self._activation(self.up.joined(self.before_mlp(x).to(dtype)))
        return x + self.down.joined(inner).float()

    def parameters(self, prefix: str) -> Iterator[Parameter]:
        yield from self.before_attention.parameters(f"{prefix}layer_norm1")
        yield from _linear_parameters(self.qkv, [f"{prefix}self_attn.{name}_proj" for name in "qkv"])
        yield from _linear_parameters(self.output, [f"{prefix}self_attn.out_proj"])
        yield from self.before_mlp.parameters(f"{prefix}layer_norm2")
        yield from _linear_parameters(self.up, [f"{prefix}mlp.fc1"])
        yield from _linear_parameters(self.down, [f"{prefix}mlp.fc2"])


class VisionTower:
    """Pixels to vectors. Filled through `parameters()` (see build.Assembly), as the decoder is."""

    def __init__(
        self,
        config: VisionConfig,
        *,
        linear: LinearFactory,
        dtype: torch.dtype,
        device: torch.device,
        gate: Gate,
    ) -> None:
        self.config = config
        self.gate = gate
        self._dtype, self._device = dtype, device
        hidden, patch = config.hidden_size, config.channels * config.patch_size**2
        self._patches = linear(patch, (hidden,), bias=True)
        self._positions = torch.zeros(config.patches_per_side**2, hidden, dtype=torch.float32, device=device)
        self._layers = [_TowerLayer(config, linear, device) for _ in range(config.layers)]
        self._after = _LayerNorm(hidden, eps=config.norm_eps, device=device)
        self._norm = Norm(hidden, eps=config.norm_eps, offset=1.0, device=device)
        self._projection = linear(hidden, (config.text_hidden_size,), bias=False)

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Normalised float32 `[3, image_size, image_size]` -> float32 `[tokens_per_image, text hidden]`.

        Waits for the tower's bytes; raises what the load failed with.
        """
        self.gate.wait()
        x = self._patches.joined(_unfolded(pixels.to(self._device), self.config.patch_size).to(self._dtype)).float()
        x = x + self._positions
        for layer in self._layers:
            x = layer(x, self._dtype)
        pooled = self._pooled(self._after(x))
        return self._projection.joined(self._norm(pooled).to(self._dtype)).float()

    def _pooled(self, x: Tensor) -> Tensor:
        """The mean of each square of patches: `[patches, hidden]` -> `[tokens_per_image, hidden]`."""
        config = self.config
        squares = x.view(config.tokens_per_side, config.pool, config.tokens_per_side, config.pool, -1)
        return squares.mean((1, 3)).reshape(config.tokens_per_image, -1)

    def parameters(self) -> Iterator[Parameter]:
        """In order of execution; names as `model.names.tower_parameter` gives them."""
        config = self.config
        patch = (config.hidden_size, config.channels, config.patch_size, config.patch_size)
        yield Parameter("embeddings.patch_embedding.weight", patch, "vision", self._fill_patches)
        yield Parameter("embeddings.patch_embedding.bias", patch[:1], "vision", partial(self._patches.fill_bias, 0))
        yield Parameter(
            "embeddings.position_embedding.weight", tuple(self._positions.shape), "vision", self._fill_positions
        )
        for index, layer in enumerate(self._layers):
            yield from layer.parameters(f"encoder.layers.{index}.")
        yield from self._after.parameters("post_layernorm")
        size = (config.hidden_size,)
        yield Parameter("multi_modal_projector.mm_soft_emb_norm.weight", size, "vision", self._norm.fill)
        shape = (config.hidden_size, config.text_hidden_size)
        yield Parameter("multi_modal_projector.mm_input_projection_weight", shape, "vision", self._fill_projection)

    def _fill_patches(self, weight: Tensor) -> None:
        self._patches.fill(0, weight.reshape(len(weight), -1))

    def _fill_positions(self, weight: Tensor) -> None:
        self._positions = weight.to(self._device, torch.float32)

    def _fill_projection(self, weight: Tensor) -> None:
        self._projection.fill(0, weight.t().contiguous())  # it is saved as what vectors are multiplied with


class Sight:
    """A tower together with the way pictures become its pixels: what the engine looks at images with."""

    def __init__(self, tower: VisionTower, processor: ImageProcessor) -> None:
        self._tower, self._processor = tower, processor
        self.tokens_per_image = tower.config.tokens_per_image
        self.image_id = tower.config.image_id

    def encode(self, pixels: Pixels) -> Tensor:
        """uint8 `[height, width, 3]`, as the processor resized it -> float32 `[tokens_per_image, text hidden]`.

        Raises:
            EngineError: the result is not finite.
            OutOfMemory: the device has not enough.
        """
        with naming_out_of_memory("looking at an image"):
            vectors = self._tower.encode(torch.from_numpy(self._processor.normalise(pixels)))
            if not bool(torch.isfinite(vectors).all()):
                raise EngineError("the vision tower's result is not finite; load the model in bfloat16 or float32")
        return vectors


def _attended(qkv: Tensor) -> Tensor:
    """q, k and v, `[3, heads, patches, head_dim]` -> `[patches, heads * head_dim]`; all patches see all."""
    q, k, v = qkv.unsqueeze(1).unbind(0)
    return F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).reshape(qkv.shape[2], -1)


def _unfolded(pixels: Tensor, patch: int) -> Tensor:
    """`[3, height, width]` -> `[patches, 3 * patch * patch]`, row by row, each as the convolution's kernel lies."""
    channels, height, width = pixels.shape
    squares = pixels.view(channels, height // patch, patch, width // patch, patch)
    return squares.permute(1, 3, 0, 2, 4).reshape(-1, channels * patch * patch)


def _linear_parameters(linear: Linear, names: Sequence[str]) -> Iterator[Parameter]:
    for part, name in enumerate(names):
        shape = (linear.sizes[part], linear.in_features)
        yield Parameter(f"{name}.weight", shape, "vision", partial(linear.fill, part))
        yield Parameter(f"{name}.bias", shape[:1], "vision", partial(linear.fill_bias, part))
