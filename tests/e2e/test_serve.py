"""The whole way: a real server process, a real bucket, a real model that was trained to answer exactly."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

import coldstream.demo
from coldstream import errors
from coldstream.bench.shape import BucketShape, ShapedProxy
from coldstream.demo.bucket import LocalBucket
from coldstream.demo.sql_pairs import sql_pairs
from tests.support import processes
from tests.support.serving import Served, serving

pytestmark = pytest.mark.more
DEMO = Path(coldstream.demo.__file__).parent
PAIR = sql_pairs()[0]
ASK = {"type": "sql", "inputs": {"context": PAIR.context, "question": PAIR.question}}


@pytest.fixture(scope="module")
def bucket() -> Iterator[LocalBucket]:
    with LocalBucket() as local:
        local.add("models", "sql", DEMO / "sql_model")
        yield local


def config(tmp_path: Path, *, extra: str = "", server: str = "") -> Path:
    """The demo's sql task on our bucket's model, and whatever else a test wants."""
    text = (DEMO / "coldstream.toml").read_text(encoding="utf-8")
    sql = text[text.index("[tasks.sql]") : text.index("[tasks.product]")]
    file = tmp_path / "coldstream.toml"
    file.write_text(f'[server]\n{server}\n[models.sql]\nuri = "gs://models/sql"\n{extra}\n{sql}', encoding="utf-8")
    return file


def states(server: Served) -> list[dict[str, Any]]:
    """Every state of the start, from the first that can be had to the last."""
    server.get("/healthz")
    with httpx2.stream("GET", f"{server.url}/startup", headers={"accept": "text/event-stream"}, timeout=60) as reply:
        lines = [line.removeprefix("data: ") for line in reply.iter_lines()]
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_a_request_sent_at_once_is_answered_exactly_and_the_start_can_be_seen(
    bucket: LocalBucket, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.json"
    arguments = ("--config", str(config(tmp_path)), "--timeline", str(trace))
    with serving(*arguments, ready=False, environment=bucket.environment) as server:
        assert server.get("/healthz").json() == {"status": "ok"}
        answer = httpx2.post(f"{server.url}/generate", json=ASK, timeout=60)
        assert answer.json() == PAIR.answer
        endless = {"model": "sql", "prompt": PAIR.context, "max_tokens": 60, "temperature": 0, "ignore_eos": True}
        usage = httpx2.post(f"{server.url}/v1/completions", json=endless, timeout=60).json()["usage"]
        assert usage["completion_tokens"] == 60
        ready = server.get("/readyz")
        assert (ready.status_code, ready.json()["models"]["sql"]["unverified"]) == (200, [])
        names = {span["name"] for span in server.get("/startup").json()["timeline"]}
        expected = {
            "listing",
            "headers",
            "range",
            "tokenizer",
            "port open",
            "first token",
            "first prefill",
        }
        assert expected <= names
        assert b"first token" in server.get("/startup.svg").content
        assert "Z" not in map(processes.state, server.children()), "a process that ended is still listed"
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
    assert {"first token", "first prefill"} <= {event["name"] for event in json.loads(trace.read_text())["traceEvents"]}


def test_the_load_is_seen_to_move_and_the_first_answer_does_not_wait_for_the_last_byte_to_be_asked_for(
    bucket: LocalBucket, tmp_path: Path
) -> None:
    asked = threading.Event()

    def pause(seconds: float) -> None:
        asked.wait()  # not a byte before the server was seen loading, however late it answers
        time.sleep(seconds)

    with ShapedProxy("127.0.0.1", bucket.port, BucketShape(rate=1e6), sleep=pause) as slow:
        environment = {"STORAGE_EMULATOR_HOST": slow.url}
        with serving("--config", str(config(tmp_path)), ready=False, environment=environment) as server:
            server.get("/healthz")
            answers: list[Any] = []
            asker = threading.Thread(
                target=lambda: answers.append(httpx2.post(f"{server.url}/generate", json=ASK, timeout=60).json())
            )
            asker.start()
            early = server.get("/readyz")
            assert (early.status_code, early.json()["status"]) == (503, "loading")
            assert int(early.headers["retry-after"]) >= 1
            asked.set()
            seen = states(server)
            asker.join()
    landed = [state["bytes"] for state in seen]
    assert landed == sorted(landed)
    assert len(set(landed)) >= 3
    assert seen[-1]["status"] == "ready"
    assert answers == [PAIR.answer]


def test_a_model_that_fails_is_named_and_the_healthy_one_serves(bucket: LocalBucket, tmp_path: Path) -> None:
    extra = '[models.gone]\nuri = "gs://models/gone"\n[tasks.other]\nmodel = "gone"\n'
    with serving("--config", str(config(tmp_path, extra=extra)), ready=False, environment=bucket.environment) as server:
        assert states(server)[-1]["status"] == "degraded"
        ready = server.get("/readyz")
        assert ready.status_code == 200
        assert "gs://models/gone" in ready.json()["models"]["gone"]["error"]["message"]
        assert httpx2.post(f"{server.url}/generate", json=ASK, timeout=60).json() == PAIR.answer
        refused = httpx2.post(f"{server.url}/generate", json={"type": "other", "prompt": "x"}, timeout=60)
        assert refused.status_code == 503
        assert "gs://models/gone" in refused.text
        assert server.process.poll() is None


def test_a_corrupt_layer_is_never_answered_from(bucket: LocalBucket, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in (DEMO / "sql_model").iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    bucket.add("models", "broken", broken)
    name = "model-00002-of-00002.safetensors"
    (stored,) = bucket.folder.rglob(f"broken/{name}")
    data = bytearray(stored.read_bytes())
    data[-5] ^= 0xFF
    with stored.open("r+b") as opened:  # the bytes change, the checksum that the store publishes does not
        opened.write(data)
    file = config(tmp_path)
    file.write_text(file.read_text().replace("gs://models/sql", "gs://models/broken"))
    with serving("--config", str(file), ready=False, environment=bucket.environment) as server:
        replies = []
        try:
            server.get("/healthz")
            replies.append(httpx2.post(f"{server.url}/generate", json=ASK, timeout=60).status_code)
        except httpx2.TransportError:
            pass  # the process may end before it answers
        assert server.process.wait(60) == errors.ChecksumMismatch.exit_code
        assert name in server.said()
    assert 200 not in replies


def test_where_verification_is_required_a_store_without_checksums_is_refused(tmp_path: Path) -> None:
    file = config(tmp_path, extra='[load]\nverify = "required"')
    file.write_text(file.read_text().replace("gs://models/sql", str(DEMO / "sql_model")))
    with serving("--config", str(file), ready=False, environment={}) as server:
        assert server.process.wait(60) == errors.BadResponse.exit_code
        assert "cannot be verified" in server.said()


def test_the_key_is_asked_for_everywhere_but_by_the_probes(bucket: LocalBucket, tmp_path: Path) -> None:
    file = config(tmp_path, server='api_keys_env = "KEYS"')
    with serving("--config", str(file), ready=False, environment=bucket.environment | {"KEYS": "one,two"}) as server:
        assert server.get("/healthz").status_code == 200
        for path in ("/startup", "/startup.svg", "/v1/models", "/v1/tasks", "/metrics"):
            assert httpx2.get(f"{server.url}{path}", timeout=60).status_code == 401, path
        assert httpx2.post(f"{server.url}/generate", json=ASK, timeout=60).status_code == 401
        allowed = httpx2.post(f"{server.url}/generate", json=ASK, headers={"authorization": "Bearer two"}, timeout=60)
        assert allowed.json() == PAIR.answer
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(30)
        assert "two" not in server.said()


def test_ending_while_it_loads_leaves_no_process_behind(bucket: LocalBucket, tmp_path: Path) -> None:
    with ShapedProxy("127.0.0.1", bucket.port, BucketShape(rate=2e5)) as slow:
        environment = {"STORAGE_EMULATOR_HOST": slow.url}
        with serving("--config", str(config(tmp_path)), ready=False, environment=environment) as server:
            server.get("/healthz")
            server.wait_until(lambda: bool(server.children()))
            children = server.children()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(30) == 0
            assert not processes.left(children)
