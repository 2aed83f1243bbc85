"""Which kernels this machine has: those of the image, else Triton's own compiler, else none."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from coldstream.backends.cuda.cubins import CubinLauncher, read_manifest
from coldstream.backends.cuda.launchers import KernelLauncher, TritonLauncher

if TYPE_CHECKING:
    import torch

FOLDER_VARIABLE = "COLDSTREAM_KERNELS"
"""Names the folder that `compile.py` wrote; without it, `kernels` beside this file."""


def find_launcher(device: torch.device, environ: Mapping[str, str] = os.environ) -> tuple[KernelLauncher | None, str]:
    """What starts kernels on a device, and in words which ones; None: torch's operators do everything.

    Raises:
        DeviceUnavailable: the image's manifest is broken.
    """
    if device.type != "cuda":
        return None, "not a GPU"
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    folder = Path(environ.get(FOLDER_VARIABLE) or Path(__file__).parent / "kernels")
    ready = read_manifest(folder, 10 * major + minor)
    if ready:
        launcher = CubinLauncher(
            ready,
            library=ctypes.CDLL("libcuda.so.1"),
            stream=lambda: torch.cuda.current_stream(device).cuda_stream,
        )
        return launcher, f"{len(ready)} kernels compiled for it in {folder}"
    if importlib.util.find_spec("triton") is not None:
        return TritonLauncher(), "kernels that Triton compiles at their first use"
    return None, f"no kernels for compute capability {major}.{minor} in {folder}, and no Triton: torch's own operators"
