"""The page's files as they go over the wire, without a browser."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
from dataclasses import replace
from importlib.resources import as_file, files
from typing import Any

import httpx2
import pytest
from pydantic import ValidationError

from coldstream import errors
from coldstream.serve.api import tasks
from coldstream.serve.api.schema import GenerateRequest
from coldstream.serve.middleware.auth import ApiKeys
from coldstream.serve.middleware.errors import from_validation
from coldstream.serve.playground import PAGE, PREFIX, Playground
from coldstream.settings import InputSettings, ServerSettings, TaskSettings, for_uri
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


def test_every_error_of_a_load_is_told_in_korean_by_its_kind() -> None:
    """What a model's card may show, and what a request may be refused with; a new class needs a sentence."""
    told = set(re.findall(r"^    (\w+): \"", _SOURCES["errors.js"], re.MULTILINE))
    roots = (errors.StoreError, errors.CheckpointError, errors.ModelError, errors.OutOfMemory, errors.DeviceUnavailable)
    roots += (errors.LocationError, errors.MissingExtra, errors.EngineError, errors.DeadlineExceeded, errors.TooCostly)
    roots += (errors.UnknownTask, errors.PromptTooLong, errors.TooManyRequests, errors.NotReady)
    classes = {name for name, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, roots)}
    assert classes - told == set()


_WHY = """
globalThis.navigator ??= { languages: ["ko"] };
Object.defineProperty(globalThis, "navigator", { value: { languages: ["ko"] } });
const { readFileSync } = await import("node:fs");
const { why } = await import(process.argv[1]);
console.log(JSON.stringify(JSON.parse(readFileSync(0)).map((message) => why({ type: "InvalidRequest", message }))));
"""


def refusals() -> list[str]:
    """What the server says, from where it says it, of the mistakes that can be made on the page."""
    photo = {"photo": InputSettings(kind="image"), "size": InputSettings(kind="choice", choices=("s", "m"))}
    task = TaskSettings("t", "m", prompt="{photo}{prompt} {size}", inputs=photo)
    image = tasks.GivenImage("images.0", "x")
    said = []
    for prompt, given, images in (
        (None, {"size": "s"}, [image]),
        ("x", {}, [image]),
        ("x", {"size": "s"}, []),
        ("x", {"size": "l"}, [image]),
        ("x", {"size": "s"}, [image, image]),
    ):
        with pytest.raises(errors.InvalidRequest) as refused:
            tasks.render(task, prompt, given, images)
        said.append(str(refused.value))
    with pytest.raises(errors.InvalidRequest) as refused:
        tasks.render(TaskSettings("t", "m"), "x", {}, [image])
    said.append(str(refused.value))
    for body in (
        {"temperature": "warm"},
        {"temperature": 5},
        {"repetition_penalty": 0},
        {"max_tokens": -1},
        {"max_tokens": 1.5},
    ):
        with pytest.raises(ValidationError) as invalid:
            GenerateRequest.model_validate(body)
        said.append(str(from_validation(invalid.value.errors(), (), "application/json", body)))
    return said


def test_what_a_reader_can_do_wrong_is_told_in_korean() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on this machine")
    with as_file(_STATIC) as folder:
        command = [node, "--input-type=module", "-e", _WHY, str(folder / "errors.js")]
        said = refusals()
        done = subprocess.run(command, input=json.dumps(said), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [message for message, korean in zip(said, told, strict=True) if not re.search("[가-힣]", korean)] == []
    assert not [korean for korean in told if re.search(r"\{\d\}|undefined", korean)]


def test_the_page_looks_after_its_server_oftener_than_once_a_second() -> None:
    times = dict(re.findall(r"^const (PULSE|SILENCE) = (\d+);", _SOURCES["start.js"], re.MULTILINE))
    assert int(times["PULSE"]) + int(times["SILENCE"]) < 1000


def test_the_library_that_reads_markdown_has_its_licence_beside_it() -> None:
    assert "Permission is hereby granted" in _SOURCES["marked.LICENSE"]
    assert "marked v" in _SOURCES["marked.js"][:100]
