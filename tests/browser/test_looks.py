"""How the page looks and reads: to people with other eyes, on a phone, in two languages, over a thin wire."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Open, Watch
from tests.browser.served import Served
from tests.browser.test_ask import PAIR, ask, unfold

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


def test_axe_finds_no_accessibility_fault(open_page: Open, server: Served, watch: Watch) -> None:
    """With everything open: figures, an answer, an error, sampling, code, the waterfall; then chat and the dialog."""
    watch.expected = {422}
    page = open_page(server.url)
    expect(page.locator("main")).to_have_attribute("data-status", "ready")
    unfold(page, "#start", "#engine")
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
def test_nothing_sticks_out_of_a_narrow_screen(open_page: Open, server: Served, width: int) -> None:
    page = open_page(server.url, viewport={"width": width, "height": 800}, color_scheme="dark", has_touch=True)
    expect(page.get_by_role("radio", name="sql")).to_be_checked()
    unfold(page, "#start", "#engine")
    for title in ("Waterfall", "Sampling", "As code"):
        page.get_by_text(title).first.click()
    expect(page.locator("#engines article")).to_be_visible()
    for tab in ("Tasks", "Chat"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_role("tab", name="Tasks").click()


def test_it_speaks_the_readers_language_and_remembers_another_choice(open_page: Open, server: Served) -> None:
    page = open_page(server.url, locale="ko-KR", viewport={"width": 390, "height": 844})
    expect(page.locator("#status")).to_have_text("준비 완료")
    expect(page.locator("html")).to_have_attribute("lang", "ko")
    page.get_by_label("context").fill(PAIR.context)
    page.get_by_label("question").fill("사용자는 모두 몇 명인가요?")
    page.get_by_role("button", name="요청").click()
    expect(page.locator("#panel-task .figures-line")).to_contain_text("스스로 끝냄")
    page.locator("#language").select_option("en")
    expect(page.locator("#panel-task .figures-line")).to_contain_text("finished by itself")
    page.reload()
    expect(page.locator("#status")).to_have_text("Ready")


@pytest.mark.parametrize(
    "viewport", [{"width": 1280, "height": 720}, {"width": 390, "height": 664}], ids=["desk", "phone"]
)
def test_once_ready_the_prompt_is_the_first_field_and_seen_at_once(
    open_page: Open, server: Served, viewport: dict[str, int]
) -> None:
    """The start is a line below it, the engine is folded."""
    page = open_page(server.url, viewport=viewport)
    expect(page.locator("main")).to_have_attribute("data-status", "ready")
    expect(page.get_by_role("radio", name="sql")).to_be_checked()
    assert (
        page.locator("#panel-task :is(textarea, input[type=text], select):visible").first.evaluate(
            "field => field.labels[0].textContent"
        )
        == "question"
    )
    top, start = (page.locator(item).first.bounding_box() for item in ("#panel-task textarea", "#start"))
    assert top and start  # noqa: PT018
    assert top["y"] + top["height"] < viewport["height"] < page.evaluate("innerHeight") + 1
    assert top["y"] < start["y"]
    assert start["height"] < 80
    expect(page.locator("#models")).to_be_hidden()
    expect(page.locator("#engines")).to_be_hidden()
    expect(page.locator("#start-line")).to_contain_text("after exec")


def test_the_waterfall_shows_the_ranges_of_a_model_in_one_row(open_page: Open, server: Served) -> None:
    page = open_page(server.url)
    spans = [
        {"name": "range", "start": at / 10, "end": at / 10 + 0.3, "thread": f"t{at % 4}", "details": details}
        for details in ({"model": "a", "lane": 1}, {"model": "b"})
        for at in range(12)
    ]
    rows = page.evaluate(
        """async (spans) => (await import('/playground/waterfall.js')).rowsOf(spans)
        .map((row) => [row.model, row.spans.length])""",
        [*spans, {"name": "listing", "start": 0, "end": 1, "thread": "t", "details": {}}],
    )
    assert sorted(rows, key=str) == [["a", 12], ["b", 12], [None, 1]]


def test_the_description_of_the_api_is_a_page_too(open_page: Open, server: Served) -> None:
    page = open_page(f"{server.url}docs", viewport={"width": 390, "height": 844}, color_scheme="dark")
    expect(page.locator("#operations")).to_contain_text("/v1/chat/completions")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert faults(page) == []


def test_a_korean_reader_gets_the_tasks_help_and_the_errors_in_korean(
    open_page: Open, server: Served, watch: Watch
) -> None:
    watch.expected = {422}
    page = open_page(server.url, locale="ko-KR")
    expect(page.locator("#panel-task .about")).to_contain_text("SQL 명령 하나로")
    expect(page.locator("#panel-task")).to_contain_text("데이터베이스에 물어볼 것")
    page.get_by_label("context").fill(PAIR.context)
    page.get_by_role("button", name="요청").click()
    alert = page.get_by_role("alert").first
    expect(alert).to_contain_text("작업 sql에는 prompt 값이 필요합니다.")
    expect(alert.locator("[lang=en]")).to_contain_text("prompt is missing")  # what the server said, too
    page.locator("#language").select_option("en")
    expect(alert).to_have_text(re.compile("^Something in the request is not right.prompt is missing; task 'sql'"))
    expect(page.locator("#panel-task .about")).to_contain_text("Turns a question")


def test_an_example_is_asked_by_a_click(open_page: Open, server: Served) -> None:
    page = open_page(server.url)
    page.get_by_role("button", name="Shortest").click()
    expect(page.locator("#panel-task .figures-line")).to_contain_text("finished by itself")
    expect(page.get_by_label("question")).to_have_value(PAIR.question)
    assert page.locator("#panel-task .words").text_content() == PAIR.answer
