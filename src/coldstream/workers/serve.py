"""The worker's side: one piece of work after the other, each within its limits, until the socket closes.

Nothing is imported at the top that the work does not need: a worker is there in a few hundredths of a second.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from coldstream.errors import InvalidRequest, RequestError, TokenizerError
from coldstream.host.process import resident
from coldstream.workers.child import ignore_interrupts
from coldstream.workers.limits import Limits, give_up_first, held_to
from coldstream.workers.messages import receive, send

Work = Callable[[Any, bytes], Any]
"""Called with what JSON can hold, and with bytes; returns text, bytes, or what JSON can hold."""

_KEPT = 64 * 1024 * 1024
"""Bytes that all work so far may leave behind; beyond, another process takes the place of this one."""
_GROWN = 4 * 1024 * 1024
"""Bytes that one piece of work leaves behind, from which on the allocator is asked to give back what is free."""


def serve(descriptors: Sequence[int], name: str) -> None:
    """The whole life of a worker for the work of this name, "module:class".

    A message holds the length of its JSON, the JSON, and bytes.
    """
    ignore_interrupts()
    give_up_first()
    line = socket.socket(fileno=descriptors[0])
    work = _made(name)
    began = resident()
    while (message := receive(line)) is not None:
        size = int.from_bytes(message[:4], "little")
        before = resident()
        limits, argument = json.loads(message[4 : 4 + size])
        kind, answer = _answer(work, limits, argument, message[4 + size :])
        del message, argument
        if resident() - before > _GROWN:
            _give_back()
        is_last = resident() - began > _KEPT
        send(line, b"!" if is_last else b".", kind, answer)
        if is_last:
            return


def _give_back() -> None:
    from coldstream.host.memory import give_back  # ctypes, which most work does without

    give_back()


def _made(name: str) -> Work:
    """The work; what it imports is not among its costs."""
    module, _, attribute = name.partition(":")
    try:
        work: Work = getattr(import_module(module), attribute)()
    except Exception as exc:  # the parent hears of it when it asks
        fault = exc

        def broken(argument: Any, data: bytes) -> Any:
            raise fault

        return broken
    return work


def _answer(work: Work, limits: Sequence[Any], argument: Any, data: bytes) -> tuple[bytes, bytes]:
    """What kind of answer it is, and its bytes."""
    try:
        with held_to(Limits(*limits)):
            return _written(work(argument, data))
    except MemoryError:
        return b"m", b""
    except (InvalidRequest, TokenizerError) as exc:
        field = exc.field if isinstance(exc, RequestError) else None
        return b"e", json.dumps([type(exc).__name__, str(exc), field]).encode()
    except BaseException as exc:  # a panic of Rust's is one; its words may be the caller's, and not for a log
        return b"x", type(exc).__name__.encode()


def _written(value: Any) -> tuple[bytes, bytes]:
    if isinstance(value, bytes):
        return b"b", value
    if isinstance(value, str):
        return b"s", value.encode("utf-8", "surrogatepass")
    return b"j", json.dumps(value).encode()
