"""A model that still loads gives way to one that answers.

On Linux niceness belongs to a thread and is inherited by the threads that it starts (setpriority(2), NOTES). Once a
model is ready, everything that works for the loading of the others is made nicer, so that tokens keep their pace on a
machine with few cores; where the cores are idle, nothing is lost.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

_NICER = 10
# The store's runtime (tokio) carries bytes for every model; whoever is loading shares its threads.
_RUNTIME = ("tokio", "reqwest")


def give_way(threads: tuple[threading.Thread, ...]) -> None:
    """Make these threads, and the object store's runtime, nicer. Raising niceness needs no privilege."""
    wanted = {thread.native_id for thread in threads if thread.native_id is not None}
    for task in Path("/proc/self/task").iterdir():
        number = int(task.name)
        with contextlib.suppress(OSError):  # the thread ended meanwhile
            if number in wanted or (task / "comm").read_text().startswith(_RUNTIME):
                os.setpriority(os.PRIO_PROCESS, number, _NICER)
