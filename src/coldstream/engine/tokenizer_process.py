"""The tokenizers library in a process of its own, behind the methods of `tokenizers.Tokenizer` that we use.

Building the tokenizer of a large vocabulary takes over a second (Gemma 3: 262,144 tokens, 33 MB of JSON), and the
library holds the GIL for all of it: in our own process it would stop the event loop and `import torch`. Beside them, on
the second core, it is free. Afterwards a call costs a round trip of some 0.2 ms; decoding, which happens for
every token, costs none: the library's own decoder runs here, on names of tokens that the child was asked for once.

The child is started by `exec`, gets the file through a memfd, answers one JSON message after the other on a socket, and
ends when the socket closes, which it does when we end, however that happens. Should it be killed, the next call starts
it again from the same memfd.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from coldstream.engine.vocabulary import Vocabulary, vocabulary
from coldstream.errors import EngineError, TokenizerError

_LENGTH = struct.Struct("<I")
_METHODS = frozenset({"encode", "names", "token_to_id", "get_vocab_size", "vocabulary"})
# A tokenizer with nothing in it but a decoder: the part of the library that turns names of tokens into text.
_ONLY_A_DECODER = """{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
"pre_tokenizer": null, "post_processor": null, "decoder": %s,
"model": {"type": "WordLevel", "vocab": {"": 0}, "unk_token": ""}}"""


@dataclass(frozen=True, slots=True)
class Encoding:
    """What `tokenizers.Encoding` is to us."""

    ids: list[int]


class TokenizerProcess:
    """Start it early, `begin` with a tokenizer.json when it is there, then `build`; then call it from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: int | None = None
        self._source = ""
        self._names: dict[int, str | None] = {}
        self._special: frozenset[int] = frozenset()
        self._join: Callable[[list[str]], str] = " ".join
        self._start()

    def begin(self, tokenizer_json: bytes) -> None:
        """Hand over the file, and do not wait."""
        self._file = os.memfd_create("tokenizer.json", os.MFD_CLOEXEC)
        with os.fdopen(os.dup(self._file), "wb") as file:
            file.write(tokenizer_json)
        with self._lock, contextlib.suppress(OSError):  # the child is gone: `build` hears of it
            self._send_file()

    def build(self, tokenizer_json: bytes, *, source: str) -> TokenizerProcess:
        """Wait until the tokenizer of this file is built, and be it; the file that was begun with is not sent again.

        `source` is its URI, for messages.

        Raises:
            TokenizerError: it is not a tokenizer.json that the library can read.
        """
        if self._file is None:
            self.begin(tokenizer_json)
        self._source = source
        with self._lock:
            built = self._reply()
        self._special = frozenset(built["special"])
        if built["decoder"] is not None:
            import tokenizers

            self._join = tokenizers.Tokenizer.from_str(_ONLY_A_DECODER % built["decoder"]).decoder.decode
        return self

    def encode(self, sequence: str, *, add_special_tokens: bool = True) -> Encoding:
        """The ids of a text."""
        return Encoding(self._call("encode", sequence, add_special_tokens))

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of the ids; those that are not in the vocabulary have none.

        As `TokenizerImpl::decode` does it (tokenizers/src/tokenizer/mod.rs): the names, joined by the decoder.
        """
        unknown = [number for number in ids if number not in self._names]
        if unknown:
            self._names.update(zip(unknown, self._call("names", unknown), strict=True))
        names = (self._names[number] for number in ids if not (skip_special_tokens and number in self._special))
        return self._join([name for name in names if name is not None])

    def token_to_id(self, token: str) -> int | None:
        """The id of a token by its exact name."""
        number: int | None = self._call("token_to_id", token)
        return number

    def id_to_token(self, id: int) -> str | None:
        """The name of a token."""
        name: str | None = self._call("names", [id])[0]
        return name

    def get_vocab_size(self, *, with_added_tokens: bool = True) -> int:
        """How many tokens there are."""
        size: int = self._call("get_vocab_size", with_added_tokens)
        return size

    def vocabulary(self) -> Vocabulary:
        """The bytes of all tokens.

        Raises:
            TokenizerError: tokens of this kind of tokenizer have no bytes of their own.
        """
        found = self._call("vocabulary")
        return Vocabulary(tuple(token.encode("latin-1") for token in found["tokens"]), tuple(found["special"]))

    @property
    def pid(self) -> int:
        """The child's process id; another one after it had to be started again."""
        return self._process.pid

    def close(self) -> None:
        """End the child and wait for it."""
        with self._lock:
            self._stop()
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair()
        code = f"from coldstream.engine.tokenizer_process import serve; serve({theirs.fileno()})"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code], pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL
            )

    def _stop(self) -> None:
        self._socket.close()
        self._process.kill()  # it may be in the middle of building a tokenizer, and has nothing to save
        self._process.wait()

    def _send_file(self) -> None:
        assert self._file is not None
        socket.send_fds(self._socket, [b"f"], [self._file])

    def _call(self, method: str, *args: Any) -> Any:
        with self._lock:
            try:
                return self._ask(method, args)
            except OSError:  # the child is gone (killed for memory, say): once more, with a new one
                self._stop()
                self._start()
            try:
                self._send_file()
                self._reply()
                return self._ask(method, args)
            except OSError as exc:
                raise EngineError(f"{self._source}: the tokenizer's process ended twice ({exc})") from exc

    def _ask(self, method: str, args: Sequence[Any]) -> Any:
        _send(self._socket, [method, *args])
        return self._reply()

    def _reply(self) -> Any:
        answer = _receive(self._socket)
        if answer is None:
            raise ConnectionResetError("the tokenizer's process closed its socket")
        if "error" in answer:
            raise TokenizerError(f"{self._source}/tokenizer.json: {answer['error']}")
        return answer["value"]


def serve(descriptor: int) -> None:
    """The child's whole life: receive the file, build the tokenizer, answer until the socket closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent says when to end
    connection = socket.socket(fileno=descriptor)
    import tokenizers

    _, files, _, _ = socket.recv_fds(connection, 1, 1)
    if not files:
        return
    try:
        with os.fdopen(files[0], "rb") as file:
            file.seek(0)
            backend = tokenizers.Tokenizer.from_buffer(file.read())
        backend.no_truncation()
        backend.no_padding()
    except Exception as exc:  # the library raises plain Exception; the parent turns it into a TokenizerError
        _send(connection, {"error": f"cannot be read by tokenizers: {exc}"})
        return
    _send(connection, {"value": _about(backend)})
    while (message := _receive(connection)) is not None:
        _send(connection, _answer(backend, message))


def _about(backend: Any) -> dict[str, Any]:
    """What decoding needs beside the names of the tokens."""
    added = backend.get_added_tokens_decoder()
    return {
        "decoder": backend.decoder.__getstate__().decode() if backend.decoder is not None else None,
        "special": [number for number, token in added.items() if token.special],
    }


def _answer(backend: Any, message: list[Any]) -> dict[str, Any]:
    method, *args = message
    try:
        if method not in _METHODS:
            raise ValueError(f"no method {method}")
        if method == "encode":
            return {"value": backend.encode(args[0], add_special_tokens=args[1]).ids}
        if method == "names":
            return {"value": [backend.id_to_token(number) for number in args[0]]}
        if method == "vocabulary":
            return {"value": _written(vocabulary(backend))}
        return {"value": getattr(backend, method)(*args)}
    except Exception as exc:  # likewise: whatever it is, the parent must hear of it
        return {"error": f"{method}: {exc}"}


def _written(found: Vocabulary) -> dict[str, Any]:
    """As JSON can carry it: a character for each byte."""
    return {"tokens": [token.decode("latin-1") for token in found.tokens], "special": found.special}


def _send(connection: socket.socket, message: Any) -> None:
    data = json.dumps(message).encode()
    connection.sendall(_LENGTH.pack(len(data)) + data)


def _receive(connection: socket.socket) -> Any:
    head = _exactly(connection, _LENGTH.size)
    if head is None:
        return None
    body = _exactly(connection, _LENGTH.unpack(head)[0])
    return None if body is None else json.loads(body)


def _exactly(connection: socket.socket, count: int) -> bytes | None:
    """`count` bytes, or None when the other side is gone."""
    parts = bytearray()
    while len(parts) < count:
        try:
            part = connection.recv(count - len(parts))
        except ConnectionError:
            return None
        if not part:
            return None
        parts += part
    return bytes(parts)
