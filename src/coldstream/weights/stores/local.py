"""A folder on this machine, pinned by inode, time and size."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from coldstream.errors import AccessDenied, ObjectNotFound
from coldstream.host.files import place_of
from coldstream.host.memory import allocate
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores.pinning import changed
from coldstream.weights.stores.refusal import denied
from coldstream.weights.stores.store import Interrupted, Pin

if TYPE_CHECKING:
    from coldstream.weights.stores.local_upload import LocalUpload

# More than reads can run at once, second reads included; and bytes after which one looks whether it is still wanted.
_THREADS = 128
_STEP = 4 * 1024 * 1024


class LocalStore:
    """Regular files. Links are followed within the folder; from a snapshot of the Hugging Face cache into `blobs/`."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self._threads: ThreadPoolExecutor | None = None
        self._roots = _roots(location)

    async def list(self) -> Mapping[str, Pin]:
        """See `Store.list`."""
        try:
            with os.scandir(self.location.path) as entries:
                return {entry.name: _pinned(entry.name, entry.stat()) for entry in entries if entry.is_file()}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except PermissionError as exc:
            raise denied(self.location, 403) from exc

    async def pin(self, name: str) -> Pin | None:
        """See `Store.pin`."""
        try:
            status = os.stat(self._path(name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError as exc:
            raise denied(self.location.child(name), 403) from exc
        return _pinned(name, status) if stat.S_ISREG(status.st_mode) else None

    async def read_range(
        self, pin: Pin, start: int, end: int, *, piecewise: bool = False
    ) -> AsyncGenerator[memoryview, None]:
        """See `Store.read_range`. The system copies a file's bytes; no transport has to hand them over."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="coldstream-read")
        reading = _Reading(self.location.child(pin.name), self._roots, pin, start, end)
        try:
            yield await asyncio.get_running_loop().run_in_executor(self._threads, reading.run)
        finally:
            reading.aborted = True

    async def begin_upload(self, name: str, size: int, *, replaces: Pin | None) -> LocalUpload:
        """See `WritableStore.begin_upload`."""
        from coldstream.weights.stores.local_upload import LocalUpload

        where = self.location.child(name)

        def look() -> Pin | None:
            path = Path(where.path)
            return _pinned(name, path.stat()) if path.is_file() else None

        return LocalUpload(where, size, replaces, look)

    def close_idle(self) -> None:
        """See `Store.close_idle`; waits for reads that were cancelled."""
        if self._threads is not None:
            self._threads.shutdown(wait=True)
            self._threads = None

    def _path(self, name: str) -> Path:
        return Path(self.location.path) / name


class _Reading:
    def __init__(self, where: Location, roots: tuple[Path, ...], pin: Pin, start: int, end: int) -> None:
        self._where, self._roots, self._pin = where, roots, pin
        self._start, self._end = start, end
        self.aborted = False

    def run(self) -> memoryview:
        try:
            file = os.open(self._where.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as exc:
            raise ObjectNotFound(f"{self._where}: no such file; check the path") from exc
        except PermissionError as exc:
            raise denied(self._where, 403) from exc
        except OSError as exc:
            raise Interrupted(f"{exc.strerror}") from exc
        try:
            self._check_place(file)
            self._check_version(file)
            data = self._read(file)
            self._check_version(file)
        finally:
            os.close(file)
        return data

    def _check_place(self, file: int) -> None:
        """Of the file that is open, so that a link cannot be exchanged meanwhile."""
        place = place_of(file)
        if place is None:
            raise changed(self._where)
        if not any(place.is_relative_to(root) for root in self._roots):
            raise AccessDenied(
                f"{self._where}: is a link to {place}, outside of the folder, which is not served; copy the file there"
            )

    def _check_version(self, file: int) -> None:
        if self._pin.etag not in (None, _etag(os.fstat(file))):
            raise changed(self._where)

    def _read(self, file: int) -> memoryview:
        target = allocate(self._end - self._start)
        filled = 0
        while filled < target.nbytes and not self.aborted:
            try:
                count = os.preadv(file, [target[filled : filled + _STEP]], self._start + filled)
            except OSError as exc:
                raise Interrupted(f"{exc.strerror}") from exc
            if not count:
                raise changed(self._where)
            filled += count
        return target.toreadonly()


def _roots(location: Location) -> tuple[Path, ...]:
    """Where a file of the folder may really lie.

    https://huggingface.co/docs/huggingface_hub/guides/manage-cache: `snapshots/REVISION` links to `blobs`.
    """
    folder = Path(location.path).resolve()
    cache = folder.parents[1] if len(folder.parents) > 1 and folder.parent.name == "snapshots" else None
    return (folder, cache / "blobs") if cache else (folder,)


def _pinned(name: str, status: os.stat_result) -> Pin:
    return Pin(name, status.st_size, etag=_etag(status))


def _etag(status: os.stat_result) -> str:
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"
