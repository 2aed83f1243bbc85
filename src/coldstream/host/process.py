"""What the kernel knows of a process: when it began, what memory it has (proc(5))."""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from pathlib import Path

_STATM = Path("/proc/self/statm")


def started() -> float:
    """The moment of exec on the `time.monotonic()` clock; now, where /proc cannot tell."""
    try:
        with open("/proc/self/stat", encoding="ascii") as stat:
            ticks = int(stat.read().rsplit(")", 1)[1].split()[19])  # field 22
        since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
        return time.monotonic() - (since_boot - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return time.monotonic()


def resident() -> int:
    """Bytes of memory that this process has."""
    return _pages()[1] * mmap.PAGESIZE


def sizes() -> tuple[int, int]:
    """Bytes of addresses, and of private memory that can be written."""
    pages = _pages()
    return pages[0] * mmap.PAGESIZE, pages[5] * mmap.PAGESIZE


def status_bytes(field: str, pid: int | None = None) -> int | None:
    """A size of /proc/PID/status ("VmRSS", "VmHWM"), in bytes; None where the process is gone or has no such line."""
    try:
        status = Path(f"/proc/{pid or 'self'}/status").read_text(encoding="ascii", errors="replace")
        line = next(line for line in status.splitlines() if line.startswith(field + ":"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """Let this process's high-water mark ("VmHWM") begin anew (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def end_before_others() -> None:
    """Where memory ends, the kernel ends this process first; nothing happens where a sandbox has no such file."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _pages() -> list[int]:
    return [int(field) for field in _STATM.read_text(encoding="ascii").split()]
