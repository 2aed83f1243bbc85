"""`gs://bucket/folder` -> Location. Pure."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from typing import Literal, cast
from urllib.parse import quote, unquote, urlsplit

from coldstream.errors import LocationError

Scheme = Literal["gs", "s3", "az", "https", "http", "file"]

_SCHEMES = ("gs", "s3", "az", "https", "http", "file")
_HUB = ("huggingface.co", "hf.co")
_EXAMPLES = "gs://bucket/model, s3://bucket/model, az://container/model, https://host/model or a folder"


@dataclass(frozen=True, slots=True)
class Location:
    """A folder or an object. `bucket` is the bucket, container or host ("" for files).

    `path` has no slash at either end, except for files, where it is absolute. It is unquoted; `str()` quotes it.
    """

    scheme: Scheme
    bucket: str
    path: str

    @classmethod
    def parse(cls, text: str) -> Location:
        """A URI or a plain path.

        Raises:
            LocationError: the scheme is not supported, the bucket is missing, or a folder on the way has no name.
        """
        if not text.strip():
            raise LocationError(f"an empty URI; write {_EXAMPLES}")
        if "\0" in text:
            raise LocationError(f"{text!r}: a URI cannot hold a zero byte")
        if "://" not in text:
            if text.partition(":")[0] in _SCHEMES and ":" in text:
                raise LocationError(f"{text}: two slashes belong behind the colon; write {_EXAMPLES}")
            return cls("file", "", os.path.abspath(os.path.expanduser(text)))
        scheme, _, rest = text.partition("://")
        if scheme == "hf":
            raise LocationError(f"{text}: nothing is streamed from the Hugging Face Hub; {how_to_get(rest)}")
        if scheme not in _SCHEMES:
            raise LocationError(f"{text}: the scheme {scheme!r} is not supported; write {_EXAMPLES}")
        if scheme == "file":
            return cls("file", "", _file_path(text, rest))
        if scheme in ("http", "https"):
            return _web(text, cast(Scheme, scheme))
        bucket, _, path = rest.partition("/")
        if not bucket:
            raise LocationError(f"{text}: no bucket; write {scheme}://bucket/folder")
        if "" in path.removesuffix("/").split("/") and path:
            clean = "/".join(part for part in path.split("/") if part)
            raise LocationError(
                f"{text}: a slash too many; write {scheme}://{bucket}/{clean}, and if the objects' names really hold an"
                " empty folder, copy them to names without one"
            )
        return cls(cast(Scheme, scheme), bucket, path.removesuffix("/"))

    def child(self, name: str) -> Location:
        """The object `name` in this folder."""
        return replace(self, path=f"{self.path.rstrip('/')}/{name}" if self.path else name)

    def __str__(self) -> str:
        if self.scheme == "file":
            return f"file://{self.path}"
        path = quote(self.path) if self.scheme in ("http", "https") else self.path
        return f"{self.scheme}://{self.bucket}/{path}".rstrip("/")


def how_to_get(model: str) -> str:
    """The way from a model's id on the Hugging Face Hub, `org/name` or `org/name@revision`, to what can be served."""
    name, _, revision = model.strip("/").partition("@")
    folder = name.rpartition("/")[2]
    at = f" --revision {revision}" if revision else ""
    return (
        f"`hf download {name}{at} --local-dir {folder}` fetches it; then serve ./{folder}, or copy it into a bucket "
        f"(`gcloud storage cp -r {folder} gs://BUCKET`) and serve gs://BUCKET/{folder}"
    )


def hub_id(location: Location) -> str | None:
    """`org/name`, where that is what a plain path looks like and there is no such folder."""
    if location.scheme != "file":
        return None
    name = os.path.relpath(location.path)
    is_like_it = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name, re.ASCII) is not None
    return name if is_like_it and not os.path.lexists(location.path) else None


def _file_path(text: str, rest: str) -> str:
    if not rest.startswith("/"):
        raise LocationError(f"{text}: a file URI has three slashes and an absolute path: file:///folder/model")
    return os.path.normpath(rest)


def _web(text: str, scheme: Scheme) -> Location:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as exc:
        raise LocationError(f"{text}: is not a URL ({exc})") from exc
    if not parts.hostname:
        raise LocationError(f"{text}: no host; write {scheme}://host/folder")
    if parts.hostname in _HUB and "/resolve/" not in parts.path:
        raise LocationError(f"{text}: a page of the Hugging Face Hub is no folder of files; {how_to_get(parts.path)}")
    if parts.username is not None or parts.password is not None:
        raise LocationError(f"{scheme}://{parts.hostname}: a URL with a password in it would end in logs; remove it")
    if parts.query or parts.fragment:
        raise LocationError(f"{text}: a folder's URL has no '?' or '#'")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return Location(scheme, host if port is None else f"{host}:{port}", unquote(parts.path).strip("/"))
