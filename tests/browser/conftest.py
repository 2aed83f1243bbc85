"""Chromium, real servers with the demo's own SQL model, and an eye on what a page must never do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from importlib.resources import as_file, files
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Playwright, expect, sync_playwright

from coldstream import settings
from coldstream.demo.bucket import LocalBucket
from coldstream.demo.sql_pairs import sql_pairs
from coldstream.deploy.service import config_text
from tests.browser.served import Served

BUCKET = "models"
_FLAGS = [
    "--no-sandbox",  # in a container there are no user namespaces for it
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_PATIENCE = 30_000
"""Milliseconds; a machine that is busy with other tests is slow, and no test measures time."""

_PAIR = min(sql_pairs(), key=lambda pair: len(pair.answer))
SQL_TASK = '''
[tasks.sql]
model = "sql"
help = "Turns a question, in English or Korean, into one SQL command for the given schema."
help_in = { ko = "질문을 SQL 명령 하나로 바꿉니다." }
prompt = """Given the <USER_QUERY> and the <SCHEMA>, generate the corresponding SQL command to retrieve the requested \
data, considering the query's syntax, semantics, and schema constraints.

<SCHEMA>
{context}
</SCHEMA>

<USER_QUERY>
{question}
</USER_QUERY>"""
prompt_input = "question"
[tasks.sql.inputs.context]
help = "The schema: CREATE TABLE commands, and INSERTs as examples"
[tasks.sql.inputs.question]
help = "What to ask of the database"
help_in = { ko = "데이터베이스에 물어볼 것" }
[tasks.sql.sampling]
max_tokens = 256
temperature = 0.0
'''
OTHER_TASKS = """
[tasks.translation]
model = "sql"
prompt = "Translate into {language}: {text}"
[tasks.translation.inputs.language]
kind = "choice"
choices = ["English", "Korean"]
default = "Korean"
help = "The language of the answer"
[tasks.translation.sampling]
max_tokens = 12

[tasks.product]
model = "sql"
prompt = "{photo}{product}"
[tasks.product.inputs.photo]
kind = "image"
help = "What it looks like"
[tasks.product.inputs.product]
default = "a mug"

[tasks.long]
model = "sql"
help = "Goes on until it is stopped."
prompt = "{prompt}"
[tasks.long.sampling]
max_tokens = 1900
temperature = 0.0
frequency_penalty = -2.0  # what was said becomes likelier each time: it never comes to an end by itself
"""


@pytest.fixture(scope="package")
def bucket() -> Iterator[LocalBucket]:
    """The SQL model that the package ships, in a bucket."""
    with LocalBucket() as local, as_file(files("coldstream.demo") / "sql_model") as model:
        local.add(BUCKET, "sql", Path(model))
        yield local


@pytest.fixture(scope="package")
def server(bucket: LocalBucket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server without a key, with several tasks of one model."""
    config = tmp_path_factory.mktemp("server") / "coldstream.toml"
    inputs = {"question": _PAIR.question, "context": _PAIR.context}
    example = "\n".join(["[tasks.sql.examples.Shortest]", *(f"{k} = {json.dumps(v)}" for k, v in inputs.items()), ""])
    tasks = f"{SQL_TASK}{example}{OTHER_TASKS}"
    config.write_text(
        f'[server]\nhost = "127.0.0.1"\n[models.sql]\nuri = "gs://{BUCKET}/sql"\n{tasks}', encoding="utf-8"
    )
    with Served(config, bucket.environment) as served:
        yield served


@pytest.fixture(scope="package")
def seeing(bucket: LocalBucket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of the demo's seeing model alone, with the demo's own task, sample photo included."""
    with as_file(files("coldstream.demo")) as demo:
        bucket.add(BUCKET, "product", demo / "product_model")
        task = settings.load(demo / "coldstream.toml", environ={}).tasks["product"]
        model = settings.ModelSettings(name="product", uri=f"gs://{BUCKET}/product")
        wanted = settings.Settings({"product": model}, {"product": task}, settings.ServerSettings(host="127.0.0.1"))
        config = tmp_path_factory.mktemp("seeing") / "coldstream.toml"
        config.write_text(config_text(wanted), encoding="utf-8")
        with Served(config, bucket.environment) as served:
            yield served


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium; Playwright brings none of its own here."""
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


def launch(playwright: Playwright) -> Browser:
    """Chromium as the tests start it."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    assert path, "these tests need Chromium: apt-get install chromium, or set CHROMIUM to its path"
    return playwright.chromium.launch(executable_path=path, args=_FLAGS)


class Watch:
    """What every page is watched for. `expected` are statuses that a test provokes, which Chromium logs as errors."""

    def __init__(self) -> None:
        self.expected: set[int] = set()
        self.ends = False
        """Whether the test ends the server, after which requests fail."""
        self.hosts: set[str] = set()
        self.faults: list[str] = []
        self._said: list[ConsoleMessage] = []

    def over(self, page: Page) -> None:
        page.on("console", lambda message: self._said.append(message))
        page.on("pageerror", lambda error: self.faults.append(f"uncaught: {error}"))
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))

    def check(self, allowed: set[str]) -> None:
        """No error on the console, no request to anybody else."""
        for message in self._said:
            known = any(f"status of {status} " in message.text for status in self.expected)
            known |= self.ends and "net::ERR_" in message.text
            if message.type in ("error", "warning") and not known:
                self.faults.append(f"console: {message.text} {message.location}")
        assert self.faults == []
        assert {host for host in self.hosts if host} <= allowed


@pytest.fixture
def watch() -> Watch:
    return Watch()


Open = Callable[..., Page]


@pytest.fixture
def open_page(chromium: Browser, watch: Watch) -> Iterator[Open]:
    """Opens a page in a browser profile of its own: `open_page(url, locale=..., color_scheme=..., viewport=...)`."""
    contexts: list[BrowserContext] = []
    visited: set[str] = set()

    def start(url: str, **options: object) -> Page:
        settings: dict[str, object] = {"viewport": {"width": 1280, "height": 860}, "locale": "en-US", **options}
        context = chromium.new_context(**settings)  # type: ignore[arg-type]
        context.set_default_timeout(_PATIENCE)
        contexts.append(context)
        page = context.new_page()
        watch.over(page)
        visited.add(urlsplit(url).netloc)
        page.goto(url)
        return page

    expect.set_options(timeout=_PATIENCE)
    yield start
    for context in contexts:
        context.close()
    watch.check(visited)


@pytest.fixture
def ready(open_page: Open, server: Served) -> Page:
    """The page of the server without a key, when its model is ready and its tasks are there."""
    page = open_page(server.url)
    expect(page.locator("#status")).to_have_text("Ready")
    expect(page.get_by_role("radio", name="sql")).to_be_checked()
    return page
