"""How this process reaches hosts: through which proxy, and whose certificates it trusts besides the system's.

SSL_CERT_FILE names certificates. Proxies are named as for curl: https_proxy, http_proxy, all_proxy and no_proxy, in
small letters or capitals. A tunnel (CONNECT; RFC 9110, section 9.3.6) carries https; plain http is asked of the proxy
itself.
"""

from __future__ import annotations

import ipaddress
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from coldstream.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Proxy:
    """Where it listens, and what it wants to see in Proxy-Authorization; never shown."""

    host: str
    port: int
    authorization: str | None = None
    # As the address had it, quoted, with its @; or "".
    user: str = ""

    def __repr__(self) -> str:
        return f"the proxy {self.host}:{self.port}"

    @property
    def url(self) -> str:
        """Its address with user and password, for a client that wants them so; never to be shown."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{self.user}{host}:{self.port}"

    @property
    def headers(self) -> Mapping[str, str]:
        """What a request to the proxy itself has to carry."""
        return {"Proxy-Authorization": self.authorization} if self.authorization else {}

    def connect(self, host: str, port: int) -> bytes:
        """The request for a tunnel."""
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        lines = [f"CONNECT {where} HTTP/1.1", f"Host: {where}", *(f"{k}: {v}" for k, v in self.headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


@dataclass(frozen=True, slots=True)
class Network:
    """As a process's environment describes it; none has no proxy."""

    environ: Mapping[str, str]

    @property
    def authorities(self) -> str | None:
        """A file of certificates."""
        return self.environ.get("SSL_CERT_FILE") or None

    def proxy_to(self, url: str) -> Proxy | None:
        """The proxy for a URL; None: go there directly, as always to this machine itself.

        Raises:
            SettingsError: the variable is no http:// address.
        """
        parts = urlsplit(url)
        host = parts.hostname or ""
        if _is_here(host) or _is_excepted(host, parts.port, self._get("no_proxy")):
            return None
        return self.configured(url)

    def configured(self, url: str) -> Proxy | None:
        """The proxy for URLs of its scheme, whatever its host.

        Raises:
            SettingsError: the variable is no http:// address.
        """
        name = f"{urlsplit(url).scheme}_proxy"
        value = self._get(name) or self._get("all_proxy")
        return _parsed(value, name) if value else None

    @property
    def excepted(self) -> str:
        """Hosts that are reached directly, separated by commas: this machine and those of no_proxy."""
        return ",".join(filter(None, ("localhost,127.0.0.0/8,::1", self._get("no_proxy"))))

    def _get(self, name: str) -> str:
        return self.environ.get(name) or self.environ.get(name.upper()) or ""


def _parsed(value: str, name: str) -> Proxy:
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        port = parts.port or 80
    except ValueError as exc:
        raise SettingsError(f"{name}: is not an address ({exc}); write http://host:port") from exc
    if parts.scheme != "http" or not parts.hostname:
        raise SettingsError(f"{name}: a proxy is reached over http; write http://host:port")
    user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    basic = f"Basic {b64encode(user.encode()).decode()}" if parts.username is not None else None
    return Proxy(parts.hostname, port, basic, f"{parts.netloc.rpartition('@')[0]}@" if basic else "")


def _is_here(host: str) -> bool:
    return host == "localhost" or _is_in_network(host, "127.0.0.0/8") or host == "::1"


def _is_excepted(host: str, port: int | None, no_proxy: str) -> bool:
    entries = (entry.strip().lower() for entry in no_proxy.split(","))
    return any(_excepts(entry, host, port) for entry in entries if entry)


def _excepts(entry: str, host: str, port: int | None) -> bool:
    """`*`, a host and all below it, either with a port; an address or a network of them."""
    if entry == "*":
        return True
    if _is_in_network(host, entry):
        return True
    name, colon, wanted = entry.rpartition(":")
    if colon and wanted.isdecimal() and ":" not in name:
        if port is not None and port != int(wanted):
            return False
        entry = name
    entry = entry.removeprefix("*").removeprefix(".").strip("[]")
    return host == entry or host.endswith(f".{entry}")


def _is_in_network(host: str, entry: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
