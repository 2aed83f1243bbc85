"""What the documents say runs: links lead somewhere, commands and options exist, Python compiles, TOML is read."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

import coldstream
from coldstream import cli, errors
from coldstream.serve.api.schema import GenerateRequest
from coldstream.serve.middleware import errors as failures
from coldstream.serve.openai.responses_schema import ResponsesRequest
from coldstream.serve.openai.schema import ChatRequest, CompletionRequest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "docs/lab/README.md")
    if path.name != "CHANGELOG.md"
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
INLINE = re.compile(r"`(coldstream [a-z][^`]*)`")


def blocks(language: str) -> Iterator[tuple[str, str]]:
    for path in DOCUMENTS:
        for found in BLOCK.finditer(path.read_text("utf-8")):
            if found[1] == language:
                yield path.name, found[2]


def commands() -> Iterator[tuple[str, str]]:
    for name, text in blocks("sh"):
        for line in text.replace("\\\n", " ").splitlines():
            if line.strip().startswith("coldstream "):
                yield name, line.strip()
    for path in DOCUMENTS:
        for found in INLINE.finditer(BLOCK.sub("", path.read_text("utf-8"))):
            yield path.name, found[1]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_to_a_file(path: Path) -> None:
    for target in LINK.findall(path.read_text("utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def _words(line: str) -> list[str]:
    """Without comments and shell syntax; a placeholder in capitals stands for a value."""
    words = shlex.split(line, comments=True)
    return [
        re.sub(r"^\[|\]$", "", word) for word in words[1 : next((i for i, w in enumerate(words) if w == "|"), None)]
    ]


@pytest.mark.parametrize(("name", "line"), sorted(set(commands())))
def test_every_command_is_one_with_these_options(name: str, line: str) -> None:
    words = _words(line)
    group: typer.main.TyperGroup = typer.main.get_command(cli._app([]))  # type: ignore[assignment]
    context = group.make_context("coldstream", [], resilient_parsing=True)
    options = [word.split("=")[0] for word in words if word.startswith("-")]
    command = group
    for word in (word for word in words if not word.startswith("-")):
        found = command.get_command(context, word) if hasattr(command, "get_command") else None
        if found is None:
            break
        command = found  # type: ignore[assignment]
    assert command is not group or all(word.startswith("-") for word in words), f"{name}: {line}"
    known = {option for item in command.params for option in (*item.opts, *item.secondary_opts)} | {"--help"}
    assert set(options) <= known, f"{name}: {line}"


@pytest.mark.parametrize(("name", "code"), list(blocks("python")))
def test_python_compiles_and_names_what_the_library_has(name: str, code: str) -> None:
    compile(code, name, "exec")
    for attribute in re.findall(r"\bcoldstream\.(\w+)", code):
        assert hasattr(coldstream, attribute), f"{name}: coldstream.{attribute}"


@pytest.mark.parametrize(("name", "text"), list(blocks("toml")))
def test_toml_is_toml(name: str, text: str) -> None:
    assert tomllib.loads(text), name


def test_every_exit_code_is_in_the_table() -> None:
    table = (ROOT / "docs" / "cli.md").read_text("utf-8")
    codes = {item.exit_code for item in vars(errors).values() if isinstance(item, type) and issubclass(item, Exception)}
    assert {code for code in codes if not re.search(rf"\b{code}\b", table)} == set()


def test_the_library_page_names_every_public_function() -> None:
    page = (ROOT / "docs" / "library.md").read_text("utf-8")
    functions = {name for name in coldstream.__all__ if not isinstance(getattr(coldstream, name), type)}
    assert {name for name in functions if not re.search(rf"`{name}\((?:task, )?uri", page)} == set()


def _http_api() -> tuple[str, str]:
    """The page's part about /generate and the one about OpenAI's API, without blocks."""
    page = BLOCK.sub("", (ROOT / "docs" / "http-api.md").read_text("utf-8"))
    ours, openai = page.split("\n## OpenAI's API\n")
    return ours, openai


def _named(text: str) -> set[str]:
    return {name for code in re.findall(r"`([^`]+)`", text) for name in re.findall(r"\w+", code)}


def test_the_http_page_names_every_field_of_a_request() -> None:
    ours, openai = _http_api()
    assert set(GenerateRequest.model_fields) - _named(ours) == set()
    for body in (ChatRequest, CompletionRequest, ResponsesRequest):
        assert set(body.model_fields) - _named(openai) == set()


def test_the_http_page_has_every_error_of_a_request_with_its_status() -> None:
    kinds = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, errors.RequestError)]
    for kind in {*kinds, errors.EngineError} - {errors.RequestError}:
        row = re.search(rf"^\| {kind.http_status} .*\| `{kind.__name__}` \|.*$", _http_api()[1], re.MULTILINE)
        assert row is not None, kind
        error = kind("", retry_after=1.0) if kind in (errors.TooManyRequests, errors.NotReady) else kind("")
        openai = failures.body(error, "/v1/")["error"]
        assert {openai["type"], openai["code"]} - {None} <= _named(row[0]), kind
