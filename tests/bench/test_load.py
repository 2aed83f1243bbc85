"""Every contender really loads a small checkpoint from a real bucket, over TLS and without."""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coldstream.bench.load import LoadBench, Round, _order, check_contenders, contenders_for, run_load_bench
from coldstream.bench.load_child import runai_name
from coldstream.bench.load_tls import Certificate, make_certificate
from coldstream.demo.bucket import LocalBucket
from coldstream.errors import SettingsError
from coldstream.weights.checkpoint.uri import Location
from tests.support import files

TENSORS = {f"model.layers.{n}.w": ("BF16", (64, 64), bytes(range(256)) * 32) for n in range(12)}
SIZE = sum(len(data) for _, _, data in TENSORS.values())
NEEDS_RUNAI = pytest.mark.skipif(
    importlib.util.find_spec("runai_model_streamer") is None, reason="Run:ai's streamer is not installed"
)
NEEDS_CURL = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def bucket(certificate: Certificate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBucket]:
    folder = tmp_path_factory.mktemp("model")
    for name, data in files.checkpoint(TENSORS, shards=2).items():
        (folder / name).write_bytes(data)
    with LocalBucket(certificate=(certificate.server, certificate.key)) as bucket:
        bucket.add("models", "small", folder)
        yield bucket


@pytest.mark.more
def test_over_tls_every_contender_trusts_the_throw_away_authority(
    bucket: LocalBucket, certificate: Certificate
) -> None:
    seen: list[Round] = []
    environment = {"STORAGE_EMULATOR_HOST": bucket.secure_url, **certificate.environment}
    report = run_load_bench(
        "gs://models/small",
        rounds=1,
        contenders=("coldstream", "transfer manager"),
        environment=environment,
        rest=0,
        report=seen.append,
    )
    assert [(item.contender, item.error) for item in report.rounds] == [
        ("coldstream", None),
        ("transfer manager", None),
    ]
    assert list(report.rounds) == seen
    assert report.rounds[0].bytes == report.rounds[1].bytes == SIZE
    assert all(item.seconds > 0 and item.cpu_seconds > 0 for item in seen)
    assert report.rounds[1].peak_bytes >= SIZE  # its copy is in shared memory, and counted


def test_the_same_bucket_answers_without_tls(bucket: LocalBucket) -> None:
    report = run_load_bench(
        "gs://models/small", rounds=1, contenders=("coldstream",), environment=bucket.environment, rest=0
    )
    assert [(item.bytes, item.error) for item in report.rounds] == [(SIZE, None)]


@pytest.mark.more
@NEEDS_CURL
def test_curl_trusts_the_throw_away_authority_too(bucket: LocalBucket, certificate: Certificate) -> None:
    environment = {"STORAGE_EMULATOR_HOST": bucket.secure_url, **certificate.environment}
    report = run_load_bench("gs://models/small", rounds=1, contenders=("curl drain",), environment=environment, rest=0)
    assert [(item.contender, item.error) for item in report.rounds] == [("curl drain", None)]


def test_runai_is_told_of_a_file_by_its_plain_path() -> None:
    assert runai_name(Location.parse("/some/folder/a.safetensors")) == "/some/folder/a.safetensors"
    assert runai_name(Location.parse("gs://bucket/m/a.safetensors")) == "gs://bucket/m/a.safetensors"


@pytest.mark.more
@pytest.mark.skipif(
    importlib.util.find_spec("runai_model_streamer") is None, reason="Run:ai's streamer is not installed"
)
def test_runai_reads_a_folder(tmp_path: Path) -> None:
    for name, data in files.checkpoint(TENSORS, shards=2).items():
        (tmp_path / name).write_bytes(data)
    report = run_load_bench(str(tmp_path), rounds=1, contenders=("runai streamer x4",), rest=0)
    assert [(item.bytes, item.error) for item in report.rounds] == [(SIZE, None)]


@pytest.mark.more
def test_a_contender_that_fails_says_why(tmp_path: Path) -> None:
    report = run_load_bench(str(tmp_path), rounds=1, contenders=("coldstream",), rest=0)
    assert "the folder is empty" in str(report.summaries[0].error)
    assert report.summaries[0].rounds == 0


@pytest.mark.more
def test_the_command_fills_a_bucket_and_prints_a_row(tmp_path: Path) -> None:
    for name, data in files.checkpoint(TENSORS).items():
        (tmp_path / name).write_bytes(data)
    command = [sys.executable, "-m", "coldstream", "bench", "load", str(tmp_path), "--bucket", "https"]
    command += ["--runs", "1", "--only", "coldstream", "--touch-memory", "--json"]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    report = json.loads(done.stdout)
    assert [(item["contender"], item["error"]) for item in report["summaries"]] == [("coldstream", None)]
    assert report["uri"] == f"{tmp_path} in a bucket over https"


def test_rounds_have_all_contenders_in_different_orders() -> None:
    names = ("a", "b", "c", "d", "e")
    orders = [_order(names, number) for number in range(5)]
    assert orders[0] == list(names)
    assert all(sorted(order) == list(names) for order in orders)
    loads = [name for order in orders for name in order]
    for name in names:  # not always behind the same one
        assert len({before for before, after in itertools.pairwise(loads) if after == name}) >= 3


def test_medians_are_over_the_rounds_that_ended_well() -> None:
    rounds = [Round("a", seconds, 2.0, 1_000_000_000, 500_000_000) for seconds in (1.0, 2.0, 4.0)]
    report = LoadBench("gs://b/m", "here", (*rounds, Round("a", error="lost"), Round("b", error="broken")))
    fast, broken = report.summaries
    assert (fast.contender, fast.rounds, fast.gb_per_second) == ("a", 3, 0.5)
    assert (fast.cpu_seconds_per_gb, fast.peak_ratio) == (2.0, 0.5)
    assert (broken.contender, broken.error) == ("b", "broken")
    assert "0.50 (2.00)" in report.to_svg()
    assert "broken" not in report.to_svg()
    assert json.loads(json.dumps(report.to_json()))["summaries"][0]["contender"] == "a"


def test_an_unknown_contender_is_refused_with_those_there_are() -> None:
    with pytest.raises(SettingsError, match=r"no such contender; there are: coldstream,.*curl drain"):
        check_contenders(["curl"])


def test_who_can_read_what() -> None:
    assert "gcsfs" not in contenders_for("/some/folder")
    assert "safetensors" in contenders_for("/some/folder")
    assert {"coldstream", "curl drain"} <= set(contenders_for("gs://bucket/model"))


@pytest.mark.more
def test_obstore_reads_over_tls_what_we_read(bucket: LocalBucket, certificate: Certificate) -> None:
    environment = {"STORAGE_EMULATOR_HOST": bucket.secure_url, **certificate.environment}
    report = run_load_bench("gs://models/small", rounds=1, contenders=("obstore x4",), environment=environment, rest=0)
    assert report.rounds[0].error is None
    assert report.rounds[0].bytes > SIZE  # whole files
