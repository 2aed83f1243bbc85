"""A folder on this machine, pinned by inode, time and size."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from coldstream.errors import AccessDenied, ObjectNotFound
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores.store import Interrupted, OnLanded, Pin
from coldstream.weights.transfer.answers import changed, denied
from coldstream.weights.transfer.memory import steps
from coldstream.weights.transfer.readers import Readers

# What the kernel adds to the name of an open file that has none any more (proc_pid_fd(5)).
_DELETED = " (deleted)"


class LocalStore:
    """Regular files. Links are followed within the folder; from a snapshot of the Hugging Face cache into `blobs/`."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self._readers = Readers()
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

    async def read_into(self, pin: Pin, start: int, target: memoryview, landed: OnLanded) -> None:
        """See `Store.read_into`."""
        reading = _Reading(self.location.child(pin.name), self._roots, pin, start, target, landed)
        await self._readers.run(reading.run, reading.abort)

    def close_idle(self) -> None:
        """See `Store.close_idle`."""
        self._readers.close()

    def _path(self, name: str) -> Path:
        return Path(self.location.path) / name


class _Reading:
    def __init__(
        self,
        where: Location,
        roots: tuple[Path, ...],
        pin: Pin,
        start: int,
        target: memoryview,
        landed: OnLanded,
    ) -> None:
        self._where, self._roots, self._pin = where, roots, pin
        self._start, self._target, self._landed = start, target, landed
        self._aborted = False

    def abort(self) -> None:
        """From another thread: end after the step that is being read."""
        self._aborted = True

    def run(self) -> None:
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
            self._read(file)
            self._check_version(file)
        finally:
            os.close(file)

    def _check_place(self, file: int) -> None:
        """Of the file that is open, so that a link cannot be exchanged meanwhile."""
        place = Path(os.readlink(f"/proc/self/fd/{file}"))
        if place.name.endswith(_DELETED):
            raise changed(self._where)
        if not any(place.is_relative_to(root) for root in self._roots):
            raise AccessDenied(
                f"{self._where}: is a link to {place}, outside of the folder, which is not served; copy the file there"
            )

    def _check_version(self, file: int) -> None:
        if self._pin.etag not in (None, _etag(os.fstat(file))):
            raise changed(self._where)

    def _read(self, file: int) -> None:
        position = self._start
        for step in steps(self._target):
            filled = 0
            while filled < step.nbytes:
                if self._aborted:
                    return
                try:
                    count = os.preadv(file, [step[filled:]], position)
                except OSError as exc:
                    raise Interrupted(f"{exc.strerror}") from exc
                if not count:
                    raise changed(self._where)
                self._landed(step[filled : filled + count])
                filled += count
                position += count


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
