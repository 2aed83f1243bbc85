"""A location -> the store that holds it. Connects to nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from coldstream.errors import AccessDenied
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores.google import google_store
from coldstream.weights.stores.local import LocalStore
from coldstream.weights.stores.store import Store
from coldstream.weights.transfer.wire import Wire

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

# Seconds without a byte after which a read is cut.
STALL = 10.0


def open_store(location: Location, *, environ: Mapping[str, str] = os.environ, stall: float = STALL) -> Store:
    """The store that holds `location`.

    `STORAGE_EMULATOR_HOST` sends gs:// to an emulator, without credentials; gcloud's
    `CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE` to another endpoint, with them. `SSL_CERT_FILE` names a file of
    certificates that are trusted as well.

    Raises:
        AccessDenied: credentials are configured, but cannot be used.
    """
    authorities = environ.get("SSL_CERT_FILE") or None
    certificates = _certificates(authorities) if authorities else None
    if location.scheme == "file":
        return LocalStore(location)
    if location.scheme == "gs":
        return google_store(location, environ, Wire(stall=stall, authorities=authorities))
    return _through_obstore(location, environ, _client(stall, certificates), stall, authorities)


def _through_obstore(
    location: Location, environ: Mapping[str, str], client: ClientConfig, stall: float, authorities: str | None
) -> Store:
    # Not for gs://, which is on the way to the first byte: 30 ms.
    from obstore.store import AzureStore, HTTPStore, S3Store

    from coldstream.weights.stores.object_store import S3, ObjectStoreAdapter, WebStore

    retry: RetryConfig = {"max_retries": 0}  # the executor decides when to ask again
    if location.scheme in ("http", "https"):
        web = HTTPStore(f"{location.scheme}://{location.bucket}", client_options=client, retry_config=retry)
        return WebStore(location, web, Wire(stall=stall, authorities=authorities, follow=True))
    if location.scheme == "s3":
        bucket = S3Store(location.bucket, client_options=client, retry_config=retry)
        if environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true"):
            return ObjectStoreAdapter(location, bucket)
        return S3(location, bucket, Wire(stall=stall, authorities=authorities))
    return ObjectStoreAdapter(location, AzureStore(location.bucket, client_options=client, retry_config=retry))


def _client(stall: float, certificates: bytes | None) -> ClientConfig:
    options: ClientConfig = {
        "allow_http": True,
        "read_timeout": timedelta(seconds=stall),
        "timeout": timedelta(hours=1),
        "connect_timeout": timedelta(seconds=10),
    }
    if certificates is not None:
        options["root_certificate"] = certificates
    return options


def _certificates(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as exc:
        raise AccessDenied(f"SSL_CERT_FILE={file}: cannot be read ({exc.strerror}); unset it or correct it") from exc
