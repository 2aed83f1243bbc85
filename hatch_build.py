"""Compiles the kernels while a wheel is built, so that the wheel is for one platform and for any Python on it."""

from __future__ import annotations

import importlib.util
import platform
import re
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_NATIVE = Path("src/coldstream/backends/cpu")
_GLIBC = re.compile(rb"GLIBC_2\.(\d+)")
# PEP 600 begins with 2.17; what needs less runs there as well.
_OLDEST = 17


class KernelsHook(BuildHookInterface):
    """Puts the compiled variants beside their source, where the package looks; the wheel takes them from there."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        folder = Path(self.root) / _NATIVE
        compiling = _compiling(folder)
        try:
            made = compiling.compile_kernels(folder)
        except FileNotFoundError as error:
            self.app.abort(f"{error}, or install a wheel for this platform ({tag([])})")
        except subprocess.CalledProcessError:
            self.app.abort(
                f"coldstream's kernels do not compile; they need GCC and the C library's headers: {compiling.NEEDED}"
            )
        build_data["artifacts"].append(str(_NATIVE / "*.so"))
        build_data["pure_python"] = False
        build_data["tag"] = tag(made)


def tag(libraries: list[Path]) -> str:
    """`py3-none-PLATFORM`: what a wheel with these shared libraries runs on."""
    system = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    if platform.libc_ver()[0] == "glibc":
        system = system.replace("linux", f"manylinux_2_{glibc(libraries)}", 1)
    return f"py3-none-{system}"


def glibc(libraries: list[Path]) -> int:
    """The minor version of the oldest glibc that has all that they need: an ELF file names versions in its strings."""
    return max([_OLDEST, *(int(minor) for path in libraries for minor in _GLIBC.findall(path.read_bytes()))])


def _compiling(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("compile_kernels", folder / "compile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
