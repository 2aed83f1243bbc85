"""Eight client libraries, each with its own loop, side by side against one real server; offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import pytest

from tests.browser.served import Served

LOOPS = Path(__file__).parent / "loops.py"
PYTHON = Path(os.environ.get("COLDSTREAM_CLIENTS") or Path(sys.prefix) / "clients") / "bin" / "python"
CITIES = ("Seoul", "Busan")
NAMES = ("openai", "litellm", "langchain", "llama-index", "instructor", "pydantic-ai", "openai-agents", "lm-eval")
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "LANGSMITH_TRACING": "false",
    "OPENAI_API_KEY": "unused",
    "HTTPS_PROXY": "http://127.0.0.1:9",  # what a library would fetch from elsewhere fails
    "NO_PROXY": "127.0.0.1",
}

pytestmark = [pytest.mark.more, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[dict[str, Any]]]]:
    """What each loop printed."""
    assert PYTHON.exists(), f"{PYTHON} is not there; `make test-more` makes the clients' environment"
    config = tmp_path_factory.mktemp("clients") / "coldstream.toml"
    with as_file(files("coldstream.demo") / "sql_model") as model:
        config.write_text(f'[server]\nhost = "127.0.0.1"\n[models.sql]\nuri = "{model}"\n', encoding="utf-8")
        with Served(config, {}) as served, ThreadPoolExecutor(2) as pool:
            yield {name: pool.submit(run, name, f"{served.url}v1") for name in NAMES}


def run(name: str, base: str) -> dict[str, Any]:
    """One loop in a process of its own."""
    command = [str(PYTHON), str(LOOPS), name, base]
    done = subprocess.run(command, env={**os.environ, **OFFLINE}, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_openai(ran: dict[str, Future[dict[str, Any]]]) -> None:
    found = ran["openai"].result()
    assert found.pop("city") in CITIES
    assert found.pop("parsed") in CITIES
    assert found.pop("after") in ("stop", "length")
    assert found == {"tool": "weather", "streamed": True, "responded": "response"}


def test_litellm(ran: dict[str, Future[dict[str, Any]]]) -> None:
    found = ran["litellm"].result()
    assert found.pop("city") in CITIES
    assert found == {"tool": "weather", "text": True}


def test_langchain(ran: dict[str, Future[dict[str, Any]]]) -> None:
    found = ran["langchain"].result()
    assert {found.pop("city"), found.pop("parsed")} <= set(CITIES)
    assert found == {"tool": "weather", "after": True, "streamed": True}


def test_llama_index(ran: dict[str, Future[dict[str, Any]]]) -> None:
    found = ran["llama-index"].result()
    assert found["said"] in [f"rain in {city}" for city in CITIES]
    assert found["streamed"]


def test_instructor(ran: dict[str, Future[dict[str, Any]]]) -> None:
    found = ran["instructor"].result()
    assert found.keys() == {"TOOLS", "JSON_SCHEMA"}
    assert set(found.values()) <= set(CITIES)


def test_pydantic_ai(ran: dict[str, Future[dict[str, Any]]]) -> None:
    found = ran["pydantic-ai"].result()
    assert found["city"] in CITIES
    assert found["requests"] == 1


def test_openai_agents(ran: dict[str, Future[dict[str, Any]]]) -> None:
    """Its loop asks for a call once, and lets the model answer afterwards."""
    found = ran["openai-agents"].result()
    assert found["answered"]
    assert found["called"]
    assert set(found["called"]) <= set(CITIES)


def test_lm_eval(ran: dict[str, Future[dict[str, Any]]]) -> None:
    answer = ran["lm-eval"].result()["answer"]
    assert answer
    assert ";" not in answer
