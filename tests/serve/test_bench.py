"""`bench serve`: the load, the figures made of it, and the servers it starts."""

from __future__ import annotations

import asyncio
import itertools
import math
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from coldstream.bench.serve import Contestant, Load, Run, ServeReport, run_serve_bench
from coldstream.bench.serve_load import (
    Endpoint,
    TimedAnswer,
    beside,
    closed_loop,
    open_loop,
    percentiles,
    prompts,
    summarize,
)
from coldstream.bench.serve_peers import SERVERS, PeerPlan, PeerServer, running, server
from coldstream.bench.served_quality import ServedQuality
from coldstream.errors import SettingsError
from coldstream.serve.middleware.auth import ApiKeys
from coldstream.settings import load as load_settings
from tests.support.scripted import ScriptedModel


@pytest.mark.parametrize("api", ["completions", "chat"])
async def test_a_closed_loop_counts_every_token_and_keeps_to_its_clients(serve, engine, api) -> None:
    used = engine("hello")
    served = await serve(ScriptedModel(used), keys=ApiKeys.of("k"))
    endpoint = Endpoint(f"{served.url}/v1", "default", api, key="k", extra={"ignore_eos": True})
    answers = await closed_loop(endpoint, prompts(7, words=5, seed=1), max_tokens=3, clients=2)
    assert [answer.error for answer in answers] == [None] * 7
    summary = summarize(answers)
    assert (summary.requests, summary.errors, summary.tokens) == (7, 0, 21)
    assert all(request.sampling.ignore_eos and request.sampling.temperature == 0 for request in used.submitted)
    assert "Bearer k" not in repr(endpoint)


async def test_an_open_loop_does_not_wait_for_answers(serve, engine) -> None:
    stuck = engine("ab", manual=True)
    served = await serve(ScriptedModel(stuck))
    load = open_loop(
        Endpoint(f"{served.url}/v1", "default"), prompts(5, words=3, seed=1), max_tokens=2, rate=1e4, seed=1
    )
    running_load = asyncio.create_task(load)
    await asyncio.to_thread(stuck.wait_until, lambda: len(stuck.submitted) == 5)
    await asyncio.to_thread(stuck.step, 2)
    assert summarize(await running_load).tokens == 10


async def test_short_prompts_come_while_all_the_others_are_being_answered(serve, engine) -> None:
    used = engine("hello")
    served = await serve(ScriptedModel(used))
    asked = prompts(4, words=3, seed=1)
    others = [f"other {number}" for number in range(3)]
    answers = await beside(Endpoint(f"{served.url}/v1", "default"), asked, others=others, max_tokens=9, seed=0)
    assert [(answer.error, answer.tokens) for answer in answers] == [(None, 1)] * 4
    first = [request.sampling.max_tokens for request in used.submitted].index(1)
    assert [request.sampling.max_tokens for request in used.submitted[:3]] == [9] * 3
    assert first >= 3, "before all others had begun"


async def test_others_that_cannot_be_answered_keep_nobody_waiting(serve, engine) -> None:
    served = await serve(ScriptedModel(engine("hello")))
    answers = await beside(Endpoint(f"{served.url}/v1", "gpt-4"), ["a"], others=["b"], max_tokens=9, seed=0)
    assert "HTTP 404" in str(answers[0].error)


async def test_what_goes_wrong_is_counted_and_quoted(serve, engine) -> None:
    served = await serve(ScriptedModel(engine(lambda request: ["a", "<error>"])))
    ours = Endpoint(f"{served.url}/v1", "default")
    wrong = Endpoint(f"{served.url}/v1", "gpt-4")
    nobody = Endpoint("http://127.0.0.1:9/v1", "x")
    for endpoint, says in [(ours, "the script says so"), (wrong, "HTTP 404"), (nobody, "ConnectError")]:
        summary = summarize(await closed_loop(endpoint, ["x"], max_tokens=5, clients=1))
        assert (summary.errors, summary.tokens) == (1, 0)
        assert says in summary.first_error


async def test_an_answer_of_another_length_than_was_asked_for_is_no_figure(serve, engine) -> None:
    served = await serve(ScriptedModel(engine("hello")))
    ours = Endpoint(f"{served.url}/v1", "default")
    summary = summarize(await closed_loop(ours, ["x"], max_tokens=6, clients=1))
    assert (summary.errors, summary.tokens) == (1, 0)
    assert "5 tokens instead of 6" in summary.first_error


def test_the_figures_are_those_of_the_arrivals() -> None:
    one = TimedAnswer(begin=0.0, end=4.0, arrivals=(1.0, 2.0, 4.0), tokens=3, prompt_tokens=7)
    two = TimedAnswer(begin=1.0, end=5.0, arrivals=(4.0, 5.0), tokens=2, prompt_tokens=7)
    bad = TimedAnswer(begin=0.0, end=1.0, error="no")
    summary = summarize([one, two, bad])
    assert (summary.seconds, summary.tokens_per_second, summary.requests_per_second) == (5.0, 1.0, 0.4)
    assert (summary.first_token.p50, summary.inter_token.p50, summary.whole.p50) == (2.0, 1.0, 4.0)
    assert summary.errors == 1
    assert math.isnan(summarize([bad]).first_token.p50)
    assert summarize([]).requests == 0


def test_percentiles_lie_where_they_belong() -> None:
    found = percentiles([float(item) for item in range(101)])
    assert (found.p50, found.p90, found.p99) == (50.0, 90.0, 99.0)


def test_no_two_prompts_share_a_beginning_and_the_same_seed_gives_the_same() -> None:
    made = prompts(50, words=20, seed=3)
    assert len({prompt[:3] for prompt in made}) == 50
    assert made == prompts(50, words=20, seed=3) != prompts(50, words=20, seed=4)


STUB = """
import http.server, sys
class TimedAnswer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'{"data": [{"id": "m"}]}')
    def log_message(self, *args): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), TimedAnswer).serve_forever()
"""


def test_a_server_is_started_waited_for_and_ended() -> None:
    stub = PeerServer("stub", (sys.executable, "-c", STUB, "{port}"))
    with running(stub, api="chat") as endpoint:
        assert (endpoint.model, endpoint.path.endswith("/v1/chat/completions")) == ("m", True)
    answers = asyncio.run(closed_loop(endpoint, ["x"], max_tokens=1, clients=1))
    assert "ConnectError" in answers[0].error


def test_a_server_that_ends_before_it_is_ready_says_its_last_words() -> None:
    broken = PeerServer("broken", (sys.executable, "-c", "raise SystemExit('out of paper')", "{port}"))
    with (
        pytest.raises(SettingsError, match="broken ended before it was ready: out of paper"),
        running(broken, api="chat"),
    ):
        pass


@pytest.mark.parametrize(("kind", "module"), [("openvino", "openvino"), ("ik_llama.cpp", "ik_llama_cpp")])
def test_a_peer_in_a_python_without_it_says_what_is_missing(kind: str, module: str) -> None:
    """Our module runs there, which a Python of its own would find too, and the peer's is what it lacks."""
    plan = PeerPlan(1, 64, 1, pythons={kind: sys.executable})
    with (
        pytest.raises(SettingsError, match=f"No module named '{module}'"),
        running(server(kind, "/models/m", plan), api="completions"),
    ):
        pass


def test_every_peer_gets_its_own_port_and_model() -> None:
    for name in SERVERS:
        made = server(name, "/models/m", PeerPlan(sequences=8, context=512, threads=2))
        assert any("{port}" in part for part in made.command)
        assert "/models/m" in made.command
    plan = PeerPlan(1, 64, 2, pythons={"openvino": "/elsewhere/python"})
    made = server("openvino:int4", "/models/m", plan)
    assert (made.name, made.command[0], made.needs) == ("openvino int4", "/elsewhere/python", None)
    with pytest.raises(SettingsError, match="known here: coldstream"):
        server("nobody", "m", PeerPlan(1, 1, 1))


def test_our_server_on_vllm_gets_the_limits_that_vllm_gets(tmp_path: Path) -> None:
    plan = PeerPlan(sequences=8, context=512, threads=2, engine="vllm", vllm_args=("--enforce-eager", '--x "\n"'))
    ours, theirs = server("coldstream", "gs://bucket/m \u00fc", plan), server("vllm", "m", plan)
    file = tmp_path / "coldstream.toml"
    file.write_text(ours.config, encoding="utf-8")
    read = load_settings(file, environ={})
    model = read.models["default"]
    assert (model.uri, model.engine, model.vllm_args) == ("gs://bucket/m \u00fc", "vllm", plan.vllm_args)
    limits = {
        "--max-model-len": model.max_context,
        "--max-num-seqs": read.engine.max_sequences,
        "--kv-cache-memory-bytes": read.engine.kv_bytes,
    }
    given = dict(itertools.pairwise(theirs.command))
    assert {name: given[name] for name in limits} == {name: str(value) for name, value in limits.items()}
    assert theirs.command[-2:] == plan.vllm_args
    assert "{config}" in ours.command


async def test_the_report_has_a_line_and_a_bar_for_every_run(serve, engine) -> None:
    served = await serve(ScriptedModel(engine("hello")))
    load = Load(clients=(1, 2), rates=(50.0,), requests_per_client=2, max_tokens=4, seconds=0.1)
    endpoints = {"ours": Endpoint(f"{served.url}/v1", "default"), "<other>": Endpoint(f"{served.url}/v1", "nope")}
    report = await asyncio.to_thread(run_serve_bench, {}, load=load, endpoints=endpoints)
    assert [(run.server, run.load) for run in report.runs][:3] == [
        ("ours", "1 client"),
        ("ours", "2 clients"),
        ("ours", "50/s"),
    ]
    assert report.runs[1].summary.tokens == 16
    assert sum("HTTP 404" in line for line in report.table()) == 3
    picture = ET.fromstring(report.svg())
    assert "<other>" in {text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert report.as_json()["runs"][0]["summary"]["tokens"] == 8


def test_who_is_left_out_is_named_with_the_reason() -> None:
    report = ServeReport("m", Load(), (Run("ours", "1 client", summarize([])),), {"vllm": "not installed"})
    assert report.table()[-1] == "vllm: left out, not installed"


def test_quality_stands_beside_the_speed() -> None:
    run = Run("ours", "1 client", summarize([TimedAnswer(begin=0.0, end=2.0, arrivals=(1.0, 2.0), tokens=2)]))
    known = Contestant("ours", "gs://b/m", "", "as it comes", ServedQuality(96, 0.0043, 0.974))
    not_known = Contestant(
        "other", "x.gguf", "GGUF, 3 tensors Q8_0", "8 slots", no_quality="no log probabilities: HTTP 400"
    )
    report = ServeReport("m", Load(), (run,), {}, (known, not_known))
    lines = report.table()
    assert "other: x.gguf, GGUF, 3 tensors Q8_0, 8 slots" in lines
    assert any("KL to float32 0.0043 nats" in line and "96 positions" in line for line in lines)
    assert lines[-1].endswith("no log probabilities: HTTP 400")
    assert "1.0, KL 0.0043" in report.svg()
