"""`coldstream.LLM`: a checkpoint answers in this process as transformers does; what cannot be followed is refused."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic
import pytest

import coldstream
from coldstream.engine.tokenizer import process
from coldstream.errors import (
    CheckpointError,
    EngineError,
    InvalidRequest,
    LocationError,
    PromptTooLong,
    SettingsError,
    StoreError,
)
from coldstream.progress_line import ProgressLine, duration
from tests.engine.vision.test_encoder import backend
from tests.support import processes
from tests.support.loads import apart, said, write
from tests.support.tiny import Tiny
from tests.support.tiny_vision import gemma3_vision

SMALL: dict[str, Any] = {"kv_bytes": 4_000_000, "threads": 1, "precision": "float32", "device": "cpu"}


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return gemma3_vision()


@pytest.fixture(scope="module")
def folder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    write(made, tiny, apart)
    return made


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[coldstream.LLM]:
    with coldstream.LLM(str(folder), max_context=64, max_sequences=4, **SMALL) as made:
        yield made


@pytest.fixture(scope="module")
def spelling(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[coldstream.LLM]:
    """The same with a byte-level tokenizer, which a grammar needs."""
    made = tmp_path_factory.mktemp("spelling")
    write(made, tiny, apart)
    content = json.loads(backend().to_str()) | {"pre_tokenizer": BYTES, "decoder": BYTES}
    (made / "tokenizer.json").write_text(json.dumps(content))
    with coldstream.LLM(str(made), **SMALL) as opened:
        yield opened


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def test_it_continues_a_text_as_transformers_does(llm: coldstream.LLM, tiny: Tiny) -> None:
    answer = llm.generate("<bos>hello", max_tokens=6)
    assert (str(answer), answer.text) == (said(tiny, "hello", 6), said(tiny, "hello", 6))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (6, len(answer.token_ids))
    assert answer.finish_reason in ("stop", "length")


def test_a_conversation_goes_through_the_chat_template_in_every_form_of_content(
    llm: coldstream.LLM, tiny: Tiny
) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}]
    talks = [[{"role": "user", "content": "hello"}], parts]
    assert [answer.text for answer in llm.chat(talks, max_tokens=6)] == [said(tiny, "hello", 6)] * 2
    assert llm.chat(parts, max_tokens=6).text == said(tiny, "hello", 6)


def test_without_max_tokens_a_conversation_fills_the_context(llm: coldstream.LLM) -> None:
    answer = llm.chat([{"role": "user", "content": "hello"}], ignore_eos=True)
    assert answer.usage.prompt_tokens + len(answer.token_ids) == llm.max_context


def test_hundreds_of_prompts_are_answered_in_their_order(llm: coldstream.LLM, tiny: Tiny) -> None:
    words = [first + second for first in "abcdefghijklmnopqrst" for second in "abcdefghijklmno"]
    answers = llm.generate([f"<bos>{word}" for word in words], max_tokens=2)
    assert len(answers) == len(words)
    assert all(answers[place].text == said(tiny, words[place], 2) for place in range(0, len(words), 37))
    assert llm.generate([]) == []


async def test_it_streams_also_where_an_event_loop_runs_as_in_a_notebook(llm: coldstream.LLM, tiny: Tiny) -> None:
    assert "".join(llm.stream("<bos>hello", max_tokens=6)) == said(tiny, "hello", 6)
    talk = [{"role": "user", "content": "hello"}]
    assert "".join(llm.stream(talk, max_tokens=6)) == said(tiny, "hello", 6)
    reading = llm.stream("<bos>hello", ignore_eos=True)
    next(reading)
    reading.close()
    assert llm.generate("<bos>hello", max_tokens=6).text == said(tiny, "hello", 6)


class Truth(pydantic.RootModel[bool]):
    """What one may be asked for."""


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("choice", ["yes", "no"], {"yes", "no"}),
        ("regex", "a|bb|ccc", {"a", "bb", "ccc"}),
        ("json_schema", {"type": "boolean"}, {"true", "false"}),
        ("json_schema", Truth, {"true", "false"}),
        ("grammar", 'start: "aa" | "b"', {"aa", "b"}),
    ],
)
def test_an_answer_obeys_what_was_asked(spelling: coldstream.LLM, option: str, value: Any, allowed: set[str]) -> None:
    answers = spelling.generate(["<bos>a", "<bos>b"], temperature=1.0, seed=1, **{option: value})  # type: ignore[misc]
    assert {answer.text.strip() for answer in answers} <= allowed


def test_logprobs_are_those_of_the_tokens(llm: coldstream.LLM) -> None:
    answer = llm.generate("<bos>hello", max_tokens=3, logprobs=2)
    assert [score.token_id for score in answer.logprobs] == list(answer.token_ids)
    assert all(len(score.top) == 2 for score in answer.logprobs)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_token": 1}, "max_token is unknown"),
        ({"n": 2}, "n is unknown"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"stop": [1]}, "stop"),
        ({"stop_token_ids": 3}, "stop_token_ids"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"json_schema": "{}"}, "json_schema"),
        ({"json_schema": {"enum": [{1}]}}, "json_schema"),
        ({"regex": "(", "choice": None}, "regex"),
        ({"regex": "a", "choice": ["a"]}, "exclude each other"),
        ({"regex": "a", "ignore_eos": True}, "ignore_eos"),
    ],
)
def test_an_option_that_cannot_be_followed_is_refused_by_name(
    llm: coldstream.LLM, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidRequest, match=named):
        llm.generate("<bos>a", **options)
    with pytest.raises(InvalidRequest, match=named):
        llm.stream("<bos>a", **options)


@pytest.mark.parametrize(
    ("messages", "named"),
    [
        ([], "empty"),
        ("hello", "list of dicts"),
        ([{"role": "robot", "content": "a"}], r"messages\[0\].role"),
        ([{"role": "user", "content": None}], r"messages\[0\].content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "pictures"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": []}], "tool_calls"),
        (
            [[{"role": "user", "content": "a"}], [{"role": "tool", "content": "a"}]],
            r"messages\[1\]: messages\[0\].role",
        ),
    ],
)
def test_messages_that_cannot_be_read_are_refused_by_place(llm: coldstream.LLM, messages: Any, named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        llm.chat(messages)


def test_a_prompt_without_room_is_named_before_anything_is_computed(llm: coldstream.LLM) -> None:
    with pytest.raises(PromptTooLong, match=r"prompt 1 has \d+ tokens"):
        llm.generate(["<bos>a", "a" * llm.max_context])
    with pytest.raises(InvalidRequest, match="no tokens"):
        llm.generate(["<bos>a", ""])
    with pytest.raises(InvalidRequest, match=r"prompts\[1\]"):
        llm.generate(["a", 3])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"precison": "int8"}, SettingsError, "precison is unknown"),
        ({"precision": "int7"}, SettingsError, "precision"),
        ({"max_sequences": 0}, SettingsError, "max_sequences"),
        ({"name": "x"}, SettingsError, "name is unknown"),
    ],
)
def test_settings_are_those_of_the_file_and_refused_as_there(
    folder: Path, options: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        coldstream.LLM(str(folder), **options)


def test_what_cannot_be_loaded_is_an_error_that_leaves_nothing_behind(tmp_path: Path) -> None:
    before = set(processes.children(os.getpid()))
    with pytest.raises((StoreError, LocationError, CheckpointError)):
        coldstream.LLM(str(tmp_path), **SMALL)
    assert not processes.left([pid for pid in processes.children(os.getpid()) if pid not in before])


def test_a_closed_one_says_so_and_has_ended_its_processes(folder: Path) -> None:
    before = set(processes.children(os.getpid()))
    with coldstream.LLM(str(folder), **SMALL) as made:
        reading = made.stream("<bos>a", ignore_eos=True)
        next(reading)
        mine = [pid for pid in processes.children(os.getpid()) if pid not in before]
        assert any(process.__name__ in processes.command(pid) for pid in mine)
    with pytest.raises(EngineError):
        list(reading)
    with pytest.raises(EngineError, match="closed"):
        made.generate("<bos>a")
    made.close()
    assert not processes.left(mine)


def test_progress_is_one_line_that_tells_of_the_load_and_the_batch(folder: Path) -> None:
    code = (
        f"import coldstream\nwith coldstream.LLM({str(folder)!r}, progress=True, **{SMALL!r}) as llm:\n"
        "    llm.generate(['<bos>a', '<bos>b', '<bos>c'], max_tokens=2)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=110, check=True)
    load, batch = (line.rsplit("\r", 1)[-1] for line in ran.stderr.decode().split("\n") if line)
    assert "100%" in load
    assert "ready" in load
    assert batch.startswith("3 of 3 prompts")
    assert ran.stdout == b""


def test_a_line_is_drawn_over_and_not_more_often_than_is_seen() -> None:
    stream, times = io.StringIO(), iter([0.0, 0.01, 1.0])
    line = ProgressLine(wanted=True, stream=stream, clock=lambda: next(times))
    for text in ("first one", "unseen", "2"):
        line.show(lambda text=text: text)  # type: ignore[misc]
    line.end("end")
    assert stream.getvalue() == "\rfirst one\r2        \rend\n"
    quiet = io.StringIO()
    ProgressLine(stream=quiet).end("no terminal, no notebook")
    assert quiet.getvalue() == ""
    assert [duration(seconds) for seconds in (7, 760, 3723)] == ["0:07", "12:40", "1:02:03"]
