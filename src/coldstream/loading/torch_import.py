"""`import torch`, without the half of it that running a model does not use, and with its libraries mapped before.

Two fifths of the import are spent on modules for tracing, exporting and training (`_meta_registrations` alone takes
0.4 s of 1.5 s). They are deferred, not removed: each is in `sys.modules`, and the first look at an attribute loads it.
What acts by being imported rather than by being looked at (the registrations of meta kernels) is loaded by `complete`,
which the transformers fallback calls.

The import order inside torch is not ours, so this is done for releases on which our tests ran it; others are imported
plainly.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import threading
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from coldstream.host.dlopen import map_library
from coldstream.host.limits import cpu_limit
from coldstream.timeline import Timeline

PROVEN_RELEASES = ("2.13",)
_DEFERRED = frozenset(
    f"torch.{name}"
    for name in (
        "_functorch",
        "_meta_registrations",
        "ao",
        "compiler",
        "distributions",
        "export",
        "masked",
        "optim",
        "profiler",
        "quantization",
        "testing",
        "utils.data",
    )
)

_ACTING = frozenset({"torch._meta_registrations"})
_LIBRARIES = (("libtorch_global_deps.so", os.RTLD_GLOBAL), ("libtorch.so", os.RTLD_LOCAL))
"""With the flags with which torch itself loads them."""


class TorchImport:
    """torch, imported once for all models, in the order that keeps other threads alive."""

    def __init__(self, threads: int | None, timeline: Timeline) -> None:
        self._threads, self._timeline = threads, timeline
        self._lock = threading.Lock()
        self._is_done = False

    def finish(self) -> None:
        """Return when torch is there and has the CPUs of this container; on any thread, any number of times."""
        with self._lock:
            if not self._is_done:
                self._import()
                self._is_done = True

    def _import(self) -> None:
        if "torch" not in sys.modules:
            with self._timeline.span("map libtorch"):
                map_libtorch()
        with self._timeline.span("import torch"):
            import_torch()
            import torch

            torch.set_num_threads(self._threads or cpu_limit())


class _Deferring(MetaPathFinder, Loader):
    """Finds the modules named above as usual, and executes them at the first look at an attribute."""

    def __init__(self) -> None:
        self._loaders: dict[str, Loader] = {}
        self._lock = threading.RLock()

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in _DEFERRED:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            self._loaders[name], spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        def look(attribute: str) -> Any:
            if attribute.startswith("__"):  # the import system itself looks at these
                raise AttributeError(attribute)
            self.load(module)
            return getattr(module, attribute)

        module.__getattr__ = look  # type: ignore[method-assign]  # PEP 562

    def load(self, module: ModuleType) -> None:
        """Execute a deferred module now, if it was not executed before."""
        with self._lock:
            loader = self._loaders.pop(module.__name__, None)
            if loader is not None:
                del module.__getattr__
                loader.exec_module(module)

    def load_what_acts(self) -> None:
        """Execute the deferred modules that do something by being imported."""
        for name in _ACTING & self._loaders.keys():
            self.load(sys.modules[name])


def map_libtorch() -> bool:
    """Map torch's libraries before `import torch` does, so that it need not hold the GIL for it.

    Loading libtorch takes a third of a second (relocations of a 430 MB library); what `import torch` then finds is
    already mapped. False where the libraries are not where we know them to be: `import torch` does it all then.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    folder = Path(spec.origin).parent / "lib"
    return all(map_library(folder / name, os.RTLD_NOW | flag) for name, flag in _LIBRARIES)


def import_torch() -> None:
    """Import torch; leanly, where that was proven."""
    if "torch" not in sys.modules and _release() in PROVEN_RELEASES:
        sys.meta_path.insert(0, _Deferring())
    importlib.import_module("torch")


def complete() -> None:
    """Load torch's meta kernels; the rest of what was deferred comes by being looked at."""
    for finder in sys.meta_path:
        if isinstance(finder, _Deferring):
            finder.load_what_acts()


def _release() -> str:
    """torch's major and minor version, without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    found = re.search(r"""__version__ = ['"](\d+\.\d+)\.""", text)
    return found.group(1) if found else ""
