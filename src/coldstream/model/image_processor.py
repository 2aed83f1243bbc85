"""preprocessor_config.json -> how a picture becomes pixels: resize as the file says, rescale, normalise. No torch.

Gemma 3's own file asks for 896 x 896 whatever the shape of the picture, and for pillow's filter number 2 (bilinear);
another filter is used where the file names one. Pan and scan (cropping tall or wide pictures into several images) is
left out: it is off in Gemma 3's file, and a file that turns it on is refused rather than read differently.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from coldstream.errors import UnsupportedConfig

if TYPE_CHECKING:
    from PIL import Image

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
"""Where transformers keeps it: on its own, or (5.x) as `image_processor` beside the tokenizer's part."""

_FILTERS = frozenset(range(6))
_KEYS = frozenset(
    {"size", "resample", "image_mean", "image_std", "rescale_factor", "image_processor_type"}
    | {f"do_{step}" for step in ("resize", "rescale", "normalize", "pan_and_scan", "center_crop", "pad")}
)
_TYPE = "Gemma3ImageProcessor"
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ImageProcessor:
    """`width`, `height` in pixels; `resample` is pillow's number of the filter (3 bicubic, 2 bilinear).

    A pixel's value v becomes `(v * scale - mean) / std` for its channel.
    """

    width: int
    height: int
    resample: int = 2
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], *, image_size: int) -> ImageProcessor:
        """Read a checkpoint's files; Gemma 3's defaults at the tower's `image_size` where there is none of them.

        Raises:
            UnsupportedConfig: it is no JSON, or asks for something that is not implemented here.
        """
        for name in PROCESSOR_FILES:
            if name in files:
                data = _object(name, files[name])
                data = data.get("image_processor", data) if name.startswith("processor") else data
                if isinstance(data, Mapping) and data.keys() & _KEYS:
                    return _fitting(name, cls._from_json(name, data, image_size), image_size)
        return cls(image_size, image_size)

    @classmethod
    def _from_json(cls, name: str, data: Mapping[str, Any], image_size: int) -> ImageProcessor:
        _refuse_other_steps(name, data)
        size = data.get("size", {})
        if isinstance(size, Mapping) and size.keys() - {"height", "width"}:
            raise UnsupportedConfig(f"{name}: size = {size!r}; the tower takes images of one height and width only")
        resample = data.get("resample", 2)
        if isinstance(resample, bool) or not isinstance(resample, int) or resample not in _FILTERS:
            raise UnsupportedConfig(f"{name}: resample = {resample!r} is none of pillow's filters (0 to 5)")
        normalises = _flag(name, data, "do_normalize")
        return cls(
            width=_pixels(name, size, "width", image_size),
            height=_pixels(name, size, "height", image_size),
            resample=resample,
            scale=_number(name, data, "rescale_factor", 1 / 255) if _flag(name, data, "do_rescale") else 1.0,
            mean=_three(name, data, "image_mean", 0.5) if normalises else (0.0, 0.0, 0.0),
            std=_three(name, data, "image_std", 0.5) if normalises else (1.0, 1.0, 1.0),
        )

    @property
    def size(self) -> tuple[int, int] | None:
        """What pictures are resized to, `(width, height)`."""
        return self.width, self.height

    def resize(self, image: Image.Image) -> Pixels:
        """An RGB picture of any size -> uint8 `[height, width, 3]`. Releases the GIL for most of its time."""
        size = self.width, self.height
        resized = image if image.size == size else image.resize(size, resample=self.resample)
        return np.asarray(resized, dtype=np.uint8)

    def normalise(self, pixels: Pixels) -> NDArray[np.float32]:
        """uint8 `[height, width, 3]` -> float32 `[3, height, width]`, as the tower takes it."""
        values = pixels.astype(np.float32) * np.float32(self.scale)
        scaled = (values - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(scaled.transpose(2, 0, 1))


class Resizing(Protocol):
    """What becomes of a picture before it travels: `size` in pixels, `(width, height)`, None as it comes."""

    @property
    def size(self) -> tuple[int, int] | None: ...
    @property
    def resample(self) -> int: ...


@dataclass(frozen=True, slots=True)
class WholePictures:
    """Pictures as they come: for an engine whose own processor resizes them."""

    size: tuple[int, int] | None = None
    resample: int = 0


def content_digest(pixels: Pixels) -> bytes:
    """64 bytes that stand for exactly these pixels; what the prefix cache knows an image by."""
    shape = np.asarray(pixels.shape, np.int64).tobytes()
    return hashlib.blake2b(shape + np.ascontiguousarray(pixels).tobytes(), person=b"image pixels").digest()


def _object(name: str, raw: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(bytes(raw))
    except (ValueError, RecursionError) as exc:
        raise UnsupportedConfig(f"{name} is not valid JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise UnsupportedConfig(f"{name} must be a JSON object, not {type(value).__name__}")
    return value


def _fitting(name: str, processor: ImageProcessor, image_size: int) -> ImageProcessor:
    if (processor.width, processor.height) != (image_size, image_size):
        raise UnsupportedConfig(
            f"{name}: size is {processor.height} x {processor.width}, but vision_config.image_size is {image_size}"
        )
    return processor


def _refuse_other_steps(name: str, data: Mapping[str, Any]) -> None:
    kind = data.get("image_processor_type", _TYPE)
    if not isinstance(kind, str) or not kind.startswith(_TYPE):
        raise UnsupportedConfig(f"{name}: image_processor_type = {kind!r}; only {_TYPE} is implemented")
    if data.get("do_pan_and_scan"):
        raise UnsupportedConfig(
            f"{name}: do_pan_and_scan is on, which is not implemented; set it to null or false, as Gemma 3 has it"
        )
    for step in ("do_center_crop", "do_pad"):
        if data.get(step):
            raise UnsupportedConfig(f"{name}: {step} = {data[step]!r} is not implemented; Gemma 3 does no such thing")
    if not _flag(name, data, "do_resize"):
        raise UnsupportedConfig(f"{name}: do_resize = false; the tower takes images of one size only")


def _flag(name: str, data: Mapping[str, Any], key: str) -> bool:
    """True where it is absent."""
    value = data.get(key, True)
    if not isinstance(value, bool):
        raise UnsupportedConfig(f"{name}: {key} must be true or false, not {value!r}")
    return value


def _pixels(name: str, size: Any, key: str, default: int) -> int:
    value = size.get(key, default) if isinstance(size, Mapping) else size
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UnsupportedConfig(f"{name}: size.{key} must be a positive whole number of pixels, not {value!r}")
    return value


def _number(name: str, data: Mapping[str, Any], key: str, default: float) -> float:
    value = data.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnsupportedConfig(f"{name}: {key} must be a number, not {value!r}")
    return float(value)


def _three(name: str, data: Mapping[str, Any], key: str, default: float) -> tuple[float, ...]:
    value = data.get(key, [default] * 3)
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(item, int | float) for item in value):
        raise UnsupportedConfig(f"{name}: {key} must be three numbers, not {value!r}")
    if key == "image_std" and not all(value):
        raise UnsupportedConfig(f"{name}: image_std must not hold zero")
    return tuple(float(item) for item in value)
