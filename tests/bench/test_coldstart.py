"""The clock of a cold start stops at the first text, and a contender that cannot take part is named with the reason."""

from __future__ import annotations

import importlib.util
import json
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from coldstream.bench.beside import Beside, run_beside
from coldstream.bench.coldstart import (
    FLOOR,
    Bench,
    ColdstartReport,
    Start,
    StartResult,
    StartWatch,
    run_coldstart_bench,
    time_start,
    watch_start,
)
from coldstream.bench.contenders import Contender, Skipped, coldstream, llama_server, ollama, transformers_serve, vllm
from coldstream.bench.shape import BucketShape
from coldstream.errors import ColdstreamError, ObjectNotFound, SettingsError

SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        self.send_response(503); self.end_headers()
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        Handler.asked += 1
        status = int(sys.argv[2]) if Handler.asked < 3 else int(sys.argv[3])
        self.send_response(status); self.end_headers()
        text = b'data: {"text": ""}\\n\\ndata: {"text": "Paris"}\\n\\n'
        self.wfile.write(text if status == 200 else b"no such field")
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def contender(first: int = 503, later: int = 200, code: str = SERVER) -> Contender:
    command = (sys.executable, "-c", code, "{port}", str(first), str(later))
    ours = coldstream("gs://bucket/model", environment={})
    return Contender("small", command, ours.path, ours.body, ours.token, "nothing", watched=True)


def test_a_start_without_the_packed_copy_is_a_contender_of_its_own() -> None:
    ours = coldstream("gs://bucket/model", environment={}, precision="int8", unpacked=True)
    assert ours.name == "coldstream, int8, unpacked"
    assert ours.command[-4:] == ("--precision", "int8", "--packed", "off")


def test_a_server_that_is_not_ready_is_asked_again_until_it_gives_text(tmp_path: Path) -> None:
    start = time_start(contender(), log=tmp_path / "log")
    assert start.port_open is not None
    assert 0 < start.port_open <= start.first_token
    assert start.peak_memory is not None


def test_a_watched_start_has_the_times_of_its_probes(tmp_path: Path) -> None:
    watch = watch_start(contender(), log=tmp_path / "log")
    assert watch.polls >= 1
    assert watch.first_answer > 0
    assert 0 <= watch.median <= watch.p99 <= watch.longest


def test_a_request_that_is_refused_for_good_is_an_error_with_the_servers_words(tmp_path: Path) -> None:
    with pytest.raises(ColdstreamError, match=r"small answered 422 .*no such field"):
        time_start(contender(503, 422), log=tmp_path / "log")


def test_a_contender_that_ends_is_an_error_with_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(ColdstreamError, match="small ended with code 3: out of luck"):
        time_start(contender(code="print('out of luck'); raise SystemExit(3)"), log=tmp_path / "log")


@pytest.mark.more
def test_coldstream_and_the_floor_are_measured_on_a_real_checkpoint(tmp_path: Path) -> None:
    model = str(files("coldstream.demo") / "sql_model")
    told = []
    report = run_coldstart_bench(
        model, runs=1, peers=False, precisions=["float32"], told=lambda name, start: told.append(name)
    )
    assert told == ["coldstream, float32", FLOOR]
    data = json.loads(json.dumps(report.as_json()))
    ours, floor = data["results"]
    assert ours["watch"]["polls"] >= 1
    assert ours["median"] > 0
    assert floor["of_floor"] == 1.0
    assert (data["page_cache"], data["shape"], data["skipped"]) == ("warm", None, [])
    ET.fromstring(report.as_svg())


@pytest.mark.more
def test_a_peer_that_ends_is_left_out_with_its_last_words(tmp_path: Path) -> None:
    broken = replace(contender(code="print('no CPU for me'); raise SystemExit(1)"), name="peer", watched=False)
    told: list[str] = []
    bench = Bench(tmp_path, "warm", None, lambda name, start: told.append(name))
    tokenizer = Path(str(files("coldstream.demo") / "sql_model" / "tokenizer.json"))
    results = bench.measure([contender(), broken], tokenizer, 1)
    assert [result.name for result in results] == told == ["small", FLOOR]
    (skipped,) = bench.failed
    assert skipped.name == "peer"
    assert "no CPU for me" in skipped.why


def test_a_precision_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SettingsError, match="int3"):
        run_coldstart_bench("/no/such/folder", precisions=["int3"])


def test_the_last_percent_of_the_polls_behind_the_first_answer_is_named() -> None:
    """What waited in the kernel until the server ran says when that was, not how the load was answered beside."""
    watch = StartWatch.of([(0.7, 0.6), (1.2, 0.5), *[(1.3, 0.001)] * 199])
    assert (watch.polls, watch.first_answer, watch.longest, watch.p99) == (201, 0.7, 0.5, 0.001)
    assert StartWatch.of([(0.7, 0.6)]).longest == 0.0


def test_the_tokens_of_the_first_model_are_counted_by_what_the_second_one_did_meanwhile() -> None:
    arrivals = [1.0 + 0.1 * number for number in range(20)] + [3.0 + 0.05 * number for number in range(40)]
    beside = Beside.of(arrivals, begin=1.0, ready=3.0, end=5.0)
    assert (beside.seconds, beside.during, beside.alone) == (2.0, 10.0, 20.0)
    assert beside.as_json()["slower"] == 0.5


@pytest.mark.more
def test_a_second_model_that_loads_too_soon_is_nothing_to_measure() -> None:
    with pytest.raises(ColdstreamError, match="--shape"):
        run_beside(str(files("coldstream.demo") / "sql_model"))


def test_a_checkpoint_that_is_not_there_is_the_stores_error() -> None:
    with pytest.raises(ObjectNotFound):
        run_coldstart_bench("/no/such/folder", runs=1, peers=False)


def test_a_shape_without_an_emulator_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    model = str(files("coldstream.demo") / "sql_model")
    with pytest.raises(SettingsError, match="STORAGE_EMULATOR_HOST"):
        run_coldstart_bench(model, runs=1, peers=False, shape=BucketShape(rate=1e9))


def test_peers_that_cannot_take_part_say_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for found in (vllm(tmp_path), ollama(None)):
        assert isinstance(found, Skipped)
        assert "on PATH" in found.why
    assert isinstance(vllm(tmp_path, tmp_path / "elsewhere" / "vllm"), Contender)
    assert isinstance(llama_server(None), Skipped)
    for name in ("vllm", "llama-server", "ollama"):
        (tmp_path / name).touch(mode=0o755)
    assert isinstance(vllm(tmp_path), Contender)
    assert isinstance(llama_server(Path("model.gguf")), Contender)
    assert isinstance(ollama("gemma3"), Contender)
    for lacking, option in ((llama_server(None), "--gguf"), (ollama(None), "--ollama-model")):
        assert isinstance(lacking, Skipped)
        assert option in lacking.why


def test_an_openai_stream_counts_from_its_first_content(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "llama-server").touch(mode=0o755)
    peer = llama_server(Path("model.gguf"))
    assert isinstance(peer, Contender)
    assert peer.token('data: {"choices": [{"delta": {"content": "Paris"}}]}\n')
    assert peer.token('data: {"choices": [{"text": "Paris"}]}')
    assert not peer.token('data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}')
    assert not peer.token("data: [DONE]")
    assert not peer.token(": a comment")


def test_transformers_takes_part_exactly_where_it_and_its_serving_parts_are_installed(tmp_path: Path) -> None:
    peer = transformers_serve(tmp_path)
    parts = ("transformers", "accelerate", "fastapi", "uvicorn", "openai")
    missing = [part for part in parts if importlib.util.find_spec(part) is None]
    assert isinstance(peer, Skipped) == bool(missing)
    assert not isinstance(peer, Skipped) or all(part in peer.why for part in missing)


def test_the_chart_has_a_bar_and_a_label_for_everybody() -> None:
    results = tuple(StartResult(name, "x", (Start(2.0), Start(3.0), Start(9.0))) for name in ("a<b", FLOOR))
    report = ColdstartReport("gs://b/m", 10**9, 3, "warm", None, results, ())
    texts = [item.text for item in ET.fromstring(report.as_svg()).iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("3.00 s") == 2
    assert "a<b" in texts
