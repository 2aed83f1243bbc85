"""The load as it happens, behind a key."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from coldstream.demo.bucket import LocalBucket
from tests.browser.conftest import BUCKET, SQL_TASK, Open, Watch
from tests.browser.gate import Gate
from tests.browser.served import Served

KEY = "correct horse battery staple"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture(scope="module")
def gate(bucket: LocalBucket) -> Iterator[Gate]:
    with Gate(bucket.port, FIRST, SECOND) as held:
        yield held


@pytest.fixture(scope="module")
def locked(gate: Gate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that wants a key, with one model whose bytes are held and one that does not exist."""
    config = tmp_path_factory.mktemp("locked") / "coldstream.toml"
    config.write_text(
        f'[server]\nhost = "127.0.0.1"\napi_keys_env = "PAGE_TEST_KEY"\n'
        f'[models.sql]\nuri = "gs://{BUCKET}/sql"\n[models.lost]\nuri = "gs://{BUCKET}/nowhere"\n{SQL_TASK}'
    )
    with Served(config, gate.environment | {"PAGE_TEST_KEY": KEY}) as served:
        yield served


def give_key(page: Page, key: str) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Use this key").click()


def bar(page: Page, model: str) -> int:
    return int(page.locator(f"article[aria-label={model}] [role=progressbar]").get_attribute("aria-valuenow") or 0)


def test_the_page_asks_for_the_key_shows_the_load_and_the_end(
    open_page: Open, locked: Served, gate: Gate, watch: Watch
) -> None:
    """One story, since a server loads but once: key, wrong key, bytes landing, a model that failed, ready, gone."""
    watch.expected = {401}
    page = open_page(locked.url)
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    expect(page.get_by_label("API key")).to_be_focused()
    give_key(page, "wrong")
    expect(dialog).to_contain_text("That key is not one of this server’s.")
    give_key(page, KEY)

    status = page.locator("#status")
    expect(status).to_have_text("Loading")
    expect(page.locator("article[aria-label=lost]")).to_contain_text("This model could not be loaded.")
    expect(page.locator("article[aria-label=lost]")).to_contain_text("ObjectNotFound")
    assert bar(page, "sql") == 0
    gate.open(FIRST)
    expect(page.locator("article[aria-label=sql]")).to_contain_text("1.8 MB of 3.2 MB")
    assert 50 < bar(page, "sql") < 60
    expect(page.locator("#start-line")).to_contain_text("left")
    expect(page.locator("#waterfall-body")).to_contain_text("import the streamer")
    gate.open(SECOND)
    expect(status).to_have_text("Ready in part")
    assert bar(page, "sql") == 100
    expect(page.locator("#start-line")).to_contain_text("after exec")

    assert KEY not in page.url
    assert KEY not in page.evaluate("JSON.stringify(localStorage) + document.cookie + document.body.innerHTML")
    page.locator("#panel-task").get_by_text("As code").click()
    expect(page.locator("#panel-task pre")).to_contain_text("$COLDSTREAM_API_KEY")
    page.reload()
    expect(status).to_have_text("Ready in part")  # the tab still has the key
    expect(dialog).to_be_hidden()


def test_a_reader_without_the_key_is_told_so_and_may_give_it_later(
    open_page: Open, locked: Served, gate: Gate, watch: Watch
) -> None:
    gate.open(FIRST)
    gate.open(SECOND)
    watch.expected = {401}
    page = open_page(locked.url)
    page.get_by_role("button", name="Not now").click()
    expect(page.locator("#status")).to_have_text("Key needed")
    page.get_by_role("button", name="API key").click()
    give_key(page, KEY)
    expect(page.locator("#status")).to_have_text("Ready in part")
