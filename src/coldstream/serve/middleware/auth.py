"""API keys: read from the environment or a file, compared in constant time, never logged and never in a message.

A key is asked for before anything of a request but its head is read.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from coldstream.errors import SettingsError, Unauthorized
from coldstream.serve.http.asgi import ASGIApp, Receive, Scope, Send
from coldstream.serve.middleware.errors import HttpError
from coldstream.serve.middleware.record import SCOPE_KEY
from coldstream.settings import ServerSettings


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """The accepted keys, as SHA-256 digests; without any, everybody may ask."""

    digests: tuple[bytes, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, *keys: str) -> ApiKeys:
        """Keys in clear, as an operator wrote them."""
        return cls(tuple(_digest(key) for key in keys))

    @property
    def required(self) -> bool:
        """Whether a request must carry a key."""
        return bool(self.digests)

    @property
    def several(self) -> bool:
        """Whether there are callers who may not trust one another."""
        return len(set(self.digests)) > 1

    def check(self, authorization: str | None, api_key: str | None = None) -> bytes | None:
        """Pass when no key is required or one of ours is given, as `Authorization: Bearer KEY` or `X-Api-Key: KEY`; the
        digest of the key, None where none is required.

        Every key is compared, in time that depends neither on which one matches nor on how far (all are digests of
        one length).

        Raises:
            Unauthorized: no key, or a wrong one.
        """
        if not self.required:
            return None
        given = _digest(_bearer(authorization) or api_key or "")
        matches = [hmac.compare_digest(given, digest) for digest in self.digests]
        if not any(matches):
            raise Unauthorized(
                "this server needs an API key; send it as `Authorization: Bearer KEY`"
                if not (authorization or api_key)
                else "the API key is not one of this server's"
            )
        return given

    def check_headers(self, scope: Scope) -> bytes | None:
        """`check` with what a request's header says.

        Raises:
            Unauthorized: as `check`.
            HttpError: 400, a field of credentials came twice: a proxy before this server may have believed the other.
        """
        names = [name for name, _ in scope["headers"]]
        for field_name in _CREDENTIALS:
            if names.count(field_name) > 1:
                raise HttpError(f"the request has two {field_name.decode().title()} headers; send one", status=400)
        given = {name: value.decode("latin-1") for name, value in scope["headers"] if name in _CREDENTIALS}
        return self.check(given.get(b"authorization"), given.get(b"x-api-key"))


_CREDENTIALS = (b"authorization", b"x-api-key")


class CheckKey:
    """Passes on requests that carry a key of this server's, where keys are configured; raises for the others."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = self._keys.check_headers(scope)
        peer = (scope.get("client") or ("",))[0].encode()
        scope[SCOPE_KEY].caller = peer if key is None else key
        await self._app(scope, receive, send)


def read_keys(settings: ServerSettings, environ: Mapping[str, str]) -> ApiKeys:
    """The keys that the settings name: comma- or line-separated; a line that begins with # is a comment.

    Raises:
        SettingsError: the variable or the file is named, but missing or empty; it never serves without keys instead.
    """
    if settings.api_keys_secret is not None:
        raise SettingsError(
            "server.api_keys_secret is what `coldstream deploy` mounts; to serve here, name api_keys_env or _file"
        )
    texts: list[tuple[str, str]] = []
    if settings.api_keys_env is not None:
        where = f"server.api_keys_env: ${settings.api_keys_env}"
        texts.append((where, environ.get(settings.api_keys_env, "")))
    if settings.api_keys_file is not None:
        where = f"server.api_keys_file: {settings.api_keys_file}"
        texts.append((where, _read(Path(settings.api_keys_file), where)))
    keys: list[str] = []
    for where, text in texts:
        found = _split(text)
        if not found:
            raise SettingsError(f"{where} holds no API key; set it, or remove the setting to serve without keys")
        keys += found
    return ApiKeys.of(*keys)


def _read(path: Path, where: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{where} cannot be read ({type(exc).__name__})") from exc


def _split(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines()]
    items = (item.strip() for line in lines if not line.startswith("#") for item in line.split(","))
    return [item for item in items if item]


def _bearer(authorization: str | None) -> str | None:
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
