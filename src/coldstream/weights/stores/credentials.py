"""A Google access token that is kept and renewed in time, and where one comes from on Google's own machines."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from coldstream.errors import AccessDenied
from coldstream.weights.stores import http
from coldstream.weights.stores.network import Network
from coldstream.weights.stores.store import Interrupted

SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"
# Renewed this long before it expires.
MARGIN = timedelta(minutes=5)
# Seconds for which a metadata server that should be there is waited for: a new pod of GKE gets its own after it began.
PATIENCE = 20.0
_BETWEEN = 0.5
_LIMIT = 1024 * 1024


class NoCredentials(AccessDenied):
    """There are none on this machine: an object may still be public."""


@dataclass(frozen=True, slots=True)
class Token:
    """An access token and the moment when it expires (UTC)."""

    value: str
    expires_at: datetime


class TokenSource(Protocol):
    """Where a fresh token comes from."""

    @property
    def quota_project(self) -> str | None:
        """The project that pays for what is read, when the credentials name one."""
        ...

    async def fetch(self, patience: float) -> Token:
        """A new token; one that may come later is waited for, for `patience` seconds.

        Raises:
            NoCredentials, AccessDenied, Interrupted.
        """
        ...


class GoogleToken:
    """A token that is fetched once and renewed in time. May be used by several event loops in turn."""

    def __init__(self, source: TokenSource) -> None:
        self._source = source
        self._token: Token | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._fetching = asyncio.Lock()

    @property
    def quota_project(self) -> str | None:
        """See `TokenSource.quota_project`."""
        return self._source.quota_project

    async def value(self, *, patience: float = 0.0) -> str:
        """The bearer token. Many may ask at once: one fetches.

        Raises:
            NoCredentials, AccessDenied, Interrupted.
        """
        async with self._turn():
            if self._token is None or self._token.expires_at - MARGIN < datetime.now(UTC):
                self._token = await self._source.fetch(patience)
            return self._token.value

    def forget(self, value: str) -> None:
        """The store refused this token: the next one is fetched."""
        if self._token is not None and self._token.value == value:
            self._token = None

    def _turn(self) -> asyncio.Lock:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # a lock belongs to the loop that first waited for it
            self._loop, self._fetching = loop, asyncio.Lock()
        return self._fetching


class MetadataServer:
    """The token of the machine's service account.

    https://cloud.google.com/compute/docs/access/authenticate-workloads#applications
    """

    quota_project: str | None = None

    def __init__(self, host: str, *, is_expected: bool) -> None:
        self._host = host
        self._is_expected = is_expected

    async def fetch(self, patience: float = 0.0) -> Token:
        """See `TokenSource.fetch`; where none is expected, there is nothing to wait for."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + (patience if self._is_expected else 0.0)
        while True:
            try:
                return await self._ask()
            except NoCredentials:
                if clock() >= deadline:
                    raise
            await asyncio.sleep(min(_BETWEEN, max(0.0, deadline - clock())))

    async def _ask(self) -> Token:
        url = f"http://{self._host}/computeMetadata/v1/instance/service-accounts/default/token"
        direct = Network({})
        headers = {"Metadata-Flavor": "Google"}
        try:
            response = await http.request(url, headers=headers, seconds=5.0, network=direct, limit=_LIMIT)
        except http.HttpFailure as exc:
            raise NoCredentials(
                "no Google credentials: no GOOGLE_APPLICATION_CREDENTIALS, no gcloud login, no metadata server;"
                " run: gcloud auth application-default login"
            ) from exc
        if response.status in (429, 500, 502, 503):
            raise Interrupted(f"the metadata server answered HTTP {response.status}", throttled=True)
        if response.status != 200:
            raise NoCredentials(
                f"the metadata server answered HTTP {response.status}; give the machine a service account"
            )
        try:
            grant = json.loads(response.body)
            token, seconds = str(grant["access_token"]), float(grant["expires_in"])
        except (ValueError, KeyError, TypeError) as exc:
            raise AccessDenied(f"the metadata server at {self._host} did not answer a token; is it Google's?") from exc
        return Token(token, datetime.now(UTC) + timedelta(seconds=seconds))
