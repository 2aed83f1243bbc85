"""LocalBucket answers like Google's JSON and XML APIs, whichever way it was filled, and leaves nothing behind."""

from __future__ import annotations

import base64
import errno
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import pytest

from coldstream.demo.bucket import LocalBucket
from coldstream.errors import ColdstreamError

DATA = os.urandom(300_000)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    (folder / "nested").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(DATA)
    (folder / "nested" / "한글 +&%.txt").write_bytes(b"text")
    (folder / "empty").write_bytes(b"")
    return folder


@pytest.fixture(scope="module", params=[True, False], ids=["direct", "upload"])
def bucket(request: pytest.FixtureRequest) -> Iterator[LocalBucket]:
    with LocalBucket(direct=request.param) as running:
        yield running


def fetch(url: str, **headers: str) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as reply:
        return reply.read()


def test_a_folder_is_listed_with_sizes_and_checksums(bucket: LocalBucket, checkpoint: Path) -> None:
    assert bucket.add("listed", "a/model", checkpoint) == "gs://listed/a/model"
    objects = {item.name: item for item in bucket.objects("listed", "a/model/")}
    assert set(objects) == {"a/model/model.safetensors", "a/model/nested/한글 +&%.txt", "a/model/empty"}
    weights = objects["a/model/model.safetensors"]
    assert weights.size == len(DATA)
    assert base64.b64decode(weights.crc32c) == google_crc32c.value(DATA).to_bytes(4, "big")
    assert weights.generation > 0


def test_a_range_is_read_and_a_wrong_generation_is_not_found(bucket: LocalBucket, checkpoint: Path) -> None:
    bucket.add("ranges", "", checkpoint)
    [weights] = bucket.objects("ranges", "model.safetensors")
    url = f"{bucket.url}/ranges/model.safetensors?generation="
    assert fetch(f"{url}{weights.generation}", Range="bytes=1000-1999") == DATA[1000:2000]
    with pytest.raises(urllib.error.HTTPError, match="404") as caught:
        fetch(f"{url}{weights.generation + 1}")
    caught.value.close()


def test_an_object_written_again_has_new_bytes_and_a_new_generation(bucket: LocalBucket) -> None:
    bucket.put("again", "x/config.json", b"{}")
    [first] = bucket.objects("again")
    bucket.put("again", "x/config.json", b'{"a": 1}')
    [second] = bucket.objects("again")
    assert second.generation > first.generation
    assert fetch(f"{bucket.url}/again/x/config.json") == b'{"a": 1}'


def test_the_same_folder_can_be_added_twice_and_the_originals_stay(bucket: LocalBucket, checkpoint: Path) -> None:
    bucket.add("twice", "one", checkpoint)
    bucket.add("twice", "two", checkpoint)
    bucket.add("twice", "one", checkpoint)
    assert len(bucket.objects("twice")) == 6
    assert (checkpoint / "model.safetensors").read_bytes() == DATA


def test_a_deleted_object_is_gone(bucket: LocalBucket) -> None:
    bucket.put("gone", "a", b"1")
    bucket.put("gone", "b", b"2")
    bucket.delete("gone", "a")
    assert [item.name for item in bucket.objects("gone")] == ["b"]
    with pytest.raises(ColdstreamError, match="404"):
        bucket.delete("gone", "a")


def test_stopping_closes_the_port_and_removes_the_folder() -> None:
    with LocalBucket() as bucket:
        folder, port = bucket.folder, bucket.port
    assert not folder.exists()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED
    bucket.stop()
    with pytest.raises(ColdstreamError, match="not running"):
        bucket.add("b", "p", folder)


def test_a_port_that_is_taken_is_an_error_with_the_servers_own_words() -> None:
    with LocalBucket() as first, pytest.raises(ColdstreamError, match=rf"port {first.port}: .*in use"):
        LocalBucket(port=first.port).start()


def test_the_server_ends_when_its_parent_is_killed() -> None:
    code = (
        "import time; from coldstream.demo.bucket import LocalBucket\n"
        "bucket = LocalBucket(); bucket.start(); print(bucket.port, bucket.folder, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        port, _, folder = parent.stdout.readline().strip().partition(" ")
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", int(port))) == errno.ECONNREFUSED:
                break
        time.sleep(0.01)
    else:
        pytest.fail("the server outlived its parent")
    subprocess.run(["rm", "-rf", folder], check=True)
