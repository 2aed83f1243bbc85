"""Only `host/` asks the kernel: what it knows has one place, and one place to mend where a sandbox differs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "coldstream"
KERNEL = ("/proc/", "/sys/fs/", "/sys/devices/")


@pytest.mark.parametrize(
    "room", sorted(path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "host")
)
def test_no_other_room_opens_a_file_of_the_kernel(room: str) -> None:
    found = [
        f"{path.relative_to(SOURCE)}:{node.lineno}: {node.value}"
        for path in sorted((SOURCE / room).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(KERNEL)
    ]
    assert found == []
