"""How much memory and how many CPUs this process may use: the cgroup's limits, not the host's figures.

Reads cgroup v2 and v1 as they are mounted in a container (kernel documentation, cgroup-v2 and cgroup-v1/memory).
Pure: everything is read below `root`, so a test can lay out a file system of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# cgroup v1 says "no limit" with a number near 2^63, rounded down to pages.
_NO_LIMIT = 1 << 60


def memory_available(root: Path = Path("/")) -> int | None:
    """Bytes that can still be taken: the limit less what the cgroup holds (page cache aside), or MemAvailable."""
    rooms = [_meminfo(root, "MemAvailable")]
    for limit, usage, stat in zip(
        _cgroup_files(root, "memory.max", "memory", "memory.limit_in_bytes"),
        _cgroup_files(root, "memory.current", "memory", "memory.usage_in_bytes"),
        _cgroup_files(root, "memory.stat", "memory", "memory.stat"),
        strict=True,
    ):
        bound, used = _number(limit), _number(usage)
        if bound is not None and used is not None and 0 < bound < _NO_LIMIT:
            rooms.append(max(0, bound - used + _inactive_file(stat)))
    return min((room for room in rooms if room is not None), default=None)


def cpu_limit(root: Path = Path("/"), *, visible: int | None = None) -> int:
    """How many threads may compute at once: the CPUs of the affinity mask, or fewer by the cgroup's quota; at least 1.

    A quota of 1.5 CPUs gives 1: a second thread would only be throttled. `visible` stands for the affinity mask.
    """
    cpus = visible if visible is not None else len(os.sched_getaffinity(0))
    quotas = [_v2_quota(path) for path in _cgroup_files(root, "cpu.max", None, None)]
    for quota, period in zip(
        _cgroup_files(root, None, "cpu", "cpu.cfs_quota_us"),
        _cgroup_files(root, None, "cpu", "cpu.cfs_period_us"),
        strict=True,
    ):
        time, each = _number(quota), _number(period)
        quotas.append(time / each if time is not None and each and time > 0 else None)
    return max(1, int(min([cpus, *(quota for quota in quotas if quota is not None)])))


def _cgroup_files(root: Path, v2: str | None, v1_controller: str | None, v1: str | None) -> Iterator[Path]:
    """The file of the process's own cgroup and of every one above it, in both hierarchies."""
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers and v2:
            yield from _upward(root / "sys/fs/cgroup", path, v2)
        elif v1 and v1_controller in controllers.split(","):
            yield from _upward(root / "sys/fs/cgroup" / str(v1_controller), path, v1)


def _upward(mount: Path, path: str, name: str) -> Iterator[Path]:
    # Inside a container the path may be the host's, and the mount point already the container's own group.
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for depth in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:depth], name)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    lines = _lines(path)
    try:
        return int(lines[0]) if lines else None
    except ValueError:  # "max"
        return None


def _v2_quota(path: Path) -> float | None:
    fields = " ".join(_lines(path)).split()
    if len(fields) != 2 or not all(field.isdecimal() for field in fields) or not int(fields[1]):
        return None
    return int(fields[0]) / int(fields[1])


def _inactive_file(path: Path) -> int:
    for line in _lines(path):
        key, _, value = line.partition(" ")
        if key in ("inactive_file", "total_inactive_file") and value.isdecimal():
            return int(value)
    return 0


def _meminfo(root: Path, key: str) -> int | None:
    for line in _lines(root / "proc/meminfo"):
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    return None
