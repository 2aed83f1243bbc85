"""Messages over a socket: four bytes of length, then so many bytes."""

from __future__ import annotations

import socket
import struct

_LENGTH = struct.Struct("<I")


class TooLong(Exception):
    """A message is longer than the receiver takes; the socket is of no use any more."""


def send(connection: socket.socket, *parts: bytes) -> None:
    """One message of these parts."""
    length = _LENGTH.pack(sum(map(len, parts)))
    connection.sendall(length + parts[0])  # most have one part, and are one packet then
    for part in parts[1:]:
        connection.sendall(part)


def receive(connection: socket.socket, *, most: int | None = None) -> bytes | None:
    """One message; None when the other side is gone.

    Raises:
        TooLong: it has more than `most` bytes.
        TimeoutError: the socket's time is up.
    """
    head = _exactly(connection, _LENGTH.size)
    if head is None:
        return None
    length = _LENGTH.unpack(head)[0]
    if most is not None and length > most:
        raise TooLong
    return _exactly(connection, length)


def _exactly(connection: socket.socket, count: int) -> bytes | None:
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
