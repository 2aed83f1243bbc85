"""A request's images: what a caller may send, and how it becomes pixels, within limits and off the event loop.

"iVBORw0..."  base64        "data:image/png;base64,iVBORw0..."        "https://host/photo.jpg"        "gs://bucket/photo.jpg"

Bytes become pixels in a worker (`pixels`).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from coldstream.errors import InvalidRequest
from coldstream.serve.images.fetch import ImageFetcher
from coldstream.settings import ImageSettings
from coldstream.workers.workers import Workers

if TYPE_CHECKING:
    from coldstream.model.image_processor import Pixels, Resizing

_Kind = Literal["base64", "url", "file"]
_DATA_URL = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?:;[\w-]+=[\w.+-]*)*(?P<base64>;base64)?,", re.IGNORECASE)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SPACE = str.maketrans("", "", " \t\r\n")


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

    def __init__(self, settings: ImageSettings, workers: Workers, fetcher: ImageFetcher | None = None) -> None:
        self._settings, self._workers = settings, workers
        self._fetcher = fetcher or ImageFetcher(settings)
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

    async def load(self, sources: Iterable[ImageSource], resizing: Resizing) -> list[Picture]:
        """Fetch, decode and resize, in order; the first that is wrong ends it.

        Raises:
            InvalidRequest: it names the field and the limit.
        """
        return [await self._one(source, resizing) for source in sources]

    async def file(self, source: ImageSource) -> tuple[str, bytes]:
        """The image as it is stored, not decoded, and its media type by its first bytes.

        Raises:
            InvalidRequest: it cannot be fetched, is larger than an image may be, or is of another format.
        """
        from coldstream.serve.images.pixels import image_format

        fetched = source.kind == "url"
        data = await (
            self._fetcher.fetch(source.text, source.field) if fetched else asyncio.to_thread(self._stored, source)
        )
        name = image_format(data)
        if name not in self._settings.formats:
            message = f"{source.field}: no picture in a format that this server takes"
            raise InvalidRequest(message, field=source.field, allowed=self._settings.formats)
        return f"image/{name}", data

    def _stored(self, source: ImageSource) -> bytes:
        data = Path(source.text).read_bytes() if source.kind == "file" else _decoded(source)
        if len(data) > self._settings.max_bytes:
            raise _too_large(source.field, self._settings.max_bytes)
        return data

    async def _one(self, source: ImageSource, resizing: Resizing) -> Picture:
        data = await self._fetcher.fetch(source.text, source.field) if source.kind == "url" else None
        self._places = self._places or asyncio.Semaphore(self._settings.decoders)
        async with self._places:
            return await asyncio.to_thread(self._picture, source, data, resizing)

    def _picture(self, source: ImageSource, data: bytes | None, resizing: Resizing) -> Picture:
        from coldstream.serve.images.pixels import pixels

        data = self._stored(source) if data is None else data
        return Picture(source.field, *pixels(data, source.field, self._settings, resizing, self._workers))


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
