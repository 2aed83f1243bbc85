"""Every state of the page as a picture, in docs/screenshots or the folder that is named; run on a machine at rest.

    python tools/screenshots.py [FOLDER] [--only NAME ...]

The servers are the demo's own, and one behind a key whose bytes are held back. Needs what tests/browser needs and
a font with Hangul (Debian: fonts-nanum).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from coldstream.demo.bucket import LocalBucket  # noqa: E402
from coldstream.demo.run import BUCKET  # noqa: E402
from coldstream.demo.smollm2 import checkpoint  # noqa: E402
from tests.browser.conftest import launch  # noqa: E402
from tests.browser.dropping import drop  # noqa: E402
from tests.browser.gate import Gate  # noqa: E402
from tests.browser.served import Served  # noqa: E402

DEMO = Path(str(files("coldstream.demo")))
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
KEY = "a key of this picture's"
LOCKED = f"""
[server]
host = "127.0.0.1"
api_keys_env = "PICTURE_KEY"
[models.sql]
uri = "gs://{BUCKET}/sql"
[models.lost]
uri = "gs://{BUCKET}/nowhere"
[tasks.sql]
model = "sql"
"""


@dataclass
class Album:
    """Takes pictures of one server's page; `whole` ones are as long as the page, others show what is seen at first."""

    browser: Browser
    folder: Path
    only: tuple[str, ...]
    url: str = ""
    taken: list[str] = field(default_factory=list)

    def wants(self, *names: str) -> bool:
        """Whether one of the pictures is asked for."""
        return not self.only or any(name in self.only for name in names)

    @contextmanager
    def page(self, **options: Any) -> Iterator[Page]:
        """The page in a profile of its own."""
        context = self.browser.new_context(**{"viewport": DESKTOP, "locale": "en-US", **options})
        context.set_default_timeout(60_000)
        page = context.new_page()
        page.goto(self.url)
        yield page
        context.close()

    @contextmanager
    def ready(self, **options: Any) -> Iterator[Page]:
        """The same, once every model is there."""
        with self.page(**options) as page:
            expect(page.locator("main")).to_have_attribute("data-status", "ready")
            expect(page.locator("#panel-task form")).to_be_visible()
            yield page

    def take(self, page: Page, name: str, *, whole: bool = True) -> None:
        """One picture."""
        if self.wants(name):
            page.screenshot(path=self.folder / f"{name}.png", full_page=whole, animations="disabled")
            self.taken.append(name)


def asked(album: Album) -> None:
    """Tasks: what a newcomer sees, an example's answer, figures, an error."""
    with album.ready() as page:
        page.wait_for_timeout(300)
        album.take(page, "first", whole=False)
        _pick(page, "sql")
        page.get_by_role("button", name="How many donors").click()
        _finished(page)
        page.get_by_text("As code").first.click()
        album.take(page, "task")
        page.locator("#engine summary").click()
        expect(page.locator("#engines article").first).to_be_visible()
        page.wait_for_timeout(1500)
        page.get_by_label("question").fill("")
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.get_by_role("alert").first).to_be_visible()
        album.take(page, "error")


def talked(album: Album) -> None:
    """Chat: Markdown in an answer, a second turn."""
    with album.ready() as page:
        page.get_by_role("tab", name="Chat").click()
        expect(page.get_by_label("Model", exact=True)).to_have_value("smollm2")
        page.get_by_text("Sampling").last.click()
        page.locator("#panel-chat").get_by_label("Temperature").fill("0")
        page.locator("#panel-chat").get_by_label("Most tokens").fill("90")
        page.get_by_text("Sampling").last.click()
        page.get_by_role("button", name="List three good habits").click()
        expect(page.locator(".turn .figures-line")).to_contain_text("tokens/s")
        expect(page.get_by_role("button", name="Answer again")).to_be_visible()
        album.take(page, "chat")


def seen(album: Album) -> None:
    """The task that takes a photo: its sample, a photo of one's own, a file that is none."""
    with album.ready() as page:
        panel = _pick(page, "product")
        expect(panel.locator(".sample img")).to_be_visible()
        album.take(page, "sample")
        photo = DEMO / "photos" / "green-lamp.jpg"
        drop(page, "#panel-task form", "green-lamp.jpg", "image/jpeg", photo.read_bytes())
        panel.get_by_role("button", name="Ask", exact=True).click()
        _finished(page)
        album.take(page, "photo")
        drop(page, "#panel-task form", "notes.svg", "image/svg+xml", b"<svg/>")
        expect(panel.locator(".error:visible")).to_contain_text("notes.svg")
        album.take(page, "photo-refused")


def in_korean(album: Album) -> None:
    """A phone that speaks Korean: at first sight, an answer, an error."""
    with album.ready(locale="ko-KR", viewport=PHONE) as page:
        album.take(page, "phone", whole=False)
        _pick(page, "sql")
        page.get_by_role("button", name="1000달러가").click()
        expect(page.locator("#panel-task .figures-line")).to_contain_text("스스로 끝냄")
        album.take(page, "korean")
        page.get_by_label("question").fill("")
        page.get_by_role("button", name="요청", exact=True).click()
        expect(page.get_by_role("alert").first).to_be_visible()
        album.take(page, "korean-error")


def in_the_dark(album: Album) -> None:
    """The waterfall of the start in the dark, on a desktop and a narrow phone."""
    for name, viewport in (("waterfall", DESKTOP), ("narrow-320", {"width": 320, "height": 700})):
        with album.ready(color_scheme="dark", viewport=viewport) as page:
            page.locator("#start > summary").click()
            page.get_by_text("Waterfall").click()
            expect(page.locator("#waterfall-body li").first).to_be_visible()
            if name == "narrow-320":
                page.locator("#engine > summary").click()
                expect(page.locator("#engines article").first).to_be_visible()
            album.take(page, name)


def described(album: Album) -> None:
    """/docs."""
    with album.page() as page:
        page.goto(f"{album.url}docs")
        expect(page.locator("#operations")).to_contain_text("/generate")
        album.take(page, "docs", whole=False)


def ended(album: Album, server: Served) -> None:
    """The server is killed while the page is looked at."""
    with album.ready() as page:
        server.process.kill()
        expect(page.locator("#status")).to_have_text("No answer")
        album.take(page, "gone", whole=False)


def loaded(album: Album, gate: Gate) -> None:
    """Behind a key: the key, bytes that land, a model that failed."""
    with album.page() as page:
        for key in ("wrong", KEY):
            page.get_by_label("API key").fill(key)
            if key == KEY:
                album.take(page, "key", whole=False)
            page.get_by_role("button", name="Use this key").click()
            expect(page.get_by_role("dialog")).to_be_visible(visible=key != KEY)
        gate.open(FIRST)
        expect(page.locator("article[aria-label=sql]")).to_contain_text("MB of")
        expect(page.locator("article[aria-label=lost]")).to_contain_text("could not be loaded")
        page.wait_for_timeout(1200)
        album.take(page, "load")
        gate.open(SECOND)
        expect(page.locator("#status")).to_have_text("Ready in part")
        album.take(page, "failed", whole=False)


def _pick(page: Page, task: str) -> Any:
    panel = page.locator("#panel-task")
    panel.get_by_text(task, exact=True).click()
    return panel


def _finished(page: Page) -> None:
    expect(page.locator("#panel-task .figures-line")).to_contain_text("finished by itself")


OF_THE_DEMO: tuple[tuple[tuple[str, ...], Callable[[Album], None]], ...] = (
    (("first", "task", "error"), asked),
    (("chat",), talked),
    (("sample", "photo", "photo-refused"), seen),
    (("phone", "korean", "korean-error"), in_korean),
    (("waterfall", "narrow-320"), in_the_dark),
    (("docs",), described),
)


def main() -> None:
    """Make the pictures, and say which."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "docs" / "screenshots")
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--cache", type=Path, default=ROOT / ".demo", help="where the demo keeps SmolLM2")
    wanted = parser.parse_args()
    expect.set_options(timeout=60_000)
    with ExitStack() as stack:
        playwright = stack.enter_context(sync_playwright())
        bucket = stack.enter_context(LocalBucket())
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        album = Album(launch(playwright), wanted.folder, tuple(wanted.only))
        for name, model in (("sql", DEMO / "sql_model"), ("product", DEMO / "product_model")):
            bucket.add(BUCKET, name, model)
        if album.wants("key", "load", "failed"):
            config = work / "locked.toml"
            config.write_text(LOCKED, encoding="utf-8")
            gate = stack.enter_context(Gate(bucket.port, FIRST, SECOND))
            with Served(config, gate.environment | {"PICTURE_KEY": KEY}) as server:
                album.url = server.url
                loaded(album, gate)
        bucket.add(BUCKET, "smollm2", checkpoint(wanted.cache))
        config = work / "coldstream.toml"
        text = (DEMO / "coldstream.toml").read_text(encoding="utf-8")
        config.write_text(text.replace('"photos/', f'"{DEMO}/photos/'), encoding="utf-8")
        with Served(config, bucket.environment) as server:
            album.url = server.url
            for names, take in OF_THE_DEMO:
                if album.wants(*names):
                    take(album)
            if album.wants("gone"):
                ended(album, server)
        print(f"{wanted.folder}: {', '.join(album.taken)}")


if __name__ == "__main__":
    main()
