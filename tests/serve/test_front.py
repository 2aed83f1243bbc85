"""The front: answers in a process of its own, and hands over untouched what is not for it.

The main process here is a small script: it takes connections only when it is told to, as one that holds the GIL would.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coldstream.serve.front import first_state
from coldstream.serve.startup import Startup
from coldstream.settings import for_uri
from coldstream.timeline import Timeline

MAIN = """
import json, select, socket, sys
from coldstream.serve.front import Front, first_state
from coldstream.serve.auth import ApiKeys
from coldstream.serve.listen import bind
listener = bind("127.0.0.1", 0)
front = Front(listener, ApiKeys.of(*sys.argv[1:]), ["main"])
print(listener.getsockname()[1], front._process, flush=True)
for line in sys.stdin:
    if line == "take\\n":
        select.select([front.control], [], [], 30)
        connection = front.take()
        if connection is None:
            print("gone", flush=True)
            continue
        connection.setblocking(True)
        request = connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 200 OK\\r\\ncontent-length: %d\\r\\n\\r\\n" % len(request) + request)
        connection.close()
        print("took", flush=True)
    elif line == "dismiss\\n":
        front.dismiss()
    else:
        front.tell(first_state(["main"]) | json.loads(line), retry_after=7)
front.close()
"""


class Main:
    def __init__(self, *keys: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", MAIN, *keys], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.port, self.front = map(int, self.read().split())

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[http.client.HTTPResponse, bytes]:
        connection = self.connect()
        connection.request("GET", path, headers=headers or {})
        reply = connection.getresponse()
        body = reply.read()
        connection.close()
        return reply, body

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


@pytest.fixture
def main() -> Iterator[Main]:
    started = Main()
    yield started
    started.end()


def wait_for_the_end(pid: int) -> None:
    """Its parent may not have asked for its exit status yet."""
    stat = Path(f"/proc/{pid}/stat")
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while stat.read_text(encoding="ascii").rsplit(")", 1)[1].split()[0] != "Z":
            pass


def status(main: Main) -> int:
    return main.get("/readyz")[0].status


def test_the_first_state_has_the_shape_of_every_later_one() -> None:
    settings = for_uri("gs://b/m")
    later = Startup(settings, Timeline(), on_change=lambda: None).state()
    first = first_state(settings.models)
    assert first.keys() == later.keys()
    assert {name: model.keys() for name, model in first["models"].items()} == {
        name: model.keys() for name, model in later["models"].items()
    }


def test_probes_are_answered_while_the_main_process_does_nothing(main: Main) -> None:
    health, _ = main.get("/healthz")
    ready, body = main.get("/readyz?verbose=1")
    assert (health.status, ready.status, ready.headers["retry-after"]) == (200, 503, "3")
    assert json.loads(body)["models"]["main"]["phase"] == "waiting"


def test_readiness_is_what_the_main_process_told_last(main: Main) -> None:
    main.say('{"status": "loading", "bytes": 5}')
    while json.loads(main.get("/readyz")[1])["bytes"] != 5:
        pass
    assert main.get("/readyz")[0].headers["retry-after"] == "7"
    main.say('{"status": "degraded"}')
    while status(main) != 200:
        pass


def test_one_connection_asks_many_times_and_then_something_that_is_not_ours(main: Main) -> None:
    connection = main.connect()
    for method in ("GET", "HEAD", "GET"):
        connection.request(method, "/healthz")
        reply = connection.getresponse()
        assert reply.status == 200
        reply.read()
    connection.request("POST", "/generate", body=b"x" * 10)
    main.say("take")
    echoed = connection.getresponse().read()
    assert echoed.startswith(b"POST /generate HTTP/1.1\r\n")
    assert echoed.endswith(b"x" * 10)
    connection.close()


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /startup HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /readyz HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi",
        b"GET /readyz HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
        b"GET /rea",
        b"\x16\x03\x01 not HTTP at all",
    ],
)
def test_what_is_not_a_plain_request_of_ours_reaches_the_main_process_byte_for_byte(
    main: Main, request_: bytes
) -> None:
    connection = main.connect()
    connection.connect()
    connection.sock.sendall(request_)
    main.say("take")
    reply = http.client.HTTPResponse(connection.sock)
    reply.begin()
    assert reply.read() == request_
    connection.close()


def test_more_connections_than_the_common_socket_holds_all_arrive(main: Main) -> None:
    connections = [main.connect() for _ in range(600)]
    for connection in connections:
        connection.request("POST", "/generate", body=b"x")
    assert status(main) == 503
    for _ in connections:
        main.say("take")
    assert {connection.getresponse().status for connection in connections} == {200}
    for connection in connections:
        connection.close()


def test_events_go_on_until_the_start_is_settled(main: Main) -> None:
    connection = main.connect()
    connection.request("GET", "/startup", headers={"accept": "text/event-stream"})
    reply = connection.getresponse()
    assert json.loads(reply.readline().removeprefix(b"data: "))["status"] == "loading"
    main.say('{"status": "ready"}')
    lines = [line.removeprefix(b"data: ").strip() for line in reply.read().splitlines() if line.strip()]
    assert json.loads(lines[-2])["status"] == "ready"
    assert lines[-1] == b"[DONE]"
    connection.close()


def test_events_need_the_key_and_probes_do_not() -> None:
    main = Main("secret")
    try:
        accept = {"accept": "text/event-stream"}
        assert main.get("/startup", accept)[0].status == 401
        main.say('{"status": "failed"}')
        assert main.get("/startup", accept | {"authorization": "Bearer secret"})[0].status == 200
        assert status(main) == 503
    finally:
        main.end()


def test_whoever_is_still_connected_is_handed_over_in_the_end(main: Main) -> None:
    connection = main.connect()
    connection.request("GET", "/healthz")
    connection.getresponse().read()
    main.say("dismiss")
    wait_for_the_end(main.front)
    main.say("take")
    connection.request("GET", "/healthz")
    assert connection.getresponse().read().startswith(b"GET /healthz")
    assert main.read() == "took"
    main.say("take")
    assert main.read() == "gone"
    connection.close()


def test_a_front_that_was_killed_is_noticed(main: Main) -> None:
    main.say("take")
    os.kill(main.front, signal.SIGKILL)
    assert main.read() == "gone"


def test_the_front_ends_with_the_main_process_however_that_ends(main: Main) -> None:
    assert status(main) == 503
    main.process.kill()
    main.process.wait()
    wait_for_the_end(main.front)
