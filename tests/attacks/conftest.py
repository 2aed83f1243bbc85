"""The server's fixtures, and a client that says whatever it likes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.serve.conftest import Served, engine, serve

__all__ = ["engine", "serve"]

Connect = Callable[[Served], Awaitable["Peer"]]


class Peer:
    """One TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def say(self, *pieces: bytes) -> None:
        """Send these, as far as the server takes them."""
        try:
            for piece in pieces:
                self._writer.write(piece)
                await self._writer.drain()
        except ConnectionError:
            pass  # the server has hung up, which is what most attacks come to

    async def hear(self) -> bytes:
        """All that the server says until it hangs up."""
        heard = b""
        try:
            while piece := await self._reader.read(1 << 16):
                heard += piece
        except ConnectionError:
            pass
        return heard

    async def status(self) -> int:
        """The status of the next answer."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        return int(head.split()[1])

    def stop_reading(self) -> None:
        """Leave what comes in the kernel, until that is full."""
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]

    def hang_up(self) -> None:
        self._writer.close()


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Connects to a server that `serve` has started."""
    peers: list[Peer] = []

    async def make(served: Served) -> Peer:
        host, port = served.url.removeprefix("http://").split(":")
        peers.append(Peer(*await asyncio.open_connection(host, int(port))))
        return peers[-1]

    yield make
    for peer in peers:
        peer.hang_up()
