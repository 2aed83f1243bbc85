"""A child process that is spoken to over sockets: started by exec, whatever threads there are, and ended whole."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence

_PASSED = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
"""What a child's environment has of ours beside Python's own variables: no keys, no credentials."""


class Child:
    """A Python process that runs `entry`, "module:function", with its ends of `lines` sockets, by number, and `more`.

    It is the first of a process group, so that its forks end with it. `is_silent`: what it writes is not for our log.
    """

    def __init__(
        self,
        entry: str,
        *more: str,
        lines: int,
        environ: Mapping[str, str] | None = None,
        is_silent: bool = False,
    ) -> None:
        module, _, function = entry.partition(":")
        pairs = [socket.socketpair() for _ in range(lines)]
        theirs = [pair[1].fileno() for pair in pairs]
        self.sockets: Sequence[socket.socket] = [pair[0] for pair in pairs]
        arguments = ", ".join(map(repr, (theirs, *more)))
        inherited = {name: value for name, value in os.environ.items() if name in _PASSED or name.startswith("PYTHON")}
        try:
            # -P: nothing is imported from the folder in which we were started.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", f"from {module} import {function}; {function}({arguments})"],
                pass_fds=theirs,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if is_silent else None,
                stderr=subprocess.DEVNULL if is_silent else None,
                process_group=0,
                env={**inherited, **(environ or {})},
            )
        except OSError:
            for ours in self.sockets:
                ours.close()
            raise
        finally:
            for _, child in pairs:
                child.close()

    @property
    def pid(self) -> int:
        """Its process id, which is its group's."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it has ended by itself, or was killed."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """Kill the group and do not wait."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def end(self) -> int:
        """Close the sockets, kill what still runs, and wait; what the process ended with, a signal below zero."""
        for line in self.sockets:
            line.close()
        self.kill()
        return self._process.wait()


def ignore_interrupts() -> None:
    """For the child: Ctrl-C goes to everything at the terminal; the parent says when to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
