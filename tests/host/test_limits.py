"""Limits come from the cgroup, version 1 or 2, nested or not, and never from the host when the cgroup is smaller."""

from __future__ import annotations

from pathlib import Path

import pytest

from coldstream.host.limits import cpu_limit, memory_available

GIB = 1 << 30


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


HOST = {"proc/meminfo": f"MemTotal: {64 * GIB // 1024} kB\nMemFree: 1 kB\nMemAvailable: {60 * GIB // 1024} kB\n"}
V2 = HOST | {
    "proc/self/cgroup": "0::/\n",
    "sys/fs/cgroup/memory.max": f"{4 * GIB}\n",
    "sys/fs/cgroup/memory.current": f"{3 * GIB}\n",
    "sys/fs/cgroup/memory.stat": f"anon 5\ninactive_file {GIB}\n",
    "sys/fs/cgroup/cpu.max": "250000 100000\n",
}
V1 = HOST | {
    "proc/self/cgroup": "5:memory:/job/7\n4:cpu,cpuacct:/job/7\n1:name=systemd:/\n",
    "sys/fs/cgroup/memory/job/7/memory.limit_in_bytes": f"{4 * GIB}\n",
    "sys/fs/cgroup/memory/job/7/memory.usage_in_bytes": f"{1 * GIB}\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{9 * GIB}\n",
    "sys/fs/cgroup/cpu/job/7/cpu.cfs_quota_us": "150000\n",
    "sys/fs/cgroup/cpu/job/7/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
}


def test_what_is_left_is_the_limit_less_what_cannot_be_reclaimed(tmp_path: Path) -> None:
    assert memory_available(lay_out(tmp_path, V2)) == 2 * GIB


def test_version_1_without_statistics_counts_all_use(tmp_path: Path) -> None:
    assert memory_available(lay_out(tmp_path, V1)) == 3 * GIB


def test_without_a_limit_the_host_counts(tmp_path: Path) -> None:
    root = lay_out(tmp_path, HOST | {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"})
    assert memory_available(root) == 60 * GIB


def test_nothing_to_read_is_none(tmp_path: Path) -> None:
    assert memory_available(tmp_path) is None


@pytest.mark.parametrize(("files", "visible", "limit"), [(V2, 16, 2), (V2, 1, 1), (V1, 16, 1), (HOST, 3, 3)])
def test_threads_follow_the_quota_and_the_affinity(
    tmp_path: Path, files: dict[str, str], visible: int, limit: int
) -> None:
    assert cpu_limit(lay_out(tmp_path, files), visible=visible) == limit


def test_a_quota_below_one_cpu_still_gives_a_thread(tmp_path: Path) -> None:
    assert cpu_limit(lay_out(tmp_path, V2 | {"sys/fs/cgroup/cpu.max": "50000 100000\n"}), visible=8) == 1


def test_the_parents_limit_counts_too(tmp_path: Path) -> None:
    files = HOST | {
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/b/memory.max": "max\n",
        "sys/fs/cgroup/a/memory.max": f"{GIB}\n",
        "sys/fs/cgroup/a/b/memory.current": f"{GIB // 4}\n",
        "sys/fs/cgroup/a/memory.current": f"{GIB // 2}\n",
    }
    assert memory_available(lay_out(tmp_path, files)) == GIB // 2


def test_on_this_machine_there_is_something_to_read() -> None:
    assert (memory_available() or 0) > 0
    assert cpu_limit() >= 1
