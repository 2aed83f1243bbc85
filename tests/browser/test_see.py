"""A model that sees, asked on the page: the demo's own, about the demo's photos."""

from __future__ import annotations

from importlib.resources import files

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Open
from tests.browser.dropping import drop
from tests.browser.served import Served
from tests.browser.test_looks import faults
from tools.pictures import Product

PHOTOS = files("coldstream.demo") / "photos"
LAMP = Product("lamp", "green", "grey")
CHAIR = Product("chair", "purple", "beige")


@pytest.fixture
def page(open_page: Open, seeing: Served) -> Page:
    """The page, its model ready."""
    opened = open_page(seeing.url)
    expect(opened.locator("#status")).to_have_text("Ready")
    return opened


def test_a_dropped_photo_is_described_by_streaming(page: Page) -> None:
    """What the answer names is on the photo that was dropped, and nowhere in the request's words.

    It is too short to be seen growing on a busy machine: all of it may come within one frame.
    """
    panel = page.locator("#panel-task")
    panel.get_by_label("category").select_option("garden")
    drop(page, "#panel-task form", "green-lamp.jpg", "image/jpeg", (PHOTOS / "green-lamp.jpg").read_bytes())
    expect(panel.locator(".previews li")).to_contain_text("green-lamp.jpg")
    with page.expect_response("**/generate") as answered:
        panel.get_by_role("button", name="Ask").click()
    assert answered.value.headers["content-type"].startswith("text/event-stream")
    expect(panel.locator(".figures-line")).to_contain_text("finished by itself")
    assert panel.locator(".words").text_content() == LAMP.description("garden")
    assert faults(page) == []


def test_another_photo_gets_another_answer_in_the_same_form(page: Page) -> None:
    panel = page.locator("#panel-task")
    for name, product in (("green-lamp.jpg", LAMP), ("purple-chair.jpg", CHAIR)):
        drop(page, "#panel-task form", name, "image/jpeg", (PHOTOS / name).read_bytes())
        panel.get_by_role("button", name="Ask").click()
        expect(panel.locator(".words")).to_have_text(product.description("home"))
        panel.get_by_role("button", name=f"Remove {name}").click()


def test_without_a_photo_the_sample_is_described_and_the_page_says_so(page: Page) -> None:
    panel = page.locator("#panel-task")
    sample = panel.locator(".sample img")
    assert sample.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    panel.get_by_role("button", name="Ask").click()
    expect(panel.locator(".words")).to_contain_text("red mug")
    expect(panel.locator(".note")).to_contain_text("photo")


def test_a_photo_in_a_chat_is_seen(page: Page) -> None:
    page.get_by_role("tab", name="Chat").click()
    panel = page.locator("#panel-chat")
    panel.get_by_text("Add a photo").click()
    drop(page, "#panel-chat .drop", "purple-chair.jpg", "image/jpeg", (PHOTOS / "purple-chair.jpg").read_bytes())
    question = "Describe this product for the category gift. Name: test"
    panel.get_by_label("Message", exact=True).fill(question)
    panel.get_by_role("button", name="Send").click()
    expect(panel.locator(".turn .figures-line")).to_contain_text("finished by itself")
    expect(panel.locator(".turn .words").last).to_contain_text("purple chair")
    assert faults(page) == []
