"""Work for workers: honest, and such that must be ended."""

from __future__ import annotations

import os
import signal
from typing import Any

from coldstream.errors import InvalidRequest, TokenizerError


class Works:
    """One method a kind of work, by its name."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, argument: Any, data: bytes) -> Any:
        self.calls += 1
        return getattr(self, argument[0])(*argument[1:], data)

    def echo(self, value: Any, data: bytes) -> Any:
        return value

    def reverse(self, data: bytes) -> bytes:
        return data[::-1]

    def count(self, data: bytes) -> int:
        return self.calls

    def pid(self, data: bytes) -> int:
        return os.getpid()

    def environ(self, data: bytes) -> dict[str, str]:
        return dict(os.environ)

    def for_ever(self, data: bytes) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            pass

    def in_one_expression(self, data: bytes) -> int:
        return len(str(10 ** (10**9)))

    def hang(self, data: bytes) -> None:
        signal.pause()

    def allocate(self, count: int, data: bytes) -> int:
        return len(bytearray(count))

    def keep(self, count: int, data: bytes) -> int:
        self.kept = b"x" * count
        return os.getpid()

    def keep_more(self, count: int, data: bytes) -> int:
        self.more = [*getattr(self, "more", ()), b"x" * count]
        return os.getpid()

    def crash(self, data: bytes) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    def refuse(self, field: str, data: bytes) -> None:
        raise InvalidRequest(f"{field} is wrong", field=field)

    def refuse_model(self, data: bytes) -> None:
        raise TokenizerError("no tokenizer")

    def fail(self, secret: str, data: bytes) -> None:
        raise RuntimeError(secret)


class OtherWorks(Works):
    """Work of another kind."""
