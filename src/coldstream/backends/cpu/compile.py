"""Compile kernels/*.c for several CPUs and kernels/tokens/*.c for any. Only the standard library; images and the wheel
are built with it.

python compile.py [FOLDER]      # beside the source, where library.py and merges.py look, or elsewhere
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

SOURCE = Path(__file__).with_name("kernels")
"""The folder of the C files; what is made of them lies beside it."""
NEEDED = "apt-get install gcc libc6-dev"
"""What puts a compiler there, on Debian; for x86 it is to be GCC 11 at least, which knows AVX-VNNI."""
TOKENS = "tokens.so"
"""What the tokenizer calls: one for all CPUs, without OpenMP, since a process with nothing else in it loads it."""
VNNI, AVX_VNNI, AVX2, ANY = "kernels-vnni.so", "kernels-avx-vnni.so", "kernels-avx2.so", "kernels-any.so"
_V3 = ("-march=x86-64-v3",)
_V4 = ("-march=x86-64-v4", "-mavx512vnni", "-mprefer-vector-width=256")
_FLAGS = (
    "-std=gnu11",
    "-O3",
    "-fno-math-errno",
    "-ffp-contract=off",
    "-fopenmp",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wno-psabi",
)
# Without -fopenmp, so that no libgomp is named: packed.py gives the kernels the one of this process, which is torch's
# where that is installed. Two in a process would each keep a team that spins while the other computes.
_LINKED = ("-shared", "-lm")


def variants(machine: str) -> Mapping[str, tuple[str, ...]]:
    """The files to make on such a machine (`platform.machine()`), with the flags that are their own."""
    x86 = {VNNI: _V4, AVX_VNNI: (*_V3, "-mavxvnni"), AVX2: _V3} if machine in {"x86_64", "AMD64"} else {}
    return x86 | {ANY: ()}


def compile_kernels(folder: Path, *, extra: tuple[str, ...] = ()) -> tuple[Path, ...]:
    """Make every variant in `folder`, with the compiler that CC names, or cc. `extra` are further flags for it.

    Raises FileNotFoundError without a compiler and CalledProcessError, with its words on stderr, when it fails.
    """
    own = variants(platform.machine())
    tokens = compile_variant(folder / TOKENS, extra, source=SOURCE / "tokens")
    return (*(compile_variant(folder / name, (*flags, *extra)) for name, flags in own.items()), tokens)


def compile_variant(target: Path, flags: tuple[str, ...], *, source: Path = SOURCE) -> Path:
    """Make one of the C files in `source`, with its own flags. Raises as `compile_kernels` does."""
    named = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if named is None:
        raise FileNotFoundError(f"coldstream's kernels need a C compiler to be built: {NEEDED}")
    compiler = named.split()
    with tempfile.TemporaryDirectory() as scratch:
        sources = sorted(map(str, source.resolve().glob("*.c")))
        subprocess.run([*compiler, *_FLAGS, *flags, "-c", *sources], check=True, cwd=scratch)
        made = sorted(map(str, Path(scratch).glob("*.o")))
        subprocess.run([*compiler, *made, "-o", str(target), *_LINKED], check=True)
    return target


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        with tempfile.TemporaryDirectory() as scratch:
            compile_kernels(Path(scratch), extra=("-Wall", "-Wextra", "-Werror"))
    else:
        for path in compile_kernels(Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE.parent):
            print(path)
