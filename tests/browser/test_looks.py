"""How the page looks and reads: to people with other eyes, on a phone, in two languages, over a thin wire."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Open, Shot, Watch
from tests.browser.served import Served
from tests.browser.test_ask import PAIR, ask

_AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"


def faults(page: Page, *rules: str) -> list[str]:
    """What axe-core finds, of any weight, as lines to read; by all its rules, or by those named."""
    assert _AXE.is_file(), "axe-core is missing: npm ci --prefix tests/browser"
    page.evaluate(_AXE.read_text(encoding="utf-8"))
    found = page.evaluate(
        "rules => axe.run({ resultTypes: ['violations'], ...(rules.length && { runOnly: rules }) })", rules
    )
    return [
        f"{violation['impact']}: {violation['id']}: {node['html'][:120]} {node['failureSummary']}"
        for violation in found["violations"]
        for node in violation["nodes"]
    ]


def test_axe_finds_no_accessibility_fault(open_page: Open, server: Served, watch: Watch, shot: Shot) -> None:
    """With everything open: figures, an answer, an error, sampling, code, the waterfall; then chat and the dialog."""
    watch.expected = {422}
    page = open_page(server.url)
    expect(page.locator("#engines article")).to_be_visible()
    ask(page)
    expect(page.locator("#panel-task .figures-line")).to_contain_text("finished")
    page.get_by_label("question").fill("")
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_role("alert").first).to_be_visible()
    for title in ("Waterfall", "Sampling", "As code"):
        page.get_by_text(title).first.click()
    assert faults(page) == []
    page.emulate_media(color_scheme="dark")
    assert faults(page, "color-contrast") == []
    page.get_by_role("tab", name="Chat").click()
    page.get_by_text("Add a photo").click()
    page.evaluate("document.getElementById('key').showModal()")
    assert faults(page) == []
    page.emulate_media(color_scheme="light")
    assert faults(page, "color-contrast") == []


@pytest.mark.parametrize("width", [320, 700])
def test_nothing_sticks_out_of_a_narrow_screen(open_page: Open, server: Served, width: int, shot: Shot) -> None:
    page = open_page(server.url, viewport={"width": width, "height": 800}, color_scheme="dark", has_touch=True)
    expect(page.get_by_role("radio", name="sql")).to_be_checked()
    for title in ("Waterfall", "Sampling", "As code"):
        page.get_by_text(title).first.click()
    expect(page.locator("#engines article")).to_be_visible()
    for tab in ("Tasks", "Chat"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_role("tab", name="Tasks").click()
    shot(page, f"narrow-{width}")


def test_it_speaks_the_readers_language_and_remembers_another_choice(
    open_page: Open, server: Served, shot: Shot
) -> None:
    page = open_page(server.url, locale="ko-KR", viewport={"width": 390, "height": 844})
    expect(page.locator("#status")).to_have_text("준비 완료")
    expect(page.locator("html")).to_have_attribute("lang", "ko")
    page.get_by_label("context").fill(PAIR.context)
    page.get_by_label("question").fill("사용자는 모두 몇 명인가요?")
    page.get_by_role("button", name="요청").click()
    expect(page.locator("#panel-task .figures-line")).to_contain_text("스스로 끝냄")
    shot(page, "korean")
    page.locator("#language").select_option("en")
    expect(page.locator("#panel-task .figures-line")).to_contain_text("finished by itself")
    page.reload()
    expect(page.locator("#status")).to_have_text("Ready")
