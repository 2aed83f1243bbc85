"""Asking: tasks, chat, photos, errors in words, the request as code."""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from coldstream.demo.sql_pairs import sql_pairs
from tests.browser.conftest import Watch
from tests.browser.dropping import drop

PAIR = min(sql_pairs(), key=lambda pair: len(pair.answer))
_PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFklEQVR4nGOYK2uFFTEMKQkX7Y1Y0cBJAABmzjfBQjIXLQAAAABJRU5ErkJggg=="
)
_DATA_URL = "data:image/png;base64," + base64.b64encode(_PNG).decode()


def ask(page: Page) -> None:
    fill(page)
    page.get_by_role("button", name="Ask").click()


def fill(page: Page) -> None:
    page.get_by_label("context").fill(PAIR.context)
    page.get_by_label("question").fill(PAIR.question)


def unfold(page: Page, *panels: str) -> None:
    """Open panels that are folded once everything is ready."""
    for panel in panels:
        page.locator(f"{panel} > summary").click()


def pick(page: Page, task: str) -> Locator:
    """Choose a task; its panel."""
    panel = page.locator("#panel-task")
    panel.get_by_text(task, exact=True).click()
    return panel


def test_a_task_answers_by_streaming_and_says_how_fast(ready: Page) -> None:
    with ready.expect_response("**/generate") as answered:
        ask(ready)
    assert answered.value.headers["content-type"].startswith("text/event-stream")
    expect(ready.locator("#panel-task .figures-line")).to_contain_text("finished by itself")
    assert ready.locator("#panel-task .words").text_content() == PAIR.answer
    figures = ready.locator("#panel-task .figures-line")
    expect(figures).to_contain_text("to the first token")
    expect(figures).to_contain_text("tokens/s")
    expect(ready.locator("#say")).to_contain_text("The answer is complete")
    unfold(ready, "#engine")
    expect(ready.locator("#engines")).to_contain_text("sql")
    expect(ready.locator("#engines dt:text-is('Answered') + dd")).not_to_have_text("0")


def test_a_running_answer_is_stopped_by_the_button_that_began_it_and_its_text_stays(ready: Page) -> None:
    pick(ready, "long")
    ready.get_by_label("prompt").fill("select")
    ready.get_by_role("button", name="Ask").click()
    words = ready.locator("#panel-task .words")
    expect(words).not_to_be_empty()
    some = words.text_content()
    expect(words).not_to_have_text(some or "")  # it grows
    ready.get_by_role("button", name="Stop").click()
    expect(ready.locator("#panel-task .figures-line")).to_contain_text("stopped by you")
    expect(ready.get_by_role("button", name="Ask")).to_be_focused()
    assert words.text_content() != ""


def test_an_error_is_told_in_words_beside_its_field_which_gets_the_focus(ready: Page, watch: Watch) -> None:
    watch.expected = {422}
    ready.get_by_label("context").fill(PAIR.context)
    ready.get_by_role("button", name="Ask").click()
    question = ready.get_by_label("question")
    expect(question).to_be_focused()
    expect(question).to_have_attribute("aria-invalid", "true")
    expect(ready.get_by_role("alert").first).to_contain_text("prompt is missing")
    question.fill(PAIR.question)
    expect(question).not_to_have_attribute("aria-invalid", "true")
    panel = ready.locator("#panel-task")
    panel.get_by_text("Sampling").click()
    panel.get_by_label("Temperature").fill("warm")
    panel.get_by_role("button", name="Ask").click()
    expect(panel.get_by_label("Temperature")).to_be_focused()
    expect(panel.get_by_role("alert")).to_contain_text("temperature")


def test_a_choice_shows_its_default_and_the_answer_names_the_defaults_that_were_used(ready: Page) -> None:
    panel = pick(ready, "translation")
    expect(panel.get_by_label("language", exact=True)).to_contain_text("Default: Korean")
    panel.get_by_label("text", exact=True).fill("hello")
    ready.get_by_role("button", name="Ask").click()
    expect(ready.locator("#panel-task .note")).to_have_text("Defaults were used for: language")


@pytest.mark.parametrize("language", ["curl", "python", "javascript"])
def test_the_request_as_code_runs_elsewhere_and_gets_the_same_answer(
    ready: Page, language: str, tmp_path: Path
) -> None:
    fill(ready)
    done = run_code(ready.locator("#panel-task"), language, tmp_path)
    assert done.stdout.strip().strip('"') == PAIR.answer, done.stderr


def run_code(panel: Locator, language: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Take the code from the page and run it as it is."""
    programs = {"curl": ["sh"], "python": [sys.executable], "javascript": ["node", "--input-type=module"]}
    if shutil.which("curl" if language == "curl" else programs[language][0]) is None:
        pytest.skip(f"no {language} on this machine")
    panel.get_by_text("As code").click()
    panel.get_by_label("Language of the code").select_option(language)
    code = panel.locator("pre").text_content()
    assert code
    return subprocess.run(programs[language], input=code, capture_output=True, text=True, timeout=60, cwd=folder)


def test_a_dropped_photo_is_shown_and_sent_and_a_model_without_eyes_says_so_in_words(ready: Page, watch: Watch) -> None:
    watch.expected = {422}
    panel = pick(ready, "product")
    drop(ready, "#panel-task form", "red.png", "image/png", _PNG)
    preview = panel.locator(".previews li")
    expect(preview).to_contain_text("red.png")
    assert preview.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 8
    with ready.expect_request("**/generate") as sent:
        panel.get_by_role("button", name="Ask").click()
    assert sent.value.post_data_json["inputs"] == {"photo": _DATA_URL}
    expect(panel.get_by_role("alert").filter(visible=True).first).to_contain_text("takes text only")
    expect(panel.get_by_role("button", name="choose a file")).to_be_focused()
    preview.get_by_role("button", name="Remove red.png").click()
    expect(preview).to_have_count(0)


@pytest.mark.parametrize("language", ["curl", "python", "javascript"])
def test_a_request_with_a_photo_runs_elsewhere_too(ready: Page, language: str, tmp_path: Path) -> None:
    """From a folder that holds the photo; that the model takes text only says that the photo has arrived."""
    panel = pick(ready, "product")
    drop(ready, "#panel-task form", "it's red.png", "image/png", _PNG)
    (tmp_path / "it's red.png").write_bytes(_PNG)
    done = run_code(panel, language, tmp_path)
    assert "HTTP Error 422" in done.stderr if language == "python" else "takes text only" in done.stdout, done


def test_a_photo_in_a_chat_that_is_refused_goes_back_to_where_it_was_written(ready: Page, watch: Watch) -> None:
    watch.expected = {400}
    ready.get_by_role("tab", name="Chat").click()
    panel = ready.locator("#panel-chat")
    panel.get_by_text("Add a photo").click()
    drop(ready, "#panel-chat .drop", "red.png", "image/png", _PNG)
    panel.get_by_label("Message", exact=True).fill("What is this?")
    with ready.expect_request("**/v1/chat/completions") as sent:
        panel.get_by_role("button", name="Send").click()
    assert sent.value.post_data_json["messages"][0]["content"][0]["image_url"] == {"url": _DATA_URL}
    expect(panel.get_by_role("alert").filter(visible=True).first).to_contain_text("takes text only")
    expect(panel.locator(".previews li")).to_contain_text("red.png")
    expect(panel.get_by_label("Message", exact=True)).to_have_value("What is this?")


def test_a_file_that_is_no_picture_is_refused_before_it_is_sent(ready: Page) -> None:
    ready.get_by_role("tab", name="Chat").click()
    ready.get_by_text("Add a photo").click()
    drop(ready, "#panel-chat .drop", "notes.svg", "image/svg+xml", b"<svg/>")
    expect(ready.locator("#panel-chat .field .error:visible")).to_contain_text("notes.svg is not a picture")
    expect(ready.locator("#panel-chat .previews li")).to_have_count(0)


def test_chat_streams_keeps_the_conversation_and_leaves_enter_to_the_input_method(ready: Page) -> None:
    ready.get_by_role("tab", name="Chat").click()
    message = ready.get_by_label("Message", exact=True)
    message.fill("How many users are there?")
    message.dispatch_event("keydown", {"key": "Enter", "isComposing": True, "bubbles": True})
    expect(ready.locator(".turn")).to_have_count(0)
    ready.get_by_text("Sampling").last.click()
    ready.get_by_label("Most tokens").last.fill("8")
    message.press("Enter")
    expect(ready.locator(".turn")).to_have_count(2)
    expect(ready.locator(".turn .figures-line")).to_contain_text("tokens/s")
    expect(ready.get_by_role("button", name="Send")).to_be_visible()
    message.fill("And orders?")
    with ready.expect_request("**/v1/chat/completions") as sent:
        message.press("Enter")
    roles = [turn["role"] for turn in sent.value.post_data_json["messages"]]
    assert roles == ["user", "assistant", "user"]
    expect(ready.locator(".turn")).to_have_count(4)
    expect(ready.locator(".turn .figures-line")).to_have_count(2)
    expect(ready.get_by_role("button", name="Send")).to_be_visible()


def test_a_new_chat_ends_the_answer_that_runs_and_forgets_it(ready: Page) -> None:
    ready.get_by_role("tab", name="Chat").click()
    panel = ready.locator("#panel-chat")
    panel.get_by_text("Sampling").click()
    panel.get_by_label("Temperature").fill("2")
    message = panel.get_by_label("Message", exact=True)
    message.fill("How many users are there?")
    message.press("Enter")
    expect(panel.locator(".turn .words").last).not_to_be_empty()
    panel.get_by_role("button", name="New chat").click()
    expect(panel.get_by_role("button", name="Send")).to_be_visible()
    expect(panel.locator(".turn")).to_have_count(0)
    message.fill("And orders?")
    with ready.expect_request("**/v1/chat/completions") as sent:
        message.press("Enter")
    assert [turn["content"] for turn in sent.value.post_data_json["messages"]] == ["And orders?"]


def test_everything_can_be_done_from_the_keyboard(ready: Page) -> None:
    press = ready.keyboard.press
    press("Tab")
    expect(ready.get_by_role("link", name="To the playground")).to_be_focused()
    press("Enter")
    press("Tab")
    expect(ready.get_by_role("tab", name="Tasks")).to_be_focused()
    press("ArrowRight")
    expect(ready.locator("#panel-chat")).to_be_visible()
    press("ArrowLeft")
    press("Tab")
    expect(ready.get_by_role("radio", name="sql")).to_be_focused()
    press("ArrowUp")  # round to the last one
    expect(ready.get_by_role("radio", name="long")).to_be_checked()
    press("Tab")
    ready.keyboard.type("select")
    press("Control+Enter")
    expect(ready.locator("#panel-task .words")).not_to_be_empty()
    press("Escape")
    expect(ready.locator("#panel-task .figures-line")).to_contain_text("stopped by you")
