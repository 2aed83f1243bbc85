"""Compile kernels.c for several CPUs. Only the standard library; images and the wheel are built with it.

python compile.py [FOLDER]      # beside the source, where library.py looks, or elsewhere
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.c")
VNNI, AVX2, ANY = "kernels-vnni.so", "kernels-avx2.so", "kernels-any.so"
_V4 = ("-march=x86-64-v4", "-mavx512vnni", "-mprefer-vector-width=256")
# -fopenmp links libgomp.so.1, of which torch brings its own: that one is loaded already, and its threads are shared.
_FLAGS = ("-std=gnu11", "-O3", "-fno-math-errno", "-fopenmp", "-fPIC", "-shared", "-fvisibility=hidden", "-Wno-psabi")
_LINKED = ("-lm",)


def variants(machine: str) -> Mapping[str, tuple[str, ...]]:
    """The files to make on such a machine (`platform.machine()`), with the flags that are their own."""
    x86 = {VNNI: _V4, AVX2: ("-march=x86-64-v3",)} if machine in {"x86_64", "AMD64"} else {}
    return x86 | {ANY: ()}


def compile_kernels(folder: Path, *, extra: tuple[str, ...] = ()) -> tuple[Path, ...]:
    """Make every variant in `folder`, with the compiler that CC names, or cc. `extra` are further flags for it.

    Raises FileNotFoundError without a compiler and CalledProcessError, with its words on stderr, when it fails.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise FileNotFoundError("coldstream's kernels need a C compiler to be built: apt-get install gcc libc6-dev")
    made = []
    for name, own in variants(platform.machine()).items():
        target = folder / name
        command = [*compiler.split(), *_FLAGS, *own, *extra, str(SOURCE), "-o", str(target), *_LINKED]
        subprocess.run(command, check=True)
        made.append(target)
    return tuple(made)


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        with tempfile.TemporaryDirectory() as scratch:
            compile_kernels(Path(scratch), extra=("-Wall", "-Wextra", "-Werror"))
    else:
        for path in compile_kernels(Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE.parent):
            print(path)
