"""A location -> the store that holds it. Connects to nothing."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from coldstream.errors import AccessDenied
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores.client import client_options
from coldstream.weights.stores.credentials import PATIENCE
from coldstream.weights.stores.google import google_store
from coldstream.weights.stores.local import LocalStore
from coldstream.weights.stores.network import Network
from coldstream.weights.stores.store import Store
from coldstream.weights.stores.web import WebStore

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Store

# Seconds without a byte after which a read is cut.
STALL = 10.0


def open_store(
    location: Location,
    *,
    environ: Mapping[str, str] = os.environ,
    stall: float = STALL,
    patience: float = PATIENCE,
) -> Store:
    """The store that holds `location`.

    `STORAGE_EMULATOR_HOST` sends gs:// to an emulator, without credentials; gcloud's
    `CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE` to another endpoint, with them. `SSL_CERT_FILE` names a file of
    certificates that are trusted as well; HTTPS_PROXY, HTTP_PROXY and NO_PROXY are obeyed.

    Args:
        stall: seconds without a byte after which a read is cut.
        patience: seconds for which Google credentials that may come later are waited for.

    Raises:
        AccessDenied: credentials are configured, but cannot be used.
    """
    network = Network(environ)
    if location.scheme == "file":
        return LocalStore(location)
    if location.scheme == "gs":
        return google_store(location, environ, stall=stall, patience=patience)
    if location.scheme in ("http", "https"):
        return WebStore(location, client_options(network, str(location), stall=stall), network)
    client = client_options(network, _endpoint(location, environ), stall=stall)
    return _through_obstore(location, environ, client)


def _endpoint(location: Location, environ: Mapping[str, str]) -> str:
    """Where a bucket or container is, as far as the way there depends on it."""
    names, usual = _ENDPOINTS[location.scheme]
    named = next((environ[name] for name in names if environ.get(name)), None)
    if location.scheme == "az" and environ.get("AZURE_STORAGE_USE_EMULATOR", "").lower() in ("1", "true"):
        return named or "http://127.0.0.1:10000"
    return named or usual


# The variables that obstore knows, and where it goes without.
_ENDPOINTS = {
    "az": (("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"), "https://account.blob.core.windows.net"),
    "s3": (("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"), "https://bucket.s3.amazonaws.com"),
}


def _through_obstore(location: Location, environ: Mapping[str, str], client: ClientConfig) -> Store:
    # Not for gs://, which is on the way to the first byte: 30 ms.
    from obstore.exceptions import BaseError
    from obstore.store import AzureStore, S3Store

    from coldstream.weights.stores.object_store import ObjectStoreAdapter

    retry: RetryConfig = {"max_retries": 0}  # the executor decides when to ask again
    try:
        if location.scheme == "az":
            container = AzureStore(location.bucket, client_options=client, retry_config=retry)
            public = AzureStore(location.bucket, client_options=client, retry_config=retry, skip_signature=True)
            return ObjectStoreAdapter(location, container, public)
        bucket = _s3(location, environ, client, retry)
        unsigned = S3Store(location.bucket, client_options=client, retry_config=retry, skip_signature=True)
    except (BaseError, ValueError) as exc:
        raise AccessDenied(f"{location}: {_first_line(exc)}; {_CONFIGURED[location.scheme]}") from exc
    return ObjectStoreAdapter(location, bucket, unsigned)


_CONFIGURED = {
    "az": "name the account in AZURE_STORAGE_ACCOUNT_NAME, and its AZURE_STORAGE_ACCOUNT_KEY or a SAS token",
    "s3": "look at the AWS_ variables",
}


def _s3(location: Location, environ: Mapping[str, str], client: ClientConfig, retry: RetryConfig) -> S3Store:
    """With the keys that the environment has; those of a profile, SSO among them, are boto3's to find."""
    from obstore.store import S3Store

    if environ.get("AWS_ACCESS_KEY_ID") or not _has_profile(environ):
        return S3Store(location.bucket, client_options=client, retry_config=retry)
    if importlib.util.find_spec("boto3") is None:
        profile = environ.get("AWS_PROFILE") or "default"
        raise AccessDenied(
            f"{location}: the profile {profile!r} of your AWS configuration is read by boto3, which is not installed;"
            " run: pip install 'coldstream[aws]', or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return _of_profile(location, environ, client, retry)


def _has_profile(environ: Mapping[str, str]) -> bool:
    if environ.get("AWS_PROFILE"):
        return True
    given = environ.get("AWS_SHARED_CREDENTIALS_FILE")
    return Path(given or Path(environ.get("HOME", "/")) / ".aws" / "credentials").is_file()


def _of_profile(location: Location, environ: Mapping[str, str], client: ClientConfig, retry: RetryConfig) -> S3Store:
    import boto3.session
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Store

    try:
        session = boto3.session.Session(profile_name=environ.get("AWS_PROFILE"))  # type: ignore[no-untyped-call]
        region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or session.region_name
        provider = Boto3CredentialProvider(session)
    except (BotoCoreError, ValueError) as exc:
        raise AccessDenied(f"{location}: {exc}; run: aws sso login, or correct ~/.aws") from exc
    return S3Store(
        location.bucket,
        region=region or "us-east-1",
        credential_provider=provider,
        client_options=client,
        retry_config=retry,
    )


def _first_line(exc: Exception) -> str:
    return str(exc).partition("\n")[0]
