"""Getting an image from where a request says it is: an https URL or a gs:// object. The dangerous part.

Nothing is fetched that the settings do not name. A URL is https only; its host is resolved once, every address that it
has must be public, and the connection goes to the address that was checked, so that a name cannot change its mind in
between (DNS rebinding). Redirects are followed by hand, each checked like the first. Size and time are capped while
the bytes come in; no proxy, cookie, credential or compression takes part.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urljoin, urlsplit

from coldstream.errors import AccessDenied, InvalidRequest, ObjectNotFound
from coldstream.serve.images.addresses import is_house_name, is_public, matches
from coldstream.settings import ImageSettings

if TYPE_CHECKING:
    import httpx2

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

_MOST_REDIRECTS = 3
_LONGEST_URL = 2048
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


async def resolve_host(host: str, port: int) -> Sequence[str]:
    """All addresses of a host, by the system's resolver, on a thread."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=0, proto=6)
    return list(dict.fromkeys(str(item[4][0]) for item in found))


class ImageFetcher:
    """Fetches what `settings` allow. `resolve`, `is_allowed` and `tls` are the seams to the network."""

    def __init__(
        self,
        settings: ImageSettings,
        *,
        resolve: Resolve = resolve_host,
        is_allowed: Callable[[str], bool] = is_public,
        tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._settings = settings
        self._resolve = resolve
        self._is_allowed = is_allowed
        self._tls = tls
        self._environ = environ

    def check(self, url: str, field: str) -> None:
        """Refuse, before anything is asked of the network, what will not be fetched."""
        if url[:5].lower() == "gs://":
            self._check_bucket(url, field)
        else:
            self._parts(url, field)

    async def fetch(self, url: str, field: str) -> bytes:
        """The bytes of an https URL or a gs:// object.

        Raises:
            InvalidRequest: it is not allowed, not there, too large or too slow; it names the field and the limit.
        """
        seconds = self._settings.fetch_seconds
        read = self._object if url[:5].lower() == "gs://" else self._web
        try:
            async with asyncio.timeout(seconds):
                return await read(url, field)
        except TimeoutError as exc:
            raise InvalidRequest(f"{field}: not fetched within {seconds:g} s, the most allowed", field=field) from exc

    # -- https --

    async def _web(self, url: str, field: str) -> bytes:
        import httpx2

        context = await asyncio.to_thread(self._tls)  # reads the system's certificates
        async with httpx2.AsyncClient(verify=context, trust_env=False, follow_redirects=False, timeout=None) as client:
            for _ in range(_MOST_REDIRECTS + 1):
                parts = self._parts(url, field)
                address = await self._address(parts, field)
                try:
                    body, target = await self._get(client, parts, address, field)
                except (httpx2.HTTPError, OSError, ValueError) as exc:
                    raise _unreachable(field, parts, exc) from exc
                if body is not None:
                    return body
                url = urljoin(url, target)
        raise InvalidRequest(f"{field}: more than {_MOST_REDIRECTS} redirects", field=field)

    def _parts(self, url: str, field: str) -> SplitResult:
        """A URL that may be fetched, as far as its text tells."""
        allowed = self._settings.url_hosts
        if not allowed:
            message = f"{field}: this server fetches no URLs; send the image itself, as base64 or as a data URL"
            raise InvalidRequest(message, field=field)
        if len(url) > _LONGEST_URL:
            raise InvalidRequest(f"{field}: the URL is longer than {_LONGEST_URL} characters", field=field)
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port or 443
        except ValueError as exc:
            raise InvalidRequest(f"{field} is not a URL ({exc})", field=field) from exc
        if parts.scheme.lower() != "https" or not host or not host.isascii():
            raise InvalidRequest(f"{field}: only https URLs with a plain host are fetched", field=field)
        if parts.username is not None or parts.password is not None:
            raise InvalidRequest(f"{field}: a URL with a user name or password is not fetched", field=field)
        if not matches(host, port, allowed) or is_house_name(host):
            message = f"{field}: {host[:100]}:{port} is not among the hosts from which this server fetches images"
            raise InvalidRequest(message, field=field, allowed=allowed)
        return parts

    async def _address(self, parts: SplitResult, field: str) -> str:
        """The one address to connect to; every address of the host must be public."""
        host, port = (parts.hostname or "").rstrip("."), parts.port or 443
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError) as exc:
            raise InvalidRequest(f"{field}: {host[:100]} has no address", field=field) from exc
        if not addresses or not all(map(self._is_allowed, addresses)):
            message = f"{field}: {host[:100]} is not at a public address; only public hosts are fetched from"
            raise InvalidRequest(message, field=field)
        return addresses[0]

    async def _get(
        self, client: httpx2.AsyncClient, parts: SplitResult, address: str, field: str
    ) -> tuple[bytes | None, str]:
        """The body, or where a redirect points to.

        The connection goes to the address; Host and the certificate are the name's.
        """
        host, port = (parts.hostname or "").rstrip("."), parts.port or 443
        numeric = f"[{address}]" if ":" in address else address
        target = parts._replace(scheme="https", netloc=f"{numeric}:{port}", fragment="").geturl()
        headers = {
            "Host": host if port == 443 else f"{host}:{port}",
            "Accept-Encoding": "identity",
            "Accept": "image/*",
        }
        extensions = {"sni_hostname": host}
        async with client.stream("GET", target, headers=headers, extensions=extensions) as response:
            if response.status_code in _REDIRECTS and "location" in response.headers:
                return None, response.headers["location"]
            if response.status_code != 200:
                raise InvalidRequest(f"{field}: {host[:100]} answered HTTP {response.status_code}", field=field)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise InvalidRequest(f"{field}: {host[:100]} sent a compressed body unasked", field=field)
            return await self._body(response, field), ""

    async def _body(self, response: httpx2.Response, field: str) -> bytes:
        declared = response.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared[:20]) > self._settings.max_bytes:
            raise self._too_large(field)
        body = bytearray()
        async for piece in response.aiter_raw():
            body += piece
            if len(body) > self._settings.max_bytes:
                raise self._too_large(field)
        return bytes(body)

    def _too_large(self, field: str) -> InvalidRequest:
        message = f"{field}: larger than {self._settings.max_bytes} bytes, the most for an image here"
        return InvalidRequest(message, field=field)

    # -- gs:// --

    def _check_bucket(self, url: str, field: str) -> tuple[str, str]:
        bucket, _, path = url[5:].partition("/")
        if bucket not in self._settings.buckets:
            message = f"{field}: images are not read from bucket {bucket[:100]!r}"
            raise InvalidRequest(message, field=field, allowed=self._settings.buckets)
        if not path.strip("/") or len(url) > _LONGEST_URL:
            raise InvalidRequest(f"{field}: write gs://{bucket}/folder/image.jpg", field=field)
        return bucket, path.strip("/")

    async def _object(self, url: str, field: str) -> bytes:
        from coldstream.weights.checkpoint.uri import Location
        from coldstream.weights.stores.open_store import open_store
        from coldstream.weights.stores.store import read
        from coldstream.weights.transfer.retry import RetryPolicy, with_retries

        bucket, path = self._check_bucket(url, field)
        folder, _, name = path.rpartition("/")
        store = open_store(Location("gs", bucket, folder), environ=self._environ)
        policy = RetryPolicy(deadline=self._settings.fetch_seconds)
        try:
            pin = await with_retries(lambda: store.pin(name), policy, where=url)
            if pin is None:
                raise InvalidRequest(f"{field}: there is no object {url[:200]}", field=field)
            if pin.size > self._settings.max_bytes:
                raise self._too_large(field)
            return bytes(await with_retries(lambda: read(store, pin, 0, pin.size), policy, where=url))
        except ObjectNotFound as exc:
            raise InvalidRequest(f"{field}: there is no object {url[:200]}", field=field) from exc
        except AccessDenied as exc:
            raise InvalidRequest(f"{field}: this server may not read {url[:200]}", field=field) from exc
        finally:
            store.close_idle()


def _unreachable(field: str, parts: SplitResult, exc: Exception) -> InvalidRequest:
    # The reason stays short: what a stranger's port answered is not the caller's to know.
    what = "certificate is not valid" if isinstance(exc.__cause__, ssl.SSLError) else "could not be read"
    return InvalidRequest(f"{field}: https://{(parts.hostname or '')[:100]} {what}", field=field)
