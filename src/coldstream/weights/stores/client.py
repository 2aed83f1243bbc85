"""How obstore's HTTP client reaches a store: through which proxy, trusting whom, and when it gives up."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from coldstream.errors import AccessDenied
from coldstream.weights.stores.network import Network

if TYPE_CHECKING:
    from obstore.store import ClientConfig

_CONNECT = timedelta(seconds=10)
# Of one request: as long as the longest read. What counts is the time without a byte.
_LONGEST = timedelta(hours=1)


def client_options(network: Network, url: str, *, stall: float) -> ClientConfig:
    """For the store at `url`; an https one is never left for http, not by a redirect either.

    Args:
        stall: seconds without a byte after which a read is cut.

    Raises:
        AccessDenied: SSL_CERT_FILE cannot be read, or has no certificates.
        SettingsError: a variable that names a proxy does not.
    """
    options: ClientConfig = {
        "allow_http": url.startswith("http:"),
        "read_timeout": timedelta(seconds=stall),
        "timeout": _LONGEST,
        "connect_timeout": _CONNECT,
    }
    if network.authorities:
        options["root_certificate"] = _certificates(network.authorities)
    proxy, excepted = network.proxy_to(url), network.excepted
    if proxy is not None:
        options["proxy_url"], options["proxy_excludes"] = proxy.url, excepted
    elif configured := network.configured(url):
        # Said, because the client would look into the environment itself, where no_proxy means less to it.
        options["proxy_url"] = configured.url
        options["proxy_excludes"] = f"{urlsplit(url).hostname},{excepted}"
    return options


def _certificates(file: str) -> bytes:
    try:
        found = Path(file).read_bytes()
    except OSError as exc:
        raise AccessDenied(f"SSL_CERT_FILE={file}: cannot be read ({exc.strerror}); unset it or correct it") from exc
    if b"-----BEGIN CERTIFICATE-----" not in found:
        raise AccessDenied(f"SSL_CERT_FILE={file}: has no certificates (PEM); unset it or correct it")
    return found
