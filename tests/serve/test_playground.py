"""The page's files as they go over the wire, without a browser."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.resources import files
from typing import Any

import httpx2
import pytest

from coldstream.serve.middleware.auth import ApiKeys
from coldstream.serve.playground import PAGE, PREFIX, Playground
from coldstream.settings import ServerSettings, for_uri
from tests.support.production import stack

_STATIC = files("coldstream.serve.playground") / "static"
_SOURCES = {item.name: item.read_text(encoding="utf-8") for item in _STATIC.iterdir()}


@pytest.fixture
def pages() -> httpx2.AsyncClient:
    """A server that wants a key, before its application is there."""
    surface = stack({}, keys=ApiKeys.of("secret")).surface
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=surface), base_url="http://server", verify=False)


async def test_the_page_is_there_without_a_key_before_the_application_is(pages: httpx2.AsyncClient) -> None:
    async with pages as http:
        page = await http.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "<title>Coldstream</title>" in page.text


async def test_everything_together_is_less_than_60_kilobytes(pages: httpx2.AsyncClient) -> None:
    async with pages as http:
        replies = [await http.get(path) for path in Playground().paths if path != f"{PREFIX}{PAGE}"]
    assert {reply.headers["content-encoding"] for reply in replies} == {"gzip"}
    assert sum(int(reply.headers["content-length"]) for reply in replies) < 60_000


async def test_without_gzip_the_same_bytes_come_as_they_are(pages: httpx2.AsyncClient) -> None:
    async with pages as http:
        zipped = await http.get("/", headers={"accept-encoding": "gzip"})
        plain = await http.get("/", headers={"accept-encoding": "gzip;q=0, identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == zipped.content


async def test_a_reader_who_has_the_file_is_told_so(pages: httpx2.AsyncClient) -> None:
    async with pages as http:
        first = await http.get("/playground/main.js")
        again = await http.get("/playground/main.js", headers={"if-none-match": first.headers["etag"]})
        other = await http.get("/playground/main.js", headers={"if-none-match": '"another"'})
    assert (again.status_code, again.content, other.status_code) == (304, b"", 200)


async def test_head_says_what_get_would_send(pages: httpx2.AsyncClient) -> None:
    async with pages as http:
        head, get = await http.head("/"), await http.get("/")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"]


async def test_the_policy_admits_nothing_inline_and_nothing_from_elsewhere(pages: httpx2.AsyncClient) -> None:
    async with pages as http:
        policy = (await http.get("/")).headers["content-security-policy"]
    assert policy.startswith("default-src 'self'; ")
    assert not re.search(r"unsafe|\*|https?:", policy)


async def nothing_here(scope: Any, receive: Any, send: Any) -> None:
    """An application without routes."""
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def statuses(*paths: str, playground: bool = True) -> set[int]:
    settings = replace(for_uri("gs://b/m"), server=ServerSettings(playground=playground))
    surface = stack({}, settings).surface
    surface.open_to(nothing_here)
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=surface), base_url="http://server", verify=False
    ) as http:
        return {(await http.get(path)).status_code for path in paths}


async def test_only_the_pages_own_files_are_served() -> None:
    others = (
        "/playground/",
        "/playground/%2e%2e/main.py",
        "/playground/__init__.py",
        "/index.html",
        "/playground/x.js",
    )
    assert await statuses(*others) == {404}


async def test_switched_off_there_is_no_page() -> None:
    assert await statuses(*Playground().paths, playground=False) == {404}


def test_every_script_is_asked_for_at_once() -> None:
    """A module that is only found while another one is read costs a round trip."""
    preloaded = set(re.findall(r'rel="modulepreload" href="playground/([\w.]+)"', _SOURCES[PAGE]))
    assert preloaded == {name for name in _SOURCES if name.endswith(".js")} - {"main.js"}


def sentences() -> dict[str, list[str]]:
    """Each key with its sentences: English, Korean."""
    found: dict[str, list[str]] = {}
    for key, sentence in re.findall(r'^    "([\w.]+)": "(.*)",$', _SOURCES["words.js"], re.MULTILINE):
        found.setdefault(key, []).append(sentence)
    return found


def test_both_languages_say_everything_with_the_same_blanks() -> None:
    blanks = {key: [set(re.findall(r"\{\w+\}", text)) for text in both] for key, both in sentences().items()}
    assert {key: both for key, both in blanks.items() if len(both) != 2 or both[0] != both[1]} == {}


def test_every_sentence_is_used_and_each_one_that_is_used_exists() -> None:
    code = "\n".join(text for name, text in _SOURCES.items() if name != "words.js")
    known = set(sentences())
    assert set(re.findall(r'(?:\bt\(|data-t=)"([\w.]+)"', code)) <= known
    quoted = set(re.findall(r'"([\w.]+)"', code))
    stems = tuple(re.findall(r"`([a-z]+(?:\.[a-z]+)*\.)\$\{", code))
    assert {key for key in known - quoted if not key.startswith(stems)} == set()
