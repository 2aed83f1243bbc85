"""The tokenizers library in processes of its own, behind the methods of `Backend`.

Building the tokenizer of a large vocabulary takes over a second (Gemma 3: 262,144 tokens, 33 MB of JSON), and the
library holds the GIL for all of it, as it does while it encodes: in our own process it would stop the event loop and
`import torch`. Beside them, on the second core, it is free. Afterwards a call costs a round trip of some 0.2 ms;
decoding, which happens for every token, costs none: the library's own decoder runs here, on names of tokens that the
child was asked for once.

The child is started by `exec`, gets the file through a memfd, builds the tokenizer and forks, so that there is one for
each line: names, short texts, long ones. Nothing on one line waits for another: the name of a token is there while
megabytes are encoded. It answers one message after the other on each line's socket, and ends when the sockets close,
which they do when we end, however that happens. Should one be killed, the next call starts them again from the same
memfd. A text is encoded within limits of time and memory that grow with it, since a checkpoint's normalizer may make
anything of it; beyond them the process ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from coldstream.engine.tokenizer import form
from coldstream.engine.tokenizer.added_tokens import Declared
from coldstream.engine.tokenizer.bounded import too_long
from coldstream.engine.tokenizer.library import LibraryTokenizer, bytes_of, spell_of
from coldstream.engine.tokenizer.vocabulary import Spell, Vocabulary
from coldstream.errors import EngineError, InvalidRequest, TokenizerError, TooCostly
from coldstream.host.process import resident
from coldstream.workers import messages
from coldstream.workers.child import Child, ignore_interrupts
from coldstream.workers.limits import Limits, give_up_first, held_to

if TYPE_CHECKING:
    from coldstream.engine.tokenizer.converted import ConvertedTokenizer, MakeMerges

    _Answering = LibraryTokenizer | ConvertedTokenizer

LONG = 16384
"""Characters from which on a text has the line of the long ones."""

_GROWN = 4 * 1024 * 1024
"""Bytes by which an answer left the process larger, from which on the allocator is asked to give back what is free."""
_LINES = ("names", "short", "long")
# What a message begins with: JSON, or ids as machine words, which need no parsing.
_JSON, _IDS = b"j", b"i"
# A tokenizer with nothing in it but a decoder: the part of the library that turns names of tokens into text.
_ONLY_A_DECODER = """{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
"pre_tokenizer": null, "post_processor": null, "decoder": %s,
"model": {"type": "WordLevel", "vocab": {"": 0}, "unk_token": ""}}"""


class _Line:
    """One socket to the child, for one caller at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.socket: socket.socket


class TokenizerProcess:
    """Start it early, `begin` with a tokenizer.json when it is there, then `build`; then call it from any thread.

    `entry` is what the child runs: `serve`, or what calls it with what converted tokenizers need.
    """

    def __init__(self, entry: str = "coldstream.engine.tokenizer.process:serve") -> None:
        self._entry = entry
        self._lines = {name: _Line() for name in _LINES}
        self._restarting = threading.Lock()
        self._generation = 0
        self._is_closed = False
        self._file: int | None = None
        self._declared: dict[str, Any] = {}
        self._source = ""
        self._names: dict[int, str | None] = {}
        self._join: Callable[[list[str]], str] = " ".join
        self._spell: Spell | None = None
        self._longest: int | None = None
        self.special_ids: frozenset[int] = frozenset()
        self.added_tokens: dict[str, int] = {}
        self._start()

    def begin(self, tokenizer_json: bytes, declared: Declared) -> None:
        """Hand over the file, or its converted form, and what the other files say of tokens, and do not wait."""
        self._declared = declared.as_json()
        self._file = os.memfd_create("tokenizer.json", os.MFD_CLOEXEC)
        with os.fdopen(os.dup(self._file), "wb") as file:
            file.write(tokenizer_json)
        with contextlib.suppress(OSError):  # the child is gone: `build` hears of it
            self._send_file()

    def build(self, tokenizer_json: bytes, declared: Declared, *, source: str) -> TokenizerProcess:
        """Wait until the tokenizer of this file is built, and be it; the file that was begun with is not sent again.

        `source` is its URI, for messages.

        Raises:
            TokenizerError: it is not a tokenizer.json that the library can read.
        """
        if self._file is None:
            self.begin(tokenizer_json, declared)
        self._source = source
        names = self._lines["names"]
        with names.lock:
            built = self._reply(names)
        self.special_ids = frozenset(built["special"])
        self.added_tokens = built["added"]
        self._spell = spell_of(built["decoder"])
        if built["decoder"]:
            import tokenizers

            if (reason := too_long(built["decoder"])) is not None:  # it runs here
                raise TokenizerError(f"{source}/tokenizer.json cannot be used: {reason}")

            backend = tokenizers.Tokenizer.from_str(_ONLY_A_DECODER % json.dumps(built["decoder"]))
            self._join = backend.decoder.decode
        return self

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """See `Backend.encode`."""
        ids: list[int] = self._call(_line_for(text), "encode", text, add_special_tokens)
        return ids

    def offsets(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """See `Backend.offsets`."""
        starts: list[int] = self._call(_line_for(text), "offsets", text, add_special_tokens)
        return starts

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """See `Backend.decode`.

        As `TokenizerImpl::decode` does it (tokenizers/src/tokenizer/mod.rs): the names, joined by the decoder.
        """
        self.learn(ids)
        names = (self._names[number] for number in ids if not (skip_special_tokens and number in self.special_ids))
        return self._join([name for name in names if name is not None])

    def token_to_id(self, token: str) -> int | None:
        """See `Backend.token_to_id`."""
        number: int | None = self._call("names", "token_to_id", token)
        return number

    def id_to_token(self, id: int) -> str | None:
        """See `Backend.id_to_token`."""
        self.learn((id,))
        return self._names[id]

    def token_bytes(self, id: int) -> bytes | None:
        """See `Backend.token_bytes`."""
        return bytes_of(self.id_to_token(id), self.added_tokens, self._spell)

    def get_vocab_size(self, *, with_added_tokens: bool = True) -> int:
        """See `Backend.get_vocab_size`."""
        size: int = self._call("names", "get_vocab_size", with_added_tokens)
        return size

    def longest_token(self) -> int | None:
        """See `Backend.longest_token`."""
        if self._longest is None and self._spell is not None:
            self._longest = self._call("short", "longest_token")
        return self._longest

    def vocabulary(self) -> Vocabulary:
        """See `Backend.vocabulary`."""
        found = self._call("long", "vocabulary")
        return Vocabulary(tuple(token.encode("latin-1") for token in found["tokens"]), tuple(found["special"]))

    @property
    def pid(self) -> int:
        """The child's process id; another one after it had to be started again."""
        return self._child.pid

    def close(self) -> None:
        """End the child and wait for it, for good: a call that comes later, or waits, is an EngineError."""
        self._is_closed = True
        self._child.kill()  # so that calls, and a start that waits for its answer, come to their end
        with self._restarting:
            self._stop()
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def learn(self, ids: Sequence[int]) -> None:
        """See `Backend.learn`."""
        unknown = [number for number in ids if number not in self._names]
        if unknown:
            self._names.update(zip(unknown, self._call("names", "names", unknown), strict=True))

    def _start(self) -> None:
        # Threads of the library would not survive the fork.
        environ = {"TOKENIZERS_PARALLELISM": "false"}
        self._child = Child(self._entry, lines=len(_LINES), environ=environ)
        for line, ours in zip(self._lines.values(), self._child.sockets, strict=True):
            line.socket = ours

    def _stop(self) -> None:
        self._child.end()  # it may be in the middle of building, and has nothing to save

    def _send_file(self) -> None:
        assert self._file is not None
        connection = self._lines["names"].socket
        socket.send_fds(connection, [b"f"], [self._file])
        _send(connection, [self._source, self._declared])

    def _call(self, name: str, method: str, *args: Any) -> Any:
        line = self._lines[name]
        with line.lock:
            generation = self._generation
            try:
                return self._ask(line, method, args)
            except OSError:  # the child is gone (killed for memory, say): once more, with a new one
                pass
        try:
            self._restart(generation)
            with line.lock:
                return self._ask(line, method, args)
        except OSError as exc:
            if method in _OF_A_TEXT:
                raise _costly(limits_of(args[0])) from exc
            raise EngineError(f"{self._source}: the tokenizer's process ended twice ({exc})") from exc

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineError(f"{self._source}: the tokenizer was closed; send the request to another instance")

    def _restart(self, generation: int) -> None:
        """Start the child again, unless another caller has."""
        with self._restarting:
            if self._generation != generation:
                return
            self._check_open()
            self._child.kill()  # so that calls on all lines come to their end
            with contextlib.ExitStack() as all_lines:
                for line in self._lines.values():
                    all_lines.enter_context(line.lock)
                self._stop()
                self._start()
                if self._is_closed:  # since it was asked, and before there was this child to be killed
                    self._child.kill()
                self._send_file()
                self._reply(self._lines["names"])
                self._generation += 1

    def _ask(self, line: _Line, method: str, args: Sequence[Any]) -> Any:
        _send(line.socket, [method, *args])
        return self._reply(line)

    def _reply(self, line: _Line) -> Any:
        answer = _receive(line.socket)
        if answer is None:
            raise ConnectionResetError("the tokenizer's process closed its socket")
        if isinstance(answer, list):
            return answer
        if "costly" in answer:
            raise _costly(Limits(*answer["costly"]))
        if "refused" in answer:
            raise InvalidRequest(answer["refused"], field="prompt")
        if "error" in answer:
            raise TokenizerError(f"{self._source}/tokenizer.json: {answer['error']}")
        return answer["value"]


def limits_of(text: str) -> Limits:
    """What encoding a text may take: several times what any honest tokenizer does."""
    return Limits(5.0 + 2e-5 * len(text), 64 * 1024 * 1024 + 1024 * len(text), 0)


def _costly(limits: Limits) -> TooCostly:
    message = (
        f"tokenizing takes more than {limits.seconds:.0f} s of the processor or {limits.memory >> 20} MiB of memory"
    )
    return TooCostly(f"prompt: {message}, which the model's tokenizer makes of this text", field="prompt")


def _line_for(text: str) -> str:
    return "short" if len(text) < LONG else "long"


def serve(descriptors: Sequence[int], merges: MakeMerges | None = None) -> None:
    """The child's whole life: receive the file, build the tokenizer, answer on every line until its socket closes.

    `merges` is what a converted tokenizer is made with.
    """
    ignore_interrupts()
    give_up_first()
    lines = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    names = lines[0]
    _, files, _, _ = socket.recv_fds(names, 1, 1)
    about = _receive(names) if files else None
    if about is None:
        return
    try:
        with os.fdopen(files[0], "rb") as file:
            file.seek(0)
            tokenizer = _built(file.read(), Declared.from_json(about[1]), about[0], merges)
    except TokenizerError as exc:
        _send(names, {"error": str(exc).partition("tokenizer.json ")[2] or str(exc)})
        return
    _send(names, {"value": _about(tokenizer)})
    _give_back()  # two thirds of what was allocated to build it; before the forks, or each would have its own of it
    mine = names
    for line in lines[1:]:
        if not os.fork():
            mine = line
            break
    for line in lines:
        if line is not mine:
            line.close()
    before = resident()
    while (message := _receive(mine)) is not None:
        _send(mine, _answer(tokenizer, message))
        del message
        if resident() - before > _GROWN:
            _give_back()
            before = resident()


def _give_back() -> None:
    from coldstream.host.memory import give_back  # ctypes, which a start does without

    give_back()


def _built(data: bytes, declared: Declared, source: str, merges: MakeMerges | None) -> _Answering:
    if not data.startswith(form.MAGIC) or merges is None:
        return LibraryTokenizer(data, declared, source=source)
    from coldstream.engine.tokenizer.converted import ConvertedTokenizer

    return ConvertedTokenizer(data, None, source=source, merges=merges)


def _about(tokenizer: _Answering) -> dict[str, Any]:
    """What decoding needs beside the names of the tokens."""
    return {
        "decoder": tokenizer.decoder,
        "special": sorted(tokenizer.special_ids),
        "added": tokenizer.added_tokens,
    }


def _names(tokenizer: _Answering, ids: list[int]) -> dict[str, Any]:
    return {"value": [tokenizer.id_to_token(number) for number in ids]}


def _vocabulary(tokenizer: _Answering) -> dict[str, Any]:
    """As JSON can carry it: a character for each byte."""
    found = tokenizer.vocabulary()
    return {"value": {"tokens": [token.decode("latin-1") for token in found.tokens], "special": found.special}}


_ANSWERS: Mapping[str, Callable[..., Any]] = {
    "encode": lambda tokenizer, text, special: array("I", tokenizer.encode(text, add_special_tokens=special)),
    "offsets": lambda tokenizer, text, special: array("I", tokenizer.offsets(text, add_special_tokens=special)),
    "names": _names,
    "token_to_id": lambda tokenizer, token: {"value": tokenizer.token_to_id(token)},
    "get_vocab_size": lambda tokenizer, added: {"value": tokenizer.get_vocab_size(with_added_tokens=added)},
    "longest_token": lambda tokenizer: {"value": tokenizer.longest_token()},
    "vocabulary": _vocabulary,
}


_OF_A_TEXT = ("encode", "offsets")


def _answer(tokenizer: _Answering, message: list[Any]) -> Any:
    method, *args = message
    limits = limits_of(args[0]) if method in _OF_A_TEXT else None
    try:
        with held_to(limits) if limits is not None else contextlib.nullcontext():
            return _ANSWERS[method](tokenizer, *args)
    except MemoryError:
        return {"costly": list(astuple(limits))} if limits is not None else {"error": f"{method}: no memory"}
    except InvalidRequest as exc:
        return {"refused": str(exc)}
    except TokenizerError as exc:
        return {"error": str(exc).partition("tokenizer.json: ")[2]}
    except Exception as exc:  # the library raises plain Exception; whatever it is, the parent must hear of it
        return {"error": f"{method}: {exc}"}


def _send(connection: socket.socket, message: Any) -> None:
    data = _IDS + message.tobytes() if isinstance(message, array) else _JSON + json.dumps(message).encode()
    messages.send(connection, data)


def _receive(connection: socket.socket) -> Any:
    body = messages.receive(connection)
    if body is None:
        return None
    if body[:1] == _IDS:
        ids = array("I")
        ids.frombytes(body[1:])
        return ids.tolist()
    return json.loads(body[1:])
