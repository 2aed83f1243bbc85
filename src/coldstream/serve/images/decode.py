"""A request's images: what a caller may send, and how it becomes pixels, within limits and off the event loop.

"iVBORw0..."  base64        "data:image/png;base64,iVBORw0..."        "https://host/photo.jpg"        "gs://bucket/photo.jpg"

The format is what the bytes say, not what a label says. Size in pixels is read from the header and held against the
limit before anything is decoded. Of an animation the first frame counts. A picture is turned as its EXIF says.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from coldstream.errors import InvalidRequest
from coldstream.serve.images.fetch import Fetcher
from coldstream.settings import ImageSettings

if TYPE_CHECKING:
    from PIL import Image

    from coldstream.model.image_processor import ImageProcessor, Pixels

_Kind = Literal["base64", "url", "file"]
_DATA_URL = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?:;[\w-]+=[\w.+-]*)*(?P<base64>;base64)?,", re.IGNORECASE)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SPACE = str.maketrans("", "", " \t\r\n")
_SPOKEN = {"jpeg": "JPEG", "png": "PNG", "webp": "WebP", "gif": "GIF"}


@dataclass(frozen=True, slots=True)
class ImageSource:
    """One image's origin. `field` is its place in the request; `text` is base64, a URL, or an operator's path."""

    field: str
    kind: _Kind
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An image as the model takes it: uint8 `[height, width, 3]`, and the digest of exactly these pixels."""

    field: str
    pixels: Pixels
    digest: bytes


class ImageLoader:
    """Reads images for one server."""

    def __init__(self, settings: ImageSettings, fetcher: Fetcher | None = None) -> None:
        self._settings = settings
        self._fetcher = fetcher or Fetcher(settings)
        self._places: asyncio.Semaphore | None = None

    def source(self, text: str, field: str) -> ImageSource:
        """What a request's text means; cheap. What can be refused without looking at bytes is refused here.

        Raises:
            InvalidRequest: no kind of image that this server takes.
        """
        if not text.strip():
            raise InvalidRequest(
                f"{field} is empty; send base64, a data URL, or a URL that this server fetches", field=field
            )
        scheme = _SCHEME.match(text[:40])
        if scheme is not None:
            if scheme[1].lower() not in ("https", "gs"):
                message = f"{field}: {scheme[1].lower()}:// is not fetched; only https:// and gs:// may be"
                raise InvalidRequest(message, field=field, allowed=("https", "gs"))
            self._fetcher.check(text, field)
            return ImageSource(field, "url", text)
        body = _without_label(text, field)
        if len(body) * 3 // 4 > self._settings.max_bytes + 64:
            raise _too_large(field, self._settings.max_bytes)
        return ImageSource(field, "base64", body)

    def default(self, text: str, field: str) -> ImageSource:
        """What an operator's default means: a file on this machine, or what a request might say."""
        return ImageSource(field, "file", text) if Path(text).is_absolute() else self.source(text, field)

    def count(self, images: int, field: str) -> None:
        """Refuse more images than a request may carry."""
        if images > self._settings.max_count:
            message = f"{images} images, but a request may carry at most {self._settings.max_count}"
            raise InvalidRequest(message, field=field)

    async def load(self, sources: Iterable[ImageSource], processor: ImageProcessor) -> list[Picture]:
        """Fetch, decode and resize, in order; the first that is wrong ends it.

        Raises:
            InvalidRequest: it names the field and the limit.
        """
        return [await self._one(source, processor) for source in sources]

    async def _one(self, source: ImageSource, processor: ImageProcessor) -> Picture:
        data = await self._fetcher.fetch(source.text, source.field) if source.kind == "url" else None
        self._places = self._places or asyncio.Semaphore(self._settings.decoders)
        async with self._places:
            return await asyncio.to_thread(self._picture, source, data, processor)

    def _picture(self, source: ImageSource, data: bytes | None, processor: ImageProcessor) -> Picture:
        from coldstream.model.image_processor import content_digest

        if data is None:
            data = Path(source.text).read_bytes() if source.kind == "file" else _decoded(source)
        if len(data) > self._settings.max_bytes:
            raise _too_large(source.field, self._settings.max_bytes)
        pixels = processor.resize(decode(data, source.field, self._settings))
        return Picture(source.field, pixels, content_digest(pixels))


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
                return _upright(image).convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise InvalidRequest(f"{field}: the image has more than {limit} pixels, the most here", field=field) from exc
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
    """Turned as the EXIF orientation says; as it is, where the EXIF cannot be read: the picture still can."""
    from PIL import ImageOps

    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # see above; a camera's broken notes do not spoil its picture
        return image
    return ImageOps.exif_transpose(image) if orientation in range(2, 9) else image


def _without_label(text: str, field: str) -> str:
    """The base64 of a data URL, or of a text that is nothing else."""
    if text[:5].lower() != "data:":
        return text
    label = _DATA_URL.match(text[:200])
    if label is None or not label["base64"]:
        raise InvalidRequest(f"{field}: a data URL must read data:image/png;base64,...", field=field)
    return text[label.end() :]


def _decoded(source: ImageSource) -> bytes:
    try:
        return base64.b64decode(source.text.translate(_SPACE), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise InvalidRequest(f"{source.field} is not valid base64 ({exc})", field=source.field) from exc


def _too_large(field: str, limit: int) -> InvalidRequest:
    return InvalidRequest(f"{field}: larger than {limit} bytes, the most for an image here", field=field)
