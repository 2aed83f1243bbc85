"""Compiles the kernels while a wheel is built, so that the wheel is for one platform and for any Python on it."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_NATIVE = Path("src/coldstream/backends/cpu")


class KernelsHook(BuildHookInterface):
    """Puts the compiled variants beside their source, where the package looks; the wheel takes them from there."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        spec = importlib.util.spec_from_file_location("compile_kernels", Path(self.root) / _NATIVE / "compile.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.compile_kernels(Path(self.root) / _NATIVE)
        build_data["artifacts"].append(str(_NATIVE / "*.so"))
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
