"""What a caller sends becomes the right pixels, or a refusal that names the field and the limit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from coldstream.errors import InvalidRequest
from coldstream.model.image_processor import ImageProcessor, WholePictures, content_digest
from coldstream.serve.images.decode import ImageLoader
from coldstream.serve.images.pixels import decode
from coldstream.settings import ImageSettings
from coldstream.workers.workers import Workers
from tests.support.pictures import b64, data_url, encoded, gif_header_only, image, png_header_only

SETTINGS = ImageSettings(max_bytes=100_000, max_pixels=10_000, max_count=2)
PROCESSOR = ImageProcessor(16, 16)
WORKERS = Workers()


@pytest.fixture(scope="module", autouse=True)
def _ended() -> Iterator[None]:
    yield
    WORKERS.close()


async def loaded(text: str, settings: ImageSettings = SETTINGS) -> np.ndarray:
    loader = ImageLoader(settings, WORKERS)
    (picture,) = await loader.load([loader.source(text, "image")], PROCESSOR)
    return picture.pixels


async def refusal(text: str, settings: ImageSettings = SETTINGS) -> str:
    with pytest.raises(InvalidRequest) as caught:
        await loaded(text, settings)
    assert caught.value.field == "image"
    assert caught.value.http_status == 422
    assert str(caught.value).startswith("image")
    return str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
async def test_each_format_is_read_by_its_bytes(kind: str) -> None:
    pixels = await loaded(data_url(encoded(kind=kind), "image/whatever"))
    assert pixels.shape == (16, 16, 3)
    assert np.abs(pixels.astype(int) - (200, 30, 40)).max() < 12


async def test_a_picture_may_come_as_it_is_for_an_engine_that_resizes_by_itself() -> None:
    loader = ImageLoader(SETTINGS, WORKERS)
    data = encoded(image(30, 20))
    (picture,) = await loader.load([loader.source(b64(data), "image")], WholePictures())
    assert picture.pixels.shape == (20, 30, 3)
    assert picture.digest == content_digest(picture.pixels)


async def test_base64_may_have_line_ends() -> None:
    text = b64(encoded())
    assert (await loaded(f"{text[:40]}\n{text[40:]}\n")).shape == (16, 16, 3)


async def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [image(color=(0, 250, 0)), *(image(color=(250, shade, 0)) for shade in range(50))]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=10)
    assert (await loaded(b64(data)))[0, 0, 1] > 200


async def test_exif_orientation_is_respected() -> None:
    picture = image(20, 10)
    picture.paste((0, 0, 255), (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise: what was left is on top
    turned = decode(encoded(picture, "PNG", exif=exif), "image", SETTINGS)
    assert turned.size == (10, 20)
    assert turned.getpixel((5, 2)) == (0, 0, 255)


@pytest.mark.filterwarnings("ignore::UserWarning")  # pillow's, about the camera's notes
async def test_broken_exif_does_not_spoil_a_picture() -> None:
    assert decode(encoded(kind="JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), "image", SETTINGS).size == (12, 8)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16", "CMYK"])
async def test_every_mode_becomes_rgb(mode: str) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    assert decode(encoded(Image.new(mode, (4, 4)), kind), "image", SETTINGS).mode == "RGB"


async def test_two_pictures_with_the_same_pixels_have_one_digest() -> None:
    loader = ImageLoader(SETTINGS, WORKERS)
    texts = [b64(encoded()), b64(encoded(compress_level=1, optimize=False)), b64(encoded(image(color=(9, 9, 9))))]
    pictures = await loader.load([loader.source(text, "images") for text in texts], PROCESSOR)
    assert pictures[0].digest == pictures[1].digest != pictures[2].digest


async def test_what_is_no_image_is_refused() -> None:
    assert "JPEG, PNG, WebP, GIF" in await refusal(b64(b"%PDF-1.7 hello"))


async def test_an_svg_is_refused() -> None:
    assert "not an image" in await refusal(data_url(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"))


async def test_a_format_that_is_switched_off_is_refused() -> None:
    assert "GIF images are not taken" in await refusal(b64(encoded(kind="GIF")), ImageSettings(formats=("png",)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
async def test_a_truncated_image_is_refused(kind: str) -> None:
    whole = encoded(Image.effect_noise((90, 90), 80).convert("RGB"), kind)
    assert "broken or cut off" in await refusal(b64(whole[: len(whole) // 2]))


async def test_a_huge_png_is_refused_by_its_header() -> None:
    assert "10000 pixels" in await refusal(b64(png_header_only(40_000, 40_000)))


async def test_a_large_png_below_pillows_own_limit_is_refused_with_its_size() -> None:
    assert "101 x 100, more than 10000 pixels" in await refusal(b64(png_header_only(101, 100)))


async def test_a_gif_with_a_huge_canvas_is_refused() -> None:
    assert "pixels" in await refusal(b64(gif_header_only(65_535, 65_535)))


async def test_base64_garbage_is_refused() -> None:
    assert "not valid base64" in await refusal("this is no image!")


async def test_half_a_base64_group_is_refused() -> None:
    assert "not valid base64" in await refusal(b64(encoded())[:-3])


async def test_a_data_url_without_base64_is_refused() -> None:
    assert "data:image/png;base64" in await refusal("data:image/png,hello")


async def test_too_many_bytes_are_refused_before_they_are_decoded() -> None:
    assert "100000 bytes" in await refusal("A" * 140_000)


async def test_an_empty_image_is_refused() -> None:
    assert "empty" in await refusal(" ")


@pytest.mark.parametrize("text", ["http://example.com/a.png", "file:///etc/passwd", "ftp://example.com/a.png"])
async def test_other_schemes_are_refused(text: str) -> None:
    assert "only https:// and gs://" in await refusal(text)


async def test_urls_are_off_unless_the_settings_name_hosts() -> None:
    assert "fetches no URLs" in await refusal("https://example.com/a.png")


async def test_buckets_are_off_unless_the_settings_name_them() -> None:
    assert "bucket 'photos'" in await refusal("gs://photos/a.png")


async def test_a_path_of_the_server_is_no_image() -> None:
    assert "not valid base64" in await refusal("../../etc/passwd")


def test_too_many_images_are_refused() -> None:
    loader = ImageLoader(SETTINGS, WORKERS)
    with pytest.raises(InvalidRequest, match="3 images, but a request may carry at most 2"):
        loader.count(3, "images.2")
