"""Which Google credentials this machine has; a file of them -> an access token, through google-auth, over our own HTTP.

Every kind that gcloud and the console write: a service account's key, a login, one that impersonates an account,
workload and workforce identity (from a file, a URL, AWS or a program).
https://cloud.google.com/docs/authentication/application-default-credentials
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any

from coldstream.errors import AccessDenied
from coldstream.weights.stores import http
from coldstream.weights.stores.credentials import SCOPE, GoogleToken, MetadataServer, Token
from coldstream.weights.stores.network import Network
from coldstream.weights.stores.store import Interrupted

_AWS = "urn:ietf:params:aws:token-type:aws4_request"
_TOKEN_URI = "https://oauth2.googleapis.com/token"  # noqa: S105  an address
# Where a metadata server should be: Cloud Run's services and jobs, Kubernetes.
_HOSTED = ("GCE_METADATA_HOST", "K_SERVICE", "CLOUD_RUN_JOB", "KUBERNETES_SERVICE_HOST")
# Of a token's answer.
_LIMIT = 1024 * 1024


def google_token(environ: Mapping[str, str] = os.environ) -> GoogleToken:
    """Application default credentials: GOOGLE_APPLICATION_CREDENTIALS, gcloud's file, else the metadata server.

    Raises:
        AccessDenied: GOOGLE_APPLICATION_CREDENTIALS names a file that is not there.
    """
    named = environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    if named:
        if not Path(named).is_file():
            raise AccessDenied(f"GOOGLE_APPLICATION_CREDENTIALS={named}: no such file; unset it or correct the path")
        return GoogleToken(CredentialsFile(Path(named), Network(environ)))
    config = Path(environ.get("CLOUDSDK_CONFIG") or Path(environ.get("HOME", "/")) / ".config" / "gcloud")
    well_known = config / "application_default_credentials.json"
    if well_known.is_file():
        return GoogleToken(CredentialsFile(well_known, Network(environ)))
    host = environ.get("GCE_METADATA_HOST") or "metadata.google.internal"
    return GoogleToken(MetadataServer(host, is_expected=any(environ.get(name) for name in _HOSTED)))


class CredentialsFile:
    """google-auth is imported, and the file read, when the first token is wanted."""

    def __init__(self, path: Path, network: Network) -> None:
        self._path = path
        self._network = network

    @property
    def quota_project(self) -> str | None:
        """Who pays, as the file has it."""
        try:
            info = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # said when a token is wanted
            return None
        return info.get("quota_project_id") if isinstance(info, dict) else None

    async def fetch(self, patience: float = 0.0) -> Token:
        """See `TokenSource.fetch`."""
        return await asyncio.to_thread(self._fetch)

    def _fetch(self) -> Token:
        from google.auth.exceptions import GoogleAuthError, TransportError

        try:
            credentials = _load(json.loads(self._path.read_text(encoding="utf-8")))
            credentials.refresh(_Transport(self._network))
        except TransportError as exc:
            raise Interrupted(f"{self._path}: no token: {exc}") from exc
        except (GoogleAuthError, OSError, ValueError, TypeError, KeyError, AttributeError) as exc:
            raise AccessDenied(f"{self._path}: these credentials give no token ({exc}); correct or renew them") from exc
        return Token(credentials.token, credentials.expiry.replace(tzinfo=UTC))


@dataclass(frozen=True, slots=True)
class _Answer:
    """What google-auth reads of an answer (google.auth.transport.Response)."""

    status: int
    headers: Mapping[str, str]
    data: bytes


@dataclass(frozen=True, slots=True)
class _Transport:
    """google.auth.transport.Request; called on threads without a loop."""

    network: Network

    def __call__(
        self,
        url: str,
        method: str = "GET",
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        **_: Any,
    ) -> _Answer:
        from google.auth.exceptions import TransportError

        text = body.encode() if isinstance(body, str) else body or b""
        sent = http.request(
            url,
            method=method,
            headers=headers,
            body=text,
            seconds=timeout or http.TIMEOUT,
            network=self.network,
            limit=_LIMIT,
        )
        try:
            response = asyncio.run(sent)
        except http.HttpFailure as exc:
            raise TransportError(str(exc)) from exc  # type: ignore[no-untyped-call]
        return _Answer(response.status, response.headers, response.body)


def _load(info: Any) -> Any:
    """Credentials of the kind that the file says it is."""
    kind = info.get("type") if isinstance(info, dict) else None
    known = _KINDS.get(kind or "")
    if known is None:
        raise ValueError(f"its type is {kind!r}, known are {', '.join(_KINDS)}")
    return known(info)


def _service_account(info: dict[str, Any]) -> Any:
    from google.oauth2 import service_account

    return service_account.Credentials.from_service_account_info(info, scopes=[SCOPE])  # type: ignore[no-untyped-call]


def _authorized_user(info: dict[str, Any]) -> Any:
    from google.oauth2 import credentials

    # No scopes: a login's token has those that it was granted.
    return credentials.Credentials(  # type: ignore[no-untyped-call]
        None,
        refresh_token=info["refresh_token"],
        client_id=info["client_id"],
        client_secret=info["client_secret"],
        token_uri=info.get("token_uri", _TOKEN_URI),
    )


def _impersonated(info: dict[str, Any]) -> Any:
    from google.auth import impersonated_credentials

    url = str(info["service_account_impersonation_url"])
    account = url.rpartition("/")[2].removesuffix(":generateAccessToken")
    return impersonated_credentials.Credentials(  # type: ignore[no-untyped-call]
        _load(info["source_credentials"]),
        account,
        [SCOPE],
        info.get("delegates"),
        iam_endpoint_override=url,
    )


def _external_account(info: dict[str, Any]) -> Any:
    from google.auth import aws, identity_pool, pluggable

    if info.get("subject_token_type") == _AWS:
        return aws.Credentials.from_info(info, scopes=[SCOPE])  # type: ignore[no-untyped-call]
    if "executable" in (info.get("credential_source") or {}):
        return pluggable.Credentials.from_info(info, scopes=[SCOPE])  # type: ignore[no-untyped-call]
    return identity_pool.Credentials.from_info(info, scopes=[SCOPE])  # type: ignore[no-untyped-call]


def _workforce(info: dict[str, Any]) -> Any:
    from google.auth import external_account_authorized_user

    return external_account_authorized_user.Credentials.from_info(info)  # type: ignore[no-untyped-call]


_KINDS = {
    "service_account": _service_account,
    "authorized_user": _authorized_user,
    "impersonated_service_account": _impersonated,
    "external_account": _external_account,
    "external_account_authorized_user": _workforce,
}
