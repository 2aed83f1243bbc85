"""A model that still loads gives way to one that answers.

On Linux niceness and scheduling policy belong to a thread and are inherited by the threads that it starts
(setpriority(2), NOTES). Once a model is ready, everything that works for the loading of the others is made nicer, so
that tokens keep their pace on a machine with few cores; where the cores are idle, nothing is lost. It cannot be taken
back without a privilege, so the engine of a model that loads must not be started by one of these threads.

Threads are known by their kernel name (proc_pid_comm(5)), which a thread inherits as well: torch's own workers, which
convert weights for the thread that called it, carry the name of that thread.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

# As nice as can be: with 10, an answering model lost half of its pace in the second that another one took to load.
_NICER = 19
# The runtime (tokio) of the stores that are read through obstore carries bytes for every model.
_RUNTIME = ("tokio", "reqwest")
_LONGEST = 15
"""Bytes of a thread's kernel name, by TASK_COMM_LEN."""


def loader_name(number: int) -> str:
    """The kernel name of the threads that load the model of that number."""
    return f"load-{number}"[:_LONGEST]


def rename_thread(name: str) -> None:
    """Give the calling thread, and those that it will start, this kernel name."""
    with contextlib.suppress(OSError):  # a sandbox may have no such file; then no thread gives way
        Path("/proc/thread-self/comm").write_text(name, encoding="ascii")


def give_way(names: Iterable[str]) -> None:
    """Make the threads of these kernel names, and the object store's runtime, nicer. This needs no privilege."""
    wanted = frozenset(names)
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # the thread ended meanwhile
            name = (task / "comm").read_text().rstrip("\n")
            if name in wanted or name.startswith(_RUNTIME):
                number = int(task.name)
                os.setpriority(os.PRIO_PROCESS, number, max(_NICER, os.getpriority(os.PRIO_PROCESS, number)))
