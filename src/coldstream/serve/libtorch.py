"""Maps torch's shared libraries before `import torch` does, without holding the GIL.

Loading libtorch takes a third of a second (relocations of a 430 MB library). Python's own loader holds the GIL for all
of it, so that no other thread runs and the event loop answers nobody. A call of dlopen(3) through ctypes releases it;
what `import torch` then finds is already mapped. The flags are those with which torch itself loads the two.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from coldstream.host.dlopen import map_library

_LIBRARIES = (("libtorch_global_deps.so", os.RTLD_GLOBAL), ("libtorch.so", os.RTLD_LOCAL))


def preload() -> bool:
    """Map the libraries; False where they are not where we know them to be (`import torch` does it all then)."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    folder = Path(spec.origin).parent / "lib"
    return all(map_library(folder / name, os.RTLD_NOW | flag) for name, flag in _LIBRARIES)
