"""Where the time of looking at an image goes, and what a precision costs.

    python bench/vision.py [--precision int8 float32] [--layers 27] [--threads 2] [--looks 2] [--json]
    python bench/vision.py --checkpoint src/coldstream/demo/product_model --photo src/coldstream/demo/photos/red-mug.jpg

Without a checkpoint: a tower of the shape that Gemma 3 4b has (SigLIP so400m, 896 px, 4096 patches), with random
weights and a random picture; `--layers` makes it shallower. With one, its own tower and a real photo. Seconds are those
of the last of `--looks` looks; what lies between two parts counts for the second. Agreement is that of
the projected vectors with float32's: the mean cosine, the smallest one, and the largest difference relative to the
largest value.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from coldstream.backends.torch.int8 import Int8Linear
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from coldstream.backends.cpu.library import Kernels, load
from coldstream.backends.torch.linear import DenseLinear, Linear
from coldstream.backends.torch.vision import VisionTower, canonical
from coldstream.host.limits import cpu_limit
from coldstream.host.memory import return_large_buffers
from coldstream.model.image_processor import ImageProcessor
from coldstream.model.names import Vision, destination
from coldstream.model.vision_config import VisionConfig
from coldstream.weights.checkpoint.checkpoint import open_checkpoint
from coldstream.weights.load import iter_tensors

PRECISIONS = ("float32", "int8", "bfloat16")
PATCHES, BEFORE, ATTENTION, AFTER, PROJECTOR = PARTS = (
    "patch embedding",
    "norm, q, k, v",
    "attention",
    "output, norm, MLP",
    "projector",
)
_MATRICES = (BEFORE, AFTER, AFTER, AFTER)  # of a layer, in the order in which they are made


def config_4b(layers: int) -> Mapping[str, Any]:
    """What config.json of gemma-3-4b says of images."""
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "mm_tokens_per_image": 256,
        "boi_token_index": 255_999,
        "eoi_token_index": 256_000,
        "image_token_index": 262_144,
        "text_config": {"model_type": "gemma3_text", "hidden_size": 2560},
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": layers,
            "num_attention_heads": 16,
            "image_size": 896,
            "patch_size": 14,
            "num_channels": 3,
            "layer_norm_eps": 1e-6,
            "hidden_act": "gelu_pytorch_tanh",
        },
    }


class Calls:
    """What was called, from when to when: (part, start, end)."""

    def __init__(self) -> None:
        self.made: list[tuple[str, float, float]] = []

    def timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same, noted."""

        def call(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = work(*arguments)
            self.made.append((part, start, time.perf_counter()))
            return result

        return call


class TimedLinear:
    """A `Linear` that notes its calls."""

    def __init__(self, linear: Linear, part: str, calls: Calls) -> None:
        self._linear = linear
        self.joined = calls.timed(part, linear.joined)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._linear, name)


class TimedKernels:
    """Kernels that note what they do of a layer."""

    def __init__(self, kernels: Kernels, calls: Calls) -> None:
        self.tower_before = calls.timed(BEFORE, kernels.tower_before)
        self.tower_after = calls.timed(AFTER, kernels.tower_after)


class Tower:
    """A tower in one precision that notes where its time goes."""

    def __init__(self, config: VisionConfig, precision: str) -> None:
        self.config, self.precision, self._calls = config, precision, Calls()
        self._made = 0
        dtype, device = torch.bfloat16 if precision == "bfloat16" else torch.float32, torch.device("cpu")
        kernels: Any = None
        self._linear: Any = partial(DenseLinear, dtype=dtype, device=device)
        if precision == "int8":
            self._linear = partial(Int8Linear, kernels=load())
            kernels = TimedKernels(load(), self._calls)
        self._tower = VisionTower(config, linear=self._timed, dtype=dtype, device=device, kernels=kernels)

    def _timed(self, in_features: int, sizes: Sequence[int], *, bias: bool) -> Any:
        linear, place = self._linear(in_features, sizes, bias=bias), self._made
        self._made += 1
        if place == 0 or place > 4 * self.config.layers:
            return TimedLinear(linear, PROJECTOR if place else PATCHES, self._calls)
        return linear if self.precision == "int8" else TimedLinear(linear, _MATRICES[(place - 1) % 4], self._calls)

    def fill(self, weights: Mapping[str, Tensor]) -> None:
        """Take every parameter, by the names of `VisionTower.parameters`."""
        for parameter in self._tower.parameters():
            parameter.fill(weights[parameter.name])
        self._tower.gate.open()

    def parameters(self) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes."""
        return {parameter.name: parameter.shape for parameter in self._tower.parameters()}

    def look(self, pixels: Tensor) -> tuple[Tensor, Mapping[str, float]]:
        """The vectors of one image, and seconds by part. What lies between two calls belongs to what it is for."""
        self._calls.made.clear()
        begun = time.perf_counter()
        vectors = self._tower.encode(pixels)
        ended = time.perf_counter()
        spent: dict[str, float] = defaultdict(float)
        last = ""
        for part, start, end in self._calls.made:
            spent[ATTENTION if (last, part) == (BEFORE, AFTER) else part] += start - begun
            spent[part] += end - start
            last, begun = part, end
        spent[PROJECTOR] += ended - begun
        return vectors, {part: spent[part] for part in PARTS}


@dataclass(frozen=True)
class Measured:
    """Of one precision. `seconds` by part, and `total`."""

    precision: str
    seconds: Mapping[str, float]
    total: float
    mean_cosine: float | None
    least_cosine: float | None
    relative_difference: float | None


def random_weights(shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Tensor]:
    """bfloat16, as a checkpoint has them; activations keep the size that they have in a trained tower."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in shapes.items():
        weight = torch.randn(shape, generator=generator) * (0.03 if len(shape) > 1 else 0.01)
        is_layer_norm = name.endswith("weight") and "norm" in name and "mm_soft" not in name
        weights[name] = (weight + 1 if is_layer_norm else weight).bfloat16()
    return weights


def checkpoint_weights(uri: str) -> tuple[VisionConfig, Mapping[str, Tensor]]:
    """The tower of a checkpoint."""
    checkpoint = open_checkpoint(uri)
    config = VisionConfig.from_json(checkpoint.config)
    if config is None:
        raise SystemExit(f"{uri}: this model takes no images")
    weights = {}
    for name, tensor in iter_tensors(checkpoint):
        found = destination(name)
        if isinstance(found, Vision):
            weights[canonical(found.name)] = tensor.clone()
    return config, weights


def photo_pixels(uri: str, photo: Path, size: int) -> Tensor:
    """As the checkpoint's processor prepares it."""
    folder = Path(uri)
    names = [name for name in ("preprocessor_config.json", "processor_config.json") if (folder / name).exists()]
    processor = ImageProcessor.from_files({name: (folder / name).read_bytes() for name in names}, image_size=size)
    return torch.from_numpy(processor.normalise(processor.resize(Image.open(photo).convert("RGB"))))


def measure(tower: Tower, pixels: Tensor, reference: Tensor | None, *, looks: int) -> tuple[Measured, Tensor]:
    """The last of so many looks."""
    for _ in range(looks):
        vectors, seconds = tower.look(pixels)
    if reference is None:
        return Measured(tower.precision, seconds, sum(seconds.values()), None, None, None), vectors
    cosines = F.cosine_similarity(vectors, reference, dim=-1)
    difference = float((vectors - reference).abs().max() / reference.abs().max())
    total = sum(seconds.values())
    found = Measured(tower.precision, seconds, total, float(cosines.mean()), float(cosines.min()), difference)
    return found, vectors


def show(rows: Sequence[Measured], title: str) -> None:
    """A table for people: a column a precision."""
    table = Table("seconds", *(row.precision for row in rows), title=title)
    for part in PARTS:
        table.add_row(part, *(f"{row.seconds[part]:.3f}" for row in rows))
    table.add_row("one image", *(f"{row.total:.3f}" for row in rows), style="bold")
    for name in ("mean_cosine", "least_cosine", "relative_difference"):
        values = [getattr(row, name) for row in rows]
        table.add_row(name.replace("_", " "), *("" if value is None else f"{value:.6f}" for value in values))
    Console().print(table)


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["float32", "int8"])
    parser.add_argument("--layers", type=int, default=27)
    parser.add_argument("--threads", type=int, default=cpu_limit())
    parser.add_argument("--checkpoint", help="a folder with a model that takes images")
    parser.add_argument("--photo", type=Path, help="what to look at, with --checkpoint")
    parser.add_argument("--looks", type=int, default=2, help="The last one is measured.")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if (asked.checkpoint is None) != (asked.photo is None):
        parser.error("--checkpoint and --photo go together")
    torch.set_num_threads(asked.threads)
    return_large_buffers()  # as the server does
    if asked.checkpoint is None:
        config = VisionConfig.from_json(config_4b(asked.layers))
        assert config is not None
        weights = random_weights(Tower(config, "float32").parameters())
        size = config.image_size
        pixels = torch.rand(3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    else:
        config, weights = checkpoint_weights(asked.checkpoint)
        pixels = photo_pixels(asked.checkpoint, asked.photo, config.image_size)
    rows, reference = [], None
    for precision in sorted(asked.precision, key=PRECISIONS.index):
        tower = Tower(config, precision)
        tower.fill(weights)
        row, vectors = measure(tower, pixels, reference, looks=asked.looks)
        reference = vectors if precision == "float32" else reference
        rows.append(row)
    if asked.json:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        patches = config.patches_per_side**2
        show(rows, f"{config.layers} layers of {config.hidden_size}, {patches} patches, {asked.threads} threads")


if __name__ == "__main__":
    main()
