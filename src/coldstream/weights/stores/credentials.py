"""A Google access token: from a file of application default credentials, or the metadata server of the machine.

google-auth is imported only for a file; on Cloud Run the metadata server is asked directly.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from coldstream.errors import AccessDenied
from coldstream.weights.stores import http
from coldstream.weights.stores.store import Interrupted

SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"
# Renewed this long before it expires.
MARGIN = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Token:
    """An access token and the moment when it expires (UTC)."""

    value: str
    expires_at: datetime


class TokenSource(Protocol):
    """Where a fresh token comes from."""

    async def fetch(self) -> Token:
        """A new token.

        Raises:
            AccessDenied, Interrupted.
        """
        ...


class GoogleToken:
    """A token that is fetched once and renewed in time."""

    def __init__(self, source: TokenSource) -> None:
        self._source = source
        self._token: Token | None = None

    async def value(self) -> str:
        """The bearer token."""
        return (await self._current()).value

    async def _current(self) -> Token:
        if self._token is None or self._token.expires_at - MARGIN < datetime.now(UTC):
            self._token = await self._source.fetch()
        return self._token


def google_token(environ: Mapping[str, str] = os.environ) -> GoogleToken:
    """Application default credentials: GOOGLE_APPLICATION_CREDENTIALS, gcloud's file, else the metadata server.

    Raises:
        AccessDenied: GOOGLE_APPLICATION_CREDENTIALS names a file that is not there.
    """
    named = environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    if named:
        if not Path(named).is_file():
            raise AccessDenied(f"GOOGLE_APPLICATION_CREDENTIALS={named}: no such file; unset it or correct the path")
        return GoogleToken(CredentialsFile(Path(named)))
    config = Path(environ.get("CLOUDSDK_CONFIG") or Path(environ.get("HOME", "/")) / ".config" / "gcloud")
    well_known = config / "application_default_credentials.json"
    if well_known.is_file():
        return GoogleToken(CredentialsFile(well_known))
    return GoogleToken(MetadataServer(environ.get("GCE_METADATA_HOST") or "metadata.google.internal"))


class MetadataServer:
    """The token of the machine's service account.

    https://cloud.google.com/compute/docs/access/authenticate-workloads#applications
    """

    def __init__(self, host: str) -> None:
        self._host = host

    async def fetch(self) -> Token:
        """See `TokenSource.fetch`."""
        url = f"http://{self._host}/computeMetadata/v1/instance/service-accounts/default/token"
        try:
            response = await http.request(url, headers={"Metadata-Flavor": "Google"}, seconds=5.0)
        except http.HttpFailure as exc:
            raise AccessDenied(
                "no Google credentials: no GOOGLE_APPLICATION_CREDENTIALS, no gcloud login, no metadata server;"
                " run: gcloud auth application-default login"
            ) from exc
        if response.status in (429, 500, 502, 503):
            raise Interrupted(f"the metadata server answered HTTP {response.status}", throttled=True)
        if response.status != 200:
            raise AccessDenied(
                f"the metadata server answered HTTP {response.status}; give the machine a service account"
            )
        try:
            grant = json.loads(response.body)
            token, seconds = str(grant["access_token"]), float(grant["expires_in"])
        except (ValueError, KeyError, TypeError) as exc:
            raise AccessDenied(f"the metadata server at {self._host} did not answer a token; is it Google's?") from exc
        return Token(token, datetime.now(UTC) + timedelta(seconds=seconds))


class CredentialsFile:
    """A service account's key, a user's login or a workload identity file, through google-auth."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def fetch(self) -> Token:
        """See `TokenSource.fetch`."""
        return await asyncio.to_thread(self._fetch)

    def _fetch(self) -> Token:
        import urllib3
        from google.auth.exceptions import GoogleAuthError, TransportError
        from google.auth.transport.urllib3 import Request

        try:
            credentials = _load(json.loads(self._path.read_text(encoding="utf-8")))
            credentials.refresh(Request(urllib3.PoolManager(retries=False)))  # type: ignore[no-untyped-call]
        except TransportError as exc:
            raise Interrupted(f"{self._path}: no token: {exc}") from exc
        except (GoogleAuthError, OSError, ValueError, TypeError, KeyError) as exc:
            raise AccessDenied(f"{self._path}: these credentials give no token ({exc}); renew them") from exc
        return Token(credentials.token, credentials.expiry.replace(tzinfo=UTC))


def _load(info: Any) -> Any:
    """Credentials of one of the kinds that gcloud and the console write; nothing else in the file is obeyed."""
    kind = info.get("type") if isinstance(info, dict) else None
    if kind == "service_account":
        from google.oauth2 import service_account

        return service_account.Credentials.from_service_account_info(info, scopes=[SCOPE])  # type: ignore[no-untyped-call]
    if kind == "authorized_user":
        from google.oauth2 import credentials

        # No scopes: a login's token has those that it was granted.
        return credentials.Credentials(  # type: ignore[no-untyped-call]
            None,
            refresh_token=info["refresh_token"],
            client_id=info["client_id"],
            client_secret=info["client_secret"],
            token_uri=info.get("token_uri", "https://oauth2.googleapis.com/token"),
        )
    if kind == "external_account":
        from google.auth import identity_pool

        return identity_pool.Credentials.from_info(info, scopes=[SCOPE])  # type: ignore[no-untyped-call]
    raise ValueError(f"its type is {kind!r}, known are service_account, authorized_user and external_account")
