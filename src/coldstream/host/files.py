"""Where an open file really lies, whatever links led to it."""

from __future__ import annotations

import os
from pathlib import Path

# What the kernel adds to the name of an open file that has none any more (proc_pid_fd(5)).
_DELETED = " (deleted)"


def place_of(descriptor: int) -> Path | None:
    """The file's own path, which no exchanged link can change any more; None when it was removed."""
    place = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
    return None if place.name.endswith(_DELETED) else place
