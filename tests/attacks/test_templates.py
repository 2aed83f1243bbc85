"""Checkpoints whose chat templates do not end or fill the memory, when they are compiled or with some messages."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

import coldstream.demo
from coldstream.engine.tokenizer.templates_apart import LIMITS, TemplatesApart
from coldstream.errors import EngineError, ParameterMismatch, TokenizerError, TooCostly, UnsupportedConfig
from coldstream.workers.limits import Limits
from coldstream.workers.workers import Workers
from tests.support.serving import serving

MESSAGES = [{"role": "user", "content": "hi " * 2000}]
QUICK = Limits(seconds=0.5, memory=LIMITS.memory, output=LIMITS.output)
PLAIN = "{{ messages[0].content }}"

ENDLESS = {
    "loops over a text": "{% set s = 'a' * 99999 %}" + "{% for a in s %}" * 4 + "{% endfor %}" * 4,
    "lipsum": "{{ lipsum(n=100000000) }}",
    "a filter that is quadratic": "{{ range(900000) | slice(900000) | list | length }}",
    "wrapping": "{{ ('a ' * 4000000) | wordwrap(1) | length }}",
}
DOUBLING = "{%% set ns = namespace(s=%s) %%}{%% for i in range(60) %%}{%% set ns.s = ns.s %s ns.s %%}{%% endfor %%}"
LARGE = {
    "a width in a format": "{{ '%2000000000d' % messages | length }}",
    "center": "{{ messages[0].role.center(2000000000) }}",
    "center, folded": "{{ 'a' | center(2000000000) | center(2000000001) | length }}",
    "format": "{{ '{:>9000000000}'.format('a') }}",
    "zfill": "{{ '1'.zfill(9000000000) }}",
    "doubling texts": DOUBLING % ("'a'", "~"),
    "doubling lists": DOUBLING % ("[1]", "+"),
    "join": "{{ range(900000) | join('a' * 8000) }}",
    "indent": "{{ ('\n' * 1000000) | indent(100000, blank=true) }}",
    "indented JSON": "{{ range(900000) | list | tojson(indent=100000) | length }}",
    "replace": "{{ ('a' * 4000000) | replace('a', 'b' * 4000000) | length }}",
    "batch": "{{ [1] | batch(1000000000, 0) | list | length }}",
}
NOT_COMPILED = {
    "blocks": "{% if a %}" * 120 + "{% endif %}" * 120,
    "loops": "{% for a in b %}" * 60 + "{% endfor %}" * 60,
    "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
}


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    made = Workers()
    yield made
    made.close()


def render(workers: Workers, text: str, limits: Limits = QUICK) -> str:
    templates = TemplatesApart({"default": text}, source="gs://b/m", workers=workers, limits=limits)
    return templates.render(MESSAGES, add_generation_prompt=True, tools=None, special={}, variables={})


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_template_that_does_not_end_is_ended(workers: Workers, kind: str) -> None:
    with pytest.raises(TooCostly, match=r"takes more than 0.5 s") as caught:
        render(workers, ENDLESS[kind])
    assert caught.value.field == "messages"
    assert render(workers, PLAIN, LIMITS) == MESSAGES[0]["content"]


@pytest.mark.parametrize("kind", LARGE)
def test_a_template_that_fills_the_memory_does_not_get_it(workers: Workers, kind: str) -> None:
    with pytest.raises(TooCostly, match="takes more than 256 MiB of memory"):
        render(workers, LARGE[kind], LIMITS)
    assert render(workers, PLAIN, LIMITS) == MESSAGES[0]["content"]


@pytest.mark.parametrize("kind", NOT_COMPILED)
def test_a_template_that_python_cannot_compile_is_an_error_of_the_model(workers: Workers, kind: str) -> None:
    with pytest.raises(TokenizerError, match=r"gs://b/m: the chat template cannot be compiled"):
        render(workers, NOT_COMPILED[kind])


def test_a_template_that_is_refused_while_it_compiles_names_the_model(workers: Workers) -> None:
    none = Limits(seconds=0.001, memory=1, output=LIMITS.output)
    with pytest.raises(TokenizerError, match=r"gs://b/m: the model's chat template takes more than .* to compile"):
        render(workers, "{% set a = 1 %}" * 20_000, none)


async def test_conversations_that_end_are_answered_beside_one_that_does_not() -> None:
    workers, slow = Workers(), Limits(seconds=30.0, memory=LIMITS.memory, output=LIMITS.output)
    held = asyncio.create_task(asyncio.to_thread(render, workers, ENDLESS["loops over a text"], slow))
    for _ in range(20):
        assert await asyncio.to_thread(render, workers, PLAIN, LIMITS) == MESSAGES[0]["content"]
    assert not held.done()
    await asyncio.to_thread(workers.close)
    with pytest.raises(EngineError, match="shutting down"):
        await held


def copied(folder: Path) -> Path:
    """The demo's smallest model, to be changed."""
    return Path(shutil.copytree(Path(coldstream.demo.__file__).parent / "sql_model", folder / "model"))


@pytest.mark.more
def test_a_start_with_a_template_that_does_not_end_hears_sigterm(tmp_path: Path) -> None:
    """It is compiled, and tried, before the model answers."""
    model = copied(tmp_path)
    (model / "chat_template.jinja").write_text(ENDLESS["loops over a text"])
    with serving(model, "-q", ready=False) as server:
        server.wait_until(lambda: server.works_at("Templates"))
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0


@pytest.mark.more
def test_a_start_with_a_template_that_does_not_end_fails_by_its_name(tmp_path: Path) -> None:
    model = copied(tmp_path)
    (model / "chat_template.jinja").write_text(ENDLESS["loops over a text"])
    with serving(model, "-q", ready=False) as server:
        assert "chat template takes more than 3 s" in server.said()
        assert server.process.wait(60) == TokenizerError.exit_code


@pytest.mark.more
def test_a_config_of_more_layers_than_there_are_tensors_is_refused_at_once(tmp_path: Path) -> None:
    model = copied(tmp_path)
    config = json.loads((model / "config.json").read_text())
    for architecture in (config["architectures"], ["GPT2LMHeadModel"]):
        config |= {"num_hidden_layers": 30_000_000, "architectures": architecture}
        (model / "config.json").write_text(json.dumps(config))
        with serving(model, "-q", ready=False) as server:
            assert "num_hidden_layers" in server.said()
            assert server.process.wait(60) in (ParameterMismatch.exit_code, UnsupportedConfig.exit_code)


@pytest.mark.more
def test_a_model_whose_template_does_not_end_for_some_messages_answers_all_others(tmp_path: Path) -> None:
    model = copied(tmp_path)
    written = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text(
        "{% if messages[0].content | length > 1000 %}" + ENDLESS["loops over a text"] + "{% endif %}" + written
    )
    with serving(model, "-q") as server:
        asked = {"model": server.model, "messages": MESSAGES, "max_tokens": 1}
        refused = httpx2.post(f"{server.url}/v1/chat/completions", json=asked, timeout=60)
        assert refused.status_code == 400
        assert "chat template takes more than 3 s" in refused.json()["error"]["message"]
        asked["messages"] = [{"role": "user", "content": "hi"}]
        assert httpx2.post(f"{server.url}/v1/chat/completions", json=asked, timeout=60).is_success
        assert httpx2.post(f"{server.url}/generate", json={"prompt": "x", "max_tokens": 1}, timeout=60).is_success
        assert 'coldstream_worker_deaths_total{work="Templates"}' in httpx2.get(f"{server.url}/metrics").text
