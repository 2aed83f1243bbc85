"""The attacks of tools/siege.py and tests/attacks/test_siege.py: what clients send who want a server to stop.

Each is called with a `Target` and returns when it has sent what it wants to. Loopback only, and bounded: none opens
more than a few hundred connections, or sends more than a few hundred megabytes. Standard library only.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

_PATIENCE = 20.0


@dataclass(frozen=True, slots=True)
class Target:
    """A server on 127.0.0.1, and one of its keys, which is the attacker's."""

    port: int
    key: str
    model: str = "default"
    is_watched: bool = True
    """Whether a crowd stays for a while, so that it is seen what that costs others."""

    def stay(self, seconds: float) -> None:
        """Keep up what was begun, where it is watched."""
        time.sleep(seconds if self.is_watched else 0)

    def connect(self) -> socket.socket:
        """A connection whose reads and writes give up in time."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=_PATIENCE)

    def head(self, path: str, size: int, kind: str = "application/json", *, key: bool = True, more: str = "") -> bytes:
        """A POST's head."""
        authorization = f"authorization: Bearer {self.key}\r\n" if key else ""
        return (
            f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: {kind}\r\n"
            f"content-length: {size}\r\n{authorization}{more}\r\n"
        ).encode()

    def post(self, path: str, body: bytes, kind: str = "application/json", more: str = "") -> int:
        """The status of the answer; 0 where there was none."""
        try:
            with self.connect() as line:
                line.sendall(self.head(path, len(body), kind, more=more) + body)
                return int(line.recv(64).split()[1])
        except (OSError, IndexError, ValueError):
            return 0

    def ask(self, path: str, fields: Mapping[str, Any]) -> int:
        """`post` with JSON; the model's name is added."""
        return self.post(path, json.dumps({"model": self.model, **fields}).encode())


def _beside(count: int, work: Callable[[], object]) -> None:
    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(work) for _ in range(count)]:
            done.result()


def _quietly(line: socket.socket, *pieces: bytes) -> None:
    with contextlib.suppress(OSError):
        for piece in pieces:
            line.sendall(piece)


@contextlib.contextmanager
def _crowd(target: Target, count: int, said: bytes) -> Iterator[list[socket.socket]]:
    lines: list[socket.socket] = []
    for _ in range(count):
        with contextlib.suppress(OSError):
            lines.append(target.connect())
            _quietly(lines[-1], said)
    yield lines
    for line in lines:
        line.close()


def half_bodies(target: Target) -> None:
    """40 posts to a probe, without a key, of 32 MB each that stop half-way."""
    with _crowd(target, 40, b"POST /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 33000000\r\n\r\n") as lines:
        for line in lines:
            _quietly(line, b"x" * 1_000_000)


def endless_head(target: Target) -> None:
    """A head of 20 MB."""
    with target.connect() as line:
        _quietly(line, b"GET / HTTP/1.1\r\n", *[b"x-field: 12345\r\n" * 4096] * 300)


def silent_crowd(target: Target) -> None:
    """700 connections that say nothing, or half a request."""
    for said in (b"", b"GET /v1/models HTTP/1.1\r\nx: "):
        with _crowd(target, 350, said):
            target.stay(0.5)


def nested(target: Target) -> None:
    """30 MB of lists in lists, with half a surrogate pair, with and without a key."""
    body = b'{"a": "\\ud800", "b": ' + b"[[]," * 7_000_000 + b"[]]}"
    target.post("/generate", body)
    with target.connect() as line:
        _quietly(line, target.head("/generate", len(body), key=False), body)


def large_chats(target: Target) -> None:
    """Eight chats of 8 MB at once."""
    body = json.dumps(
        {"model": target.model, "messages": [{"role": "user", "content": 'a, "b": [c] \n' * 620_000}]}
    ).encode()
    _beside(8, lambda: target.post("/v1/chat/completions", body))


def many_ids(target: Target) -> None:
    """A million ids of which the last is none."""
    body = b'{"model": "%s", "prompt": [%s-1]}' % (target.model.encode(), b"0," * 1_000_000)
    target.post("/v1/completions", body)
    target.post("/v1/completions", body.replace(b"0,", b"", 600_000))


def many_messages(target: Target) -> None:
    """100,000 messages, and 25,000 parts."""
    target.ask("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}] * 100_000})
    parts = [{"type": "text", "text": "x"}] * 4000
    target.ask("/v1/chat/completions", {"messages": [{"role": "user", "content": parts}] * 3})
    target.ask("/generate", {f"x{place}": 1 for place in range(25_000)})


def many_biases(target: Target) -> None:
    """200,000 entries of logit_bias, some twice."""
    target.ask("/v1/completions", {"prompt": "x", "logit_bias": {str(place): 1 for place in range(200_000)}})
    target.ask("/v1/completions", {"prompt": "x", "logit_bias": {"1": 1, "01": 1}})
    most = {str(place): 1 for place in range(1000)}
    target.ask("/v1/completions", {"prompt": "x", "logit_bias": most, "max_tokens": 20})


def long_tools(target: Target) -> None:
    """A tool's description of 4 MB, and 128 tools of 60 KB."""
    for count, size in ((1, 4_000_000), (128, 60_000)):
        tool = {"type": "function", "function": {"name": "f", "description": "d" * size}}
        target.ask("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "tools": [tool] * count})


GRAMMARS: Sequence[Any] = (
    {"type": "integer", "multipleOf": 4000037},
    {"type": "integer", "maximum": 10**300},
    {"type": "string", "minLength": 100_000, "maxLength": 200_000},
    {"type": "array", "items": {"enum": [str(place) for place in range(5000)]}, "minItems": 900, "maxItems": 1000},
    {"type": "string", "pattern": "^(([a-z0-9]{1,100}){1,100}){1,100}$"},
    {"anyOf": [{"const": "x" * place} for place in range(1, 400)]},
)


def grammars(target: Target) -> None:
    """Schemas that cost without bound."""
    for schema in GRAMMARS:
        asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        target.ask(
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "x"}], "response_format": asked, "max_tokens": 4},
        )


def form_heads(target: Target) -> None:
    """A part of a form whose head has 90 KB, and a Content-Type of 60 KB."""
    body = b'--x\r\ncontent-disposition: form-data; name="a"' + b'; a="b"' * 13_000 + b"\r\n\r\n1\r\n--x--\r\n"
    target.post("/generate", body, "multipart/form-data; boundary=x")
    target.post("/generate", b"--x--", "multipart/form-data" + "; a=b" * 12_000 + "; boundary=x")
    target.post("/generate", b"--x\r\n" * 3_000_000, "multipart/form-data; boundary=x")


def gzip_bombs(target: Target) -> None:
    """Bodies that unpack to 32 MB, and to more."""
    for size in (32_000_000, 200_000_000):
        packed = gzip.compress(b'{"prompt": "' + b" " * size + b'"}', 1)
        _beside(3, partial(target.post, "/generate", packed, more="content-encoding: gzip\r\n"))


def unread(target: Target) -> None:
    """A hundred streams that are not read."""
    body = json.dumps({"model": target.model, "prompt": "x", "stream": True, "max_tokens": 200, "ignore_eos": True})
    said = target.head("/v1/completions", len(body)) + body.encode()
    with _crowd(target, 100, said):
        target.stay(3)


def scores(target: Target) -> None:
    """Echo with 100 log probabilities, of more ids than are scored, and of as many as are."""
    for count in (8000, 2000):
        asked = {"prompt": [7] * count, "echo": True, "logprobs": 100, "max_tokens": 1}
        target.ask("/v1/completions", asked)


def png(width: int, height: int) -> bytes:
    """A black picture, RGB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    row = bytes(1 + 3 * width)
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def pictures(target: Target) -> None:
    """Pictures as large as may be, and larger, in a few hundred KB."""
    for side in (7000, 20_000):
        url = "data:image/png;base64," + base64.b64encode(png(side, min(side, 7000))).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "x"}]
        target.ask("/v1/chat/completions", {"messages": [{"role": "user", "content": content}], "max_tokens": 2})


def long_prompts(target: Target) -> None:
    """Prompts of megabytes without a blank, which tokenizers take longest for."""
    for text in ("a" * 3_000_000, "\u0301" * 1_000_000, "<|im_end|>" * 200_000):
        target.ask("/v1/completions", {"prompt": text, "max_tokens": 1})


def all_places(target: Target) -> None:
    """More requests than there are places, that are hung up on in the middle."""
    body = json.dumps({"model": target.model, "prompt": "x", "max_tokens": 400, "ignore_eos": True, "n": 4}).encode()
    with _crowd(target, 60, target.head("/v1/completions", len(body)) + body):
        target.stay(2)


ATTACKS: Mapping[str, Callable[[Target], None]] = {
    attack.__name__: attack
    for attack in (
        half_bodies,
        endless_head,
        silent_crowd,
        nested,
        large_chats,
        many_ids,
        many_messages,
        many_biases,
        long_tools,
        grammars,
        form_heads,
        gzip_bombs,
        unread,
        scores,
        pictures,
        long_prompts,
        all_places,
    )
}
