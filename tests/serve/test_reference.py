"""/docs from our own files: there without a key, nothing from elsewhere, and it reads our own description whole."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib.resources import as_file, files
from typing import Any

import httpx2
import pytest

from coldstream.serve.middleware.auth import ApiKeys
from coldstream.serve.playground import DOCS, ApiReference, Playground
from tests.support.production import stack

_FOLDER = files("coldstream.serve.playground") / "reference"
_SHOWN = """
import { readFileSync } from "node:fs";
const { fields, operations } = await import(process.argv[1]);
const api = JSON.parse(readFileSync(0));
const said = operations(api).map((one) => [one.method, one.path,
  Object.values(one.requestBody?.content ?? {}).map(({ schema }) => fields(schema, api))]);
console.log(JSON.stringify(said));
"""


async def test_the_page_and_its_files_are_there_without_a_key_and_ask_for_nothing_elsewhere() -> None:
    surface = stack({}, keys=ApiKeys.of("secret")).surface
    known = {*ApiReference().paths, *Playground().paths, "/openapi.json"}
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=surface), base_url="http://server", verify=False
    ) as http:
        page = await http.get(DOCS)
        texts = [(await http.get(path)).text for path in ApiReference().paths]
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    wanted = set(re.findall(r'(?:href|src)="([^"]+)"', page.text)) - {"./"}
    assert {f"/{name}" for name in wanted} <= known
    assert not any(re.search(r"https?://", text) for text in texts)


@pytest.mark.skipif(shutil.which("node") is None, reason="runs the page's own script in node")
async def test_it_shows_every_operation_with_every_field_of_its_body() -> None:
    made = stack({}).open()
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=made.surface), base_url="http://server", verify=False
    ) as http:
        api: dict[str, Any] = (await http.get("/openapi.json")).json()
    shown = _shown(api)
    assert set(shown) == {(method.upper(), path) for path, item in api["paths"].items() for method in item}
    schemas = api["components"]["schemas"]
    for path, name in (("/generate", "GenerateRequest"), ("/v1/chat/completions", "ChatRequest")):
        body = shown["POST", path][0]
        assert {field["name"] for field in body} == set(schemas[name]["properties"])
        assert all(field["type"] and "undefined" not in field["type"] for field in body)


def _shown(api: dict[str, Any]) -> dict[tuple[str, str], list[list[dict[str, Any]]]]:
    """The page's own reading: the fields of each body, by method and path."""
    with as_file(_FOLDER / "schema.js") as script:
        ran = subprocess.run(
            ["node", "--input-type=module", "-e", _SHOWN, str(script)],
            input=json.dumps(api).encode(),
            capture_output=True,
            timeout=60,
            check=True,
        )
    return {(method, path): bodies for method, path, bodies in json.loads(ran.stdout)}
