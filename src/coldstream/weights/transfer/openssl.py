"""TLS with the OpenSSL that Python brings, called without Python's ssl in between: a whole step of plaintext a call.

Python's ssl hands out a record (16 KiB) a call and takes the interpreter's lock after each: ten threads spend more time
on handing it to and fro than on decrypting. Here OpenSSL's own loop fills a whole step without the
lock. Who is trusted is decided by OpenSSL too, by the same rules: the system's authorities, the chain, the name or
address of the server, TLS 1.2 or later.

https://docs.openssl.org/3.0/man3/SSL_read/, BIO_f_buffer, SSL_CTX_set_verify, X509_VERIFY_PARAM_set1_host
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import socket
from functools import cache
from importlib import import_module
from typing import Any

from coldstream.errors import BadResponse
from coldstream.weights.transfer.memory import address

_VERIFY_PEER = 1
_MIN_PROTO_VERSION, _READ_AHEAD, _HOST_NAME, _SET_SSL = 123, 41, 55, 109
_TLS_1_2 = 0x0303
_NO_PARTIAL_WILDCARDS = 4
_ERROR_SSL, _ERROR_WANT_READ, _ERROR_WANT_WRITE, _ERROR_ZERO_RETURN = 1, 2, 3, 6
_ALPN = b"\x08http/1.1"
# Ciphertext that is asked for in one system call: four records. OpenSSL moves all that is left to the front of its
# buffer after each record (ssl3_read_n), so with sixteen of them every byte was moved seven times.
_CIPHERTEXT = 4 * (16 * 1024 + 256)
# BIO_f_buffer reads what is larger than its own buffer straight into the target.
_DIRECT = 4096

_pointer, _int, _long, _size, _text = (
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.c_long,
    ctypes.c_size_t,
    ctypes.c_char_p,
)
_count = ctypes.POINTER(ctypes.c_size_t)
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "TLS_client_method": (_pointer, ()),
    "SSL_CTX_new": (_pointer, (_pointer,)),
    "SSL_CTX_free": (None, (_pointer,)),
    "SSL_CTX_ctrl": (_long, (_pointer, _int, _long, _pointer)),
    "SSL_CTX_set_default_verify_paths": (_int, (_pointer,)),
    "SSL_CTX_load_verify_locations": (_int, (_pointer, _text, _text)),
    "SSL_CTX_set_verify": (None, (_pointer, _int, _pointer)),
    "SSL_CTX_set_alpn_protos": (_int, (_pointer, _text, ctypes.c_uint)),
    "SSL_CTX_set_default_read_buffer_len": (None, (_pointer, _size)),
    "SSL_new": (_pointer, (_pointer,)),
    "SSL_free": (None, (_pointer,)),
    "SSL_set_fd": (_int, (_pointer, _int)),
    "SSL_ctrl": (_long, (_pointer, _int, _long, _text)),
    "SSL_get0_param": (_pointer, (_pointer,)),
    "X509_VERIFY_PARAM_set1_host": (_int, (_pointer, _text, _size)),
    "X509_VERIFY_PARAM_set1_ip_asc": (_int, (_pointer, _text)),
    "X509_VERIFY_PARAM_set_hostflags": (None, (_pointer, ctypes.c_uint)),
    "SSL_connect": (_int, (_pointer,)),
    "SSL_get_verify_result": (_long, (_pointer,)),
    "X509_verify_cert_error_string": (_text, (_long,)),
    "SSL_read_ex": (_int, (_pointer, _pointer, _size, _count)),
    "SSL_write_ex": (_int, (_pointer, _text, _size, _count)),
    "SSL_get_error": (_int, (_pointer, _int)),
    "ERR_get_error": (ctypes.c_ulong, ()),
    "ERR_clear_error": (None, ()),
    "ERR_error_string_n": (None, (ctypes.c_ulong, _text, _size)),
    "BIO_new": (_pointer, (_pointer,)),
    "BIO_f_buffer": (_pointer, ()),
    "BIO_f_ssl": (_pointer, ()),
    "BIO_ctrl": (_long, (_pointer, _int, _long, _pointer)),
    "BIO_push": (_pointer, (_pointer, _pointer)),
    "BIO_free_all": (None, (_pointer,)),
    "BIO_read": (_int, (_pointer, _pointer, _int)),
}


@cache
def library() -> ctypes.CDLL | None:
    """OpenSSL 1.1.1 or later, as Python has loaded it; None where it is a part of the interpreter itself."""
    try:
        loaded = ctypes.CDLL(import_module("_ssl").__file__ or "", use_errno=True)
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except (ImportError, OSError, AttributeError):
        return None
    return loaded


class TlsContext:
    """Who is trusted: the system's authorities, and those in the file `authorities`.

    Raises:
        OSError: the file is not one of certificates.
    """

    def __init__(self, openssl: ctypes.CDLL, authorities: str | None) -> None:
        self.openssl = openssl
        self.pointer: int | None = openssl.SSL_CTX_new(openssl.TLS_client_method())
        if self.pointer is None:
            raise OSError(f"OpenSSL cannot be used: {_reason(openssl)}")
        openssl.SSL_CTX_set_verify(self.pointer, _VERIFY_PEER, None)
        openssl.SSL_CTX_ctrl(self.pointer, _MIN_PROTO_VERSION, _TLS_1_2, None)
        openssl.SSL_CTX_ctrl(self.pointer, _READ_AHEAD, 1, None)
        openssl.SSL_CTX_set_default_read_buffer_len(self.pointer, _CIPHERTEXT)
        openssl.SSL_CTX_set_alpn_protos(self.pointer, _ALPN, len(_ALPN))
        openssl.SSL_CTX_set_default_verify_paths(self.pointer)
        if authorities and not openssl.SSL_CTX_load_verify_locations(self.pointer, os.fsencode(authorities), None):
            raise OSError(f"{authorities}: no certificates in it ({_reason(openssl)})")

    def secure(self, raw: socket.socket, host: str) -> DirectSocket:
        """TLS over a connected socket; the handshake comes with the first use.

        Raises:
            OSError: no certificate could have such a name.
        """
        return DirectSocket(raw, self, host)

    def __del__(self) -> None:
        if getattr(self, "pointer", None) is not None:
            self.openssl.SSL_CTX_free(self.pointer)
            self.pointer = None


class DirectSocket:
    """What of a socket's methods the wire needs; the handshake comes with the first of them. Not for two threads."""

    def __init__(self, raw: socket.socket, context: TlsContext, host: str) -> None:
        self._raw = raw
        self._host = host
        self._context = context  # it must outlive the session
        self._openssl = context.openssl
        self._ssl: int | None = self._openssl.SSL_new(context.pointer)
        self._bio: int | None = None
        self._greeted = False
        if self._ssl is None:
            raise OSError(f"OpenSSL has no session: {_reason(self._openssl)}")
        try:
            self._name(host.encode("idna"))
        except UnicodeError as exc:
            raise OSError(f"{host}: is no name that a certificate could have") from exc
        self._openssl.SSL_set_fd(self._ssl, raw.fileno())
        self._bio = self._openssl.BIO_push(
            self._openssl.BIO_new(self._openssl.BIO_f_buffer()), self._openssl.BIO_new(self._openssl.BIO_f_ssl())
        )
        # Through the buffer to the session below it, which stays ours (BIO_NOCLOSE).
        self._openssl.BIO_ctrl(self._bio, _SET_SSL, 0, self._ssl)

    def close(self) -> None:
        """The session's memory; the socket is closed by its maker."""
        bio, self._bio = self._bio, None
        session, self._ssl = self._ssl, None
        if bio is not None:
            self._openssl.BIO_free_all(bio)
        if session is not None:
            self._openssl.SSL_free(session)

    def __del__(self) -> None:
        if getattr(self, "_ssl", None) is not None:
            self.close()

    def sendall(self, data: bytes, /) -> None:
        """All of it.

        Raises:
            BadResponse: the server is not who it should be.
            OSError: as a socket does.
        """
        if not self._greeted:
            self._greet()
        self._openssl.ERR_clear_error()
        written = ctypes.c_size_t()
        if self._openssl.SSL_write_ex(self._ssl, data, len(data), ctypes.byref(written)) != 1:
            self._failed(0)

    def recv(self, nbytes: int, /) -> bytes:
        """Some bytes; none at the end."""
        target = bytearray(nbytes)
        return bytes(target[: self._some(memoryview(target))])

    def recv_into(self, target: memoryview, nbytes: int, flags: int, /) -> int:
        """All of `target`, or what came before the connection broke or fell silent; none at the end."""
        if target.nbytes <= _DIRECT:
            return self._some(target)
        self._openssl.ERR_clear_error()
        count = int(self._openssl.BIO_read(self._bio, address(target), target.nbytes))
        return count if count > 0 else self._failed(count)

    def _some(self, target: memoryview) -> int:
        self._openssl.ERR_clear_error()
        count = ctypes.c_size_t()
        if self._openssl.SSL_read_ex(self._ssl, address(target), target.nbytes, ctypes.byref(count)) != 1:
            return self._failed(0)
        return count.value

    def _name(self, host: bytes) -> None:
        """Whose certificate it must be."""
        parameters = self._openssl.SSL_get0_param(self._ssl)
        self._openssl.X509_VERIFY_PARAM_set_hostflags(parameters, _NO_PARTIAL_WILDCARDS)
        if _is_address(self._host):
            done = self._openssl.X509_VERIFY_PARAM_set1_ip_asc(parameters, host)
        else:
            done = self._openssl.X509_VERIFY_PARAM_set1_host(parameters, host, len(host))
            done = done and self._openssl.SSL_ctrl(self._ssl, _HOST_NAME, 0, host)
        if not done:
            self.close()
            raise OSError(f"{self._host}: is no name that a certificate could have")

    def _greet(self) -> None:
        self._openssl.ERR_clear_error()
        result = int(self._openssl.SSL_connect(self._ssl))
        verified = int(self._openssl.SSL_get_verify_result(self._ssl))
        if verified != 0:
            why = self._openssl.X509_verify_cert_error_string(verified).decode()
            raise BadResponse(
                f"{self._host}: its certificate is not trusted ({why}); name its authority's file in SSL_CERT_FILE"
            )
        if result != 1:
            self._failed(result)
            raise EOFError("the connection was closed in the middle of the handshake")
        self._greeted = True

    def _failed(self, result: int) -> int:
        """0 when the other side has said that this is the end; else it raises why."""
        number = ctypes.get_errno()
        kind = self._openssl.SSL_get_error(self._ssl, result)
        if kind == _ERROR_ZERO_RETURN:
            return 0
        if kind in (_ERROR_WANT_READ, _ERROR_WANT_WRITE):
            raise BlockingIOError("nothing came in time")
        if kind == _ERROR_SSL:
            raise OSError(f"TLS: {_reason(self._openssl)}")
        if number:
            raise OSError(number, os.strerror(number))
        raise EOFError("the connection was closed")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _reason(openssl: ctypes.CDLL) -> str:
    """The first of this thread's errors; the rest are forgotten."""
    text = ctypes.create_string_buffer(256)
    openssl.ERR_error_string_n(openssl.ERR_get_error(), text, len(text))
    openssl.ERR_clear_error()
    return text.value.decode(errors="replace")
