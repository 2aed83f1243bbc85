"""A completions endpoint, on the standard library alone, for an engine that brings no server.

What `bench serve` asks: greedy answers of a given length, streamed, and the best next tokens of a prompt.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol


class Peer(Protocol):
    """What stands behind; called by one thread, but for `encode` and `spell`, which are called under a lock."""

    def encode(self, text: str) -> list[int]:
        """The ids of a prompt, with what begins one."""
        ...

    def spell(self, token: int) -> str:
        """A token's text."""
        ...

    def begin(self, sequence: int, prompt: Sequence[int], tokens: int) -> None:
        """Have an answer of exactly so many tokens made, greedily, whatever ends texts."""
        ...

    def step(self) -> list[tuple[int, int]]:
        """Go on with all of them; the sequences and tokens that came of it."""
        ...

    def best(self, prompt: Sequence[int], count: int) -> list[tuple[int, float]]:
        """The likeliest next tokens with their log probabilities, best first. While no answer is being made."""
        ...


@dataclass(slots=True)
class _Asked:
    """One request; the engine's thread answers into `came`: tokens, or at once all the best, or an error."""

    prompt: Sequence[int]
    tokens: int
    best: int = 0
    came: queue.SimpleQueue[int | list[tuple[int, float]] | Exception] = field(default_factory=queue.SimpleQueue)


class Front:
    """The queue between the connections' threads and the engine's, which is the one that calls `run`."""

    def __init__(self, engine: Peer) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._waiting: queue.SimpleQueue[_Asked] = queue.SimpleQueue()
        self._running: dict[int, _Asked] = {}
        self._begun = 0

    def run(self) -> None:
        """Answer without end."""
        while True:
            self._take()
            for sequence, token in self._engine.step() if self._running else ():
                asked = self._running[sequence]
                asked.came.put(token)
                asked.tokens -= 1
                if not asked.tokens:
                    del self._running[sequence]

    def _take(self) -> None:
        while not (self._running and self._waiting.empty()):
            asked = self._waiting.get()
            if not asked.best:
                self._begun += 1
                self._running[self._begun] = asked
                self._engine.begin(self._begun, asked.prompt, asked.tokens)
            elif self._running:
                asked.came.put(RuntimeError("logprobs are given while nothing else is asked for"))
            else:
                asked.came.put(self._engine.best(asked.prompt, asked.best))

    def ids(self, prompt: str | list[int]) -> list[int]:
        """A prompt's, in the calling thread."""
        if isinstance(prompt, list):
            return prompt
        with self._lock:
            return self._engine.encode(prompt)

    def spell(self, token: int) -> str:
        """See `Peer.spell`."""
        with self._lock:
            return self._engine.spell(token)

    def tokens(self, prompt: Sequence[int], count: int) -> Iterator[int]:
        """The answer's, as they come."""
        asked = _Asked(prompt, count)
        self._waiting.put(asked)
        for _ in range(count):
            token = asked.came.get()
            assert isinstance(token, int)
            yield token

    def best(self, prompt: Sequence[int], count: int) -> list[tuple[int, float]]:
        """See `Peer.best`.

        Raises:
            RuntimeError: answers are being made.
        """
        asked = _Asked(prompt, 1, count)
        self._waiting.put(asked)
        found = asked.came.get()
        if isinstance(found, Exception):
            raise found
        assert isinstance(found, list)
        return found


class _Handler(BaseHTTPRequestHandler):
    front: Front

    def do_GET(self) -> None:
        self._reply({"object": "list", "data": [{"id": "model", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        ids, count = self.front.ids(body["prompt"]), int(body["max_tokens"])
        usage = {"prompt_tokens": len(ids), "completion_tokens": count, "total_tokens": len(ids) + count}
        if body.get("logprobs"):
            best = [{"id": token, "logprob": value} for token, value in self.front.best(ids, int(body["logprobs"]))]
            choice = {"index": 0, "text": "", "logprobs": {"content": [{**best[0], "top_logprobs": best}]}}
            self._reply({"choices": [choice], "usage": usage})
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for token in self.front.tokens(ids, count):
            self._event({"choices": [{"index": 0, "text": self.front.spell(token), "finish_reason": None}]})
        self._event({"choices": [{"index": 0, "text": "", "finish_reason": "length"}], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _reply(self, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _event(self, value: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing a request."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


def serve(engine: Peer, port: int) -> None:
    """Answer on 127.0.0.1 until the process is ended."""
    front = Front(engine)
    server = _Server(("127.0.0.1", port), type("Handler", (_Handler,), {"front": front}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    front.run()
