"""The bytes of a picture to its pixels, within limits: what runs in a worker, since a decoder may take anything.

The format is what the bytes say, not what a label says. Size in pixels is read from the header and held against the
limit before anything is decoded. Of an animation the first frame counts. A picture is turned as its EXIF says.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from coldstream.errors import InvalidRequest
from coldstream.model.image_processor import ImageProcessor, Pixels, Resizing, content_digest
from coldstream.settings import ImageSettings
from coldstream.workers.limits import Limits
from coldstream.workers.workers import Workers

if TYPE_CHECKING:
    from PIL import Image

_SPOKEN = {"jpeg": "JPEG", "png": "PNG", "webp": "WebP", "gif": "GIF"}
_SECONDS = 5.0
_BYTES_PER_PIXEL = 16
"""Of memory: a picture as it lies there and as it is turned, 4 each, beside a progressive JPEG's coefficients, or an
animation's two canvases, 8."""
_BESIDE = 64 * 1024 * 1024
_DIGEST = 64
_SHAPE = struct.Struct("<II")


def pixels(
    data: bytes, field: str, settings: ImageSettings, resizing: Resizing, workers: Workers
) -> tuple[Pixels, bytes]:
    """The picture as the model takes it, uint8 `[height, width, 3]`, and the digest of exactly these pixels.

    Raises:
        InvalidRequest: it is no picture of an allowed format, is larger than allowed, or is broken.
        TooCostly: decoding it takes more than the limits.
    """
    size = resizing.size
    most = settings.max_pixels if size is None else size[0] * size[1]
    wanted = {"formats": settings.formats, "max_pixels": settings.max_pixels, "field": field}
    made = workers.call(
        "coldstream.serve.images.pixels:Decode",
        {**wanted, "size": size, "resample": resizing.resample},
        data,
        limits=Limits(_SECONDS, settings.max_pixels * _BYTES_PER_PIXEL + _BESIDE, 3 * most + 1024),
        subject=f"{field}: decoding the image",
        field=field,
        beside=settings.decoders,
    )
    height, width = _SHAPE.unpack_from(made, _DIGEST)
    return np.frombuffer(made, np.uint8, offset=_DIGEST + _SHAPE.size).reshape(height, width, 3), made[:_DIGEST]


class Decode:
    """The worker's side."""

    def __init__(self) -> None:
        from PIL import Image

        Image.init()

    def __call__(self, argument: Any, data: bytes) -> bytes:
        """The digest, height and width, then the pixels."""
        settings = ImageSettings(formats=tuple(argument["formats"]), max_pixels=argument["max_pixels"])
        picture = decode(data, argument["field"], settings)
        width, height = argument["size"] or picture.size
        made = ImageProcessor(width, height, argument["resample"]).resize(picture)
        return content_digest(made) + _SHAPE.pack(*made.shape[:2]) + made.tobytes()


def decode(data: bytes, field: str, settings: ImageSettings) -> Image.Image:
    """The picture in `data`, RGB, upright.

    Raises:
        InvalidRequest: it is no picture of an allowed format, is larger than allowed, or is broken.
    """
    name = image_format(data)
    spoken = ", ".join(_SPOKEN[item] for item in settings.formats)
    if name is None or name not in settings.formats:
        what = f"{_SPOKEN[name]} images are not taken" if name else "is not an image that can be read here"
        raise InvalidRequest(f"{field}: {what}; send {spoken}", field=field, allowed=settings.formats)
    from PIL import Image

    limit = settings.max_pixels
    try:
        with Image.open(io.BytesIO(data), formats=[name]) as image:
            width, height = image.size
            if width * height <= limit:
                return _upright(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise InvalidRequest(f"{field}: the image has more than {limit} pixels, the most here", field=field) from exc
    except MemoryError:
        raise
    except Exception as exc:  # pillow's decoders raise whatever they stumble over: SyntaxError, struct.error, ...
        raise InvalidRequest(f"{field}: the {_SPOKEN[name]} image is broken or cut off", field=field) from exc
    message = f"{field}: the image is {width} x {height}, more than {limit} pixels, the most here"
    raise InvalidRequest(message, field=field)


def image_format(data: bytes) -> str | None:
    """The format by its first bytes; None for everything that is not one of ours (SVG, HTML, PDF, ...)."""
    tests: tuple[tuple[str, Callable[[], bool]], ...] = (
        ("jpeg", lambda: data.startswith(b"\xff\xd8\xff")),
        ("png", lambda: data.startswith(b"\x89PNG\r\n\x1a\n")),
        ("gif", lambda: data.startswith((b"GIF87a", b"GIF89a"))),
        ("webp", lambda: data.startswith(b"RIFF") and data[8:12] == b"WEBP"),
    )
    return next((name for name, matches in tests if matches()), None)


def _upright(image: Image.Image) -> Image.Image:
    """In RGB, turned as the EXIF orientation says; as it is, where the EXIF cannot be read: the picture still can.

    No more than two pictures of its size lie in memory at a time: the file's own is closed when there is another one.
    """
    from PIL import ImageOps

    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # see above; a camera's broken notes do not spoil its picture
        orientation = 1
    image.load()
    turned = ImageOps.exif_transpose(image) if orientation in range(2, 9) else image
    if turned is not image:
        image.close()
    return turned.convert("RGB") if turned.mode != "RGB" or turned is image else turned
