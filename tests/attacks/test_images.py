"""Pictures of a few kilobytes that take a minute to decode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from coldstream.errors import TooCostly
from coldstream.model.image_processor import ImageProcessor
from coldstream.serve.images.decode import ImageLoader
from coldstream.settings import ImageSettings
from coldstream.workers.workers import Workers
from tests.support.pictures import b64, encoded

PROCESSOR = ImageProcessor(16, 16)
END = b"\xff\xd9"
SIDE = 4000


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers()
    yield made
    made.close()


def with_scans(count: int) -> bytes:
    """A progressive JPEG of 25 megapixels whose last scan comes so many times."""
    whole = encoded(Image.new("RGB", (5000, 5000), (200, 30, 40)), "JPEG", progressive=True)
    tables = whole.rindex(b"\xff\xc4")
    head, scan = whole[:tables], whole[tables : whole.rindex(END)]
    return head + scan * count + END


async def load(workers: Workers, data: bytes) -> None:
    loader = ImageLoader(ImageSettings(), workers)
    await loader.load([loader.source(b64(data), "image")], PROCESSOR)


def noise(mode: str) -> Image.Image:
    """Pixels of which none is like its neighbours."""
    planes = [Image.effect_noise((SIDE, SIDE), 90 + 10 * place) for place in range(len(mode))]
    return Image.merge(mode, planes)


@pytest.mark.more
@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGB", "JPEG", {"progressive": True, "subsampling": 0, "quality": 30}),
        ("CMYK", "JPEG", {"progressive": True, "subsampling": 0, "quality": 30}),
        ("RGBA", "PNG", {"compress_level": 1}),
        ("RGB", "WEBP", {"method": 0, "quality": 5}),
        ("RGBA", "WEBP", {"method": 0, "quality": 5}),
        ("RGBA", "WEBP", {"method": 0, "quality": 0, "lossless": True}),
    ],
)
async def test_an_honest_picture_of_the_largest_size_is_within_the_workers_memory(
    workers: Workers, mode: str, kind: str, options: dict[str, Any]
) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    data = encoded(noise(mode), kind, exif=turned, **options)
    loader = ImageLoader(ImageSettings(max_bytes=len(data), max_pixels=SIDE**2), workers)
    (picture,) = await loader.load([loader.source(b64(data), "image")], PROCESSOR)
    assert picture.pixels.shape == (16, 16, 3)


@pytest.mark.more
async def test_a_picture_of_many_scans_is_refused_by_the_time_that_it_takes(workers: Workers) -> None:
    await load(workers, with_scans(1))
    data = with_scans(40_000)
    assert len(data) < ImageSettings().max_bytes
    with pytest.raises(TooCostly, match="image: decoding the image takes more than 5 s") as caught:
        await load(workers, data)
    assert caught.value.field == "image"
    assert workers.deaths() == {"Decode": 1}
    await load(workers, encoded())
