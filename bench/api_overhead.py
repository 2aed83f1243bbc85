"""What the HTTP side costs: requests at a fixed rate against the application around an engine whose step costs nothing.

    python bench/api_overhead.py [--rate 50] [--seconds 20]

Server and client are two processes on this machine; the client opens no new connections while it measures. A bare ASGI
application that answers with a constant is measured in the same run: what it takes is the floor that uvicorn, the
sockets and the client set.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from coldstream.engine.request import Request, SamplingParams, TokenEvent, Usage

TOKENS = 16
_CONNECTIONS = 64


@dataclass(frozen=True)
class _Stats:
    running: int = 0


class EmptyEngine:
    """Delivers a request's tokens at once, from the caller's thread."""

    def submit(self, request: Request, deliver: Callable[[TokenEvent], None]) -> None:
        """All tokens, then the end."""
        count = min(request.sampling.max_tokens, TOKENS)
        for _ in range(count):
            deliver(TokenEvent(request.id, text="word ", token_ids=(1,)))
        usage = Usage(len(request.prompt_ids), 0, count, 0.0, 0.0, 0.0)
        deliver(TokenEvent(request.id, finish_reason="length", usage=usage))

    def cancel(self, request_id: str) -> None:
        """Nothing runs."""

    def stats(self) -> _Stats:
        """Nothing to say."""
        return _Stats()


class EmptyTokenizer:
    """A token a word."""

    has_chat_template = True
    template_uses_tools = False
    vocab_size = 2

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """As many ones as words."""
        return [1] * len(text.split())

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Words."""
        return "word " * len(ids)

    def token_text(self, token_id: int) -> str:
        """A word."""
        return "word "

    def apply_chat_template(self, messages: Sequence[dict], **_: object) -> str:
        """The contents."""
        return "".join(f"{message['role']} {message['content']} " for message in messages)


class EmptyModel:
    """Ready from the start."""

    name, uri, created, revision, is_ready, max_context = "default", "file:///nowhere", 0, "none", True, 8192
    tokenizer, engine, defaults, images = EmptyTokenizer(), EmptyEngine(), SamplingParams(), None

    async def ready(self) -> None:
        """At once."""

    def retry_after(self) -> float:
        """Never."""
        return 1.0


def serve(port: int) -> None:
    """Run the server process."""
    import uvloop

    from coldstream.serve.app import create_app
    from coldstream.serve.http.server import HttpServer
    from coldstream.serve.main import bind
    from coldstream.serve.observe import logs
    from coldstream.serve.observe.metrics import Metrics
    from coldstream.serve.startup import Startup
    from coldstream.serve.state import ServerState
    from coldstream.serve.surface import Surface
    from coldstream.settings import for_uri
    from coldstream.timeline import Timeline

    async def constant(scope, receive, send) -> None:  # noqa: ANN001
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}"})

    async def both(scope, receive, send) -> None:  # noqa: ANN001
        await (constant if scope["path"] == "/bare" else surface)(scope, receive, send)

    logs.configure(open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  written, as in production, and not read
    settings = for_uri("file:///nowhere")
    state, measured = ServerState(settings, {"default": EmptyModel()}), Metrics()
    surface = Surface(Startup(settings, Timeline(), on_change=lambda: None), state, measured, environ={})
    surface.open_to(create_app(state, measured))
    server = HttpServer(both, bind("127.0.0.1", port), refused=surface.refused, hanging_up=2)
    server.config.timeout_keep_alive = 600
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(server.serve())


class Connection:
    """One kept-alive HTTP/1.1 connection; as little client as there can be."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self, raw: bytes) -> float:
        """Send a request; seconds until its answer is whole."""
        start = time.perf_counter()
        self._writer.write(raw)
        head = await self._reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError((head + await self._reader.read(500)).decode())
        lowered = head.lower()
        if b"content-length: " in lowered:
            await self._reader.readexactly(int(lowered.split(b"content-length: ")[1].split(b"\r\n")[0]))
        else:
            await self._reader.readuntil(b"\r\n0\r\n\r\n")
        return time.perf_counter() - start


async def measure(port: int, raw: bytes, rate: float, seconds: float) -> list[float]:
    """Open loop: a request every 1 / rate seconds, whatever became of those before."""
    idle = [Connection(*await asyncio.open_connection("127.0.0.1", port)) for _ in range(_CONNECTIONS)]
    for connection in idle:
        await connection.ask(raw)
    times: list[float] = []

    async def one() -> None:
        connection = idle.pop()
        times.append(await connection.ask(raw))
        idle.append(connection)

    asking, begin = [], time.perf_counter()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, begin + number / rate - time.perf_counter()))
        asking.append(asyncio.create_task(one()))
    await asyncio.gather(*asking)
    return times


def request(path: str, body: dict) -> bytes:
    """A whole HTTP request."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far (proc(5), fields 14 and 15)."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Start the server, measure each kind of request, print milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--port", type=int, default=8399)
    parser.add_argument("--serve", action="store_true")
    args = parser.parse_args()
    if args.serve:
        serve(args.port)
        return
    prompt = "What is the total amount donated by each donor in the US? " * 8
    messages = [{"role": "user", "content": prompt}]
    kinds = {
        "bare ASGI": request("/bare", {"prompt": prompt}),
        "POST /generate": request("/generate", {"type": "text", "prompt": prompt}),
        "POST /v1/chat/completions": request("/v1/chat/completions", {"model": "default", "messages": messages}),
        f"the same, streamed, {TOKENS} tokens": request(
            "/v1/chat/completions", {"model": "default", "messages": messages, "stream": True}
        ),
    }
    server = subprocess.Popen([sys.executable, __file__, "--serve", "--port", str(args.port)])
    try:
        _wait(args.port)
        title = f"ms a request at {args.rate:g}/s"
        print(f"{title:40} {'p50':>7} {'p90':>7} {'p99':>7} {'mean':>7} {'CPU':>7}")
        for name, raw in kinds.items():
            before = cpu_seconds(server.pid)
            times = sorted(item * 1e3 for item in asyncio.run(measure(args.port, raw, args.rate, args.seconds)))
            cpu = (cpu_seconds(server.pid) - before) / len(times) * 1e3
            spots = [times[int(len(times) * share)] for share in (0.5, 0.9, 0.99)]
            print(f"{name:40} " + " ".join(f"{item:7.2f}" for item in [*spots, statistics.fmean(times), cpu]))
    finally:
        server.terminate()
        server.wait()


def _wait(port: int) -> None:
    import socket

    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), 0.1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit("the server did not start")


if __name__ == "__main__":
    main()
