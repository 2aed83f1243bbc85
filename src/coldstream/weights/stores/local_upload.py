"""A file that is written beside its place and put there when it is whole."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from coldstream.errors import AccessDenied, ObjectChanged, StoreUnavailable
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores.pinning import changed
from coldstream.weights.stores.store import Pin


class LocalUpload:
    """See `Upload`. `look` pins what lies under the name now."""

    def __init__(self, where: Location, size: int, replaces: Pin | None, look: Callable[[], Pin | None]) -> None:
        self._where, self._size, self._replaces, self._look = where, size, replaces, look
        self._path = Path(where.path)
        self._written = 0
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=f".{self._path.name}-", dir=self._path.parent)
        except PermissionError as exc:
            raise AccessDenied(f"{where}: {exc.strerror}; choose a folder that this user may write to") from exc
        except OSError as exc:
            raise StoreUnavailable(f"{where}: {exc.strerror}; choose another folder") from exc
        self._file, self._temporary = os.fdopen(descriptor, "wb"), Path(name)

    async def write(self, data: memoryview) -> None:
        """See `Upload.write`."""
        try:
            await asyncio.to_thread(self._file.write, data)
        except OSError as exc:
            raise StoreUnavailable(f"{self._where}: {exc.strerror}; make room there") from exc
        self._written += data.nbytes

    async def finish(self) -> Pin:
        """See `Upload.finish`."""
        if self._written != self._size:
            raise ValueError(f"{self._where}: {self._written} bytes of {self._size} were written")
        await asyncio.to_thread(self._settle)
        pin = self._look()
        if pin is None:
            raise changed(self._where)
        return pin

    async def abort(self) -> None:
        """See `Upload.abort`."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _settle(self) -> None:
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            os.fchmod(self._file.fileno(), 0o644)
            self._file.close()
            if self._replaces is None:
                os.link(self._temporary, self._path)  # fails where another one lies
                self._temporary.unlink()
            else:
                if self._look() != self._replaces:
                    raise self._taken()
                self._temporary.replace(self._path)
        except FileExistsError as exc:
            raise self._taken() from exc
        except OSError as exc:
            raise StoreUnavailable(f"{self._where}: {exc.strerror}; choose another folder") from exc

    def _taken(self) -> ObjectChanged:
        return ObjectChanged(f"{self._where}: another writer was there meanwhile; run it again")
