"""Every kernel as machine code, made without a GPU: nothing spills, and an L4's shared memory holds it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from coldstream.backends.cuda.compile import ARCHITECTURES
from coldstream.backends.cuda.variants import every_variant

pytest.importorskip("triton", reason="Triton is not installed: pip install coldstream[gpu]")

_SHARED = 99 << 10
"""Bytes of a block at most, on compute capability 8.9 (CUDA C++ Programming Guide, technical specifications)."""


def sized(cubin: Path) -> tuple[int, int]:
    """Registers and stack, as cuobjdump tells them."""
    import triton

    dump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    said = subprocess.run([dump, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    assert found is not None, said
    return int(found[1]), int(found[2])


@pytest.mark.more
@pytest.mark.timeout(900)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_variant_compiles_without_spilling(tmp_path: Path, arch: int) -> None:
    """In a process of its own: where Triton interprets, it does not compile."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "coldstream.backends.cuda.compile", str(tmp_path), "--arch", str(arch)]
    subprocess.run(command, env=environment, check=True)
    entries = json.loads((tmp_path / "manifest.json").read_text())
    assert entries.keys() == {f"sm_{arch}/{variant.name}" for variant in every_variant()}
    for name, entry in entries.items():
        _, stack = sized(tmp_path / f"{name}.cubin")
        assert stack == 0, name
        assert entry["shared"] <= _SHARED, name
        assert entry["scratch"] >= 0
