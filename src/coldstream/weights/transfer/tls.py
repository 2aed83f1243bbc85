"""TLS where OpenSSL cannot be called itself (openssl.py): Python's ssl, with large reads, and few threads that decrypt.

OpenSSL hands out a record (16 KiB) a call, and Python takes its lock after each. Ten threads that do so hand the lock
to and fro for longer than they decrypt; one thread decrypts 2 GB a second. So they read side by side, up to a
megabyte a system call instead of two calls for each record, and decrypt in turns.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
from itertools import cycle
from typing import cast

from coldstream.errors import BadResponse

CIPHERTEXT = 1024 * 1024


class Decryption:
    """Who is trusted, and how many decrypt at once. See `openssl.Context`."""

    def __init__(self, authorities: str | None) -> None:
        self._context = ssl.create_default_context()
        self._context.set_alpn_protocols(["http/1.1"])
        if authorities:
            self._context.load_verify_locations(authorities)
        self._turns = cycle([threading.Lock() for _ in range(max(1, len(os.sched_getaffinity(0)) // 4))])

    def secure(self, raw: socket.socket, host: str) -> SecureSocket:
        """TLS over a connected socket; the handshake comes with the first use."""
        return SecureSocket(raw, self._context, host, next(self._turns))


class SecureSocket:
    """What of a socket's methods the wire needs; the handshake comes with the first of them."""

    def __init__(self, raw: socket.socket, context: ssl.SSLContext, host: str, turn: threading.Lock) -> None:
        self._raw = raw
        self._turn = turn
        self._host = host
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._ciphertext = memoryview(bytearray(CIPHERTEXT))
        self._greeted = False

    def close(self) -> None:
        """Nothing of it lives outside of Python; the socket is closed by its maker."""

    def sendall(self, data: bytes, /) -> None:
        """All of it.

        Raises:
            BadResponse: the server is not who it should be.
            OSError: as a socket does; ssl.SSLError is one.
        """
        if not self._greeted:
            self._greet()
        self._session.write(data)
        self._flush()

    def recv(self, nbytes: int, /) -> bytes:
        """Some bytes; none at the end."""
        target = bytearray(nbytes)
        return bytes(target[: self.recv_into(memoryview(target), 0, 0)])

    def recv_into(self, target: memoryview, nbytes: int, flags: int, /) -> int:
        """Some bytes of `target`, from its start on; how many. None at the end."""
        while True:
            with self._turn:
                filled = self._decrypt(target)
            if self._outgoing.pending:  # new keys, for instance
                self._flush()
            if filled or not self._read():
                return filled

    def _decrypt(self, target: memoryview) -> int:
        """What is there already."""
        filled = 0
        try:
            while filled < target.nbytes:
                # With a buffer it answers a count, which its types do not say.
                count = cast(int, self._session.read(target.nbytes - filled, target[filled:]))
                if not count:
                    break
                filled += count
        except ssl.SSLWantReadError:
            pass
        return filled

    def _greet(self) -> None:
        while True:
            try:
                self._session.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                if not self._read():
                    raise EOFError("the connection was closed in the middle of the handshake") from None
            except ssl.SSLCertVerificationError as exc:
                raise BadResponse(
                    f"{self._host}: its certificate is not trusted ({exc.verify_message});"
                    " name its authority's file in SSL_CERT_FILE"
                ) from exc
            else:
                break
        self._greeted = True
        self._flush()

    def _flush(self) -> None:
        self._raw.sendall(self._outgoing.read())

    def _read(self) -> int:
        count = self._raw.recv_into(self._ciphertext)
        self._incoming.write(self._ciphertext[:count])
        return count
