"""Which device a model runs on, and why: the one place that decides. No torch at the top: it is not there yet.

Whether a driver runs the CUDA that torch's wheel was built for is decided by its number, from NVIDIA's table of minor
version compatibility (https://docs.nvidia.com/deploy/cuda-compatibility/), before a byte is fetched; `open_device` is
where torch itself is asked.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from coldstream.errors import DeviceUnavailable, OutOfMemory
from coldstream.settings import Device, Precision

if TYPE_CHECKING:
    import torch

RunDevice = Literal["cpu", "cuda"]

_LEAST_DRIVER: Mapping[int, tuple[int, ...]] = MappingProxyType({11: (450, 80, 2), 12: (525, 60, 13), 13: (580, 65, 6)})
"""By CUDA's major version, on Linux."""
_UNTOLD = "of unknown version"


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides. `driver` is NVIDIA's and `torch` its version, None where there is none;
    `wheel_cuda` what its wheel was built for.

    `is_hidden`: CUDA_VISIBLE_DEVICES names no GPU.
    """

    driver: str | None
    torch: str | None
    wheel_cuda: str | None
    is_hidden: bool = False

    @classmethod
    def of_this_machine(cls, root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> Machine:
        """Read from files, without loading a driver or importing torch."""
        return cls(_driver(root), *_wheel(), is_hidden=environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"))

    @property
    def versions(self) -> str:
        """Driver and wheel, for messages."""
        driver = f"NVIDIA driver {self.driver}" if self.driver else "no NVIDIA driver"
        return f"{driver}, torch {self.torch} {self._built}" if self.torch else f"{driver}, no torch"

    @property
    def trouble(self) -> str | None:
        """Why nothing can run on a GPU here; None where nothing is known to be in the way."""
        if self.torch is None:
            told = "there is no NVIDIA driver here" if self.driver is None else f"NVIDIA driver {self.driver} is here"
            return f"{told}, and torch is not installed, which a GPU needs: pip install 'coldstream[torch]'"
        if self.driver is None:
            return f"there is no NVIDIA driver here (torch {self.torch} is {self._built})"
        if self.wheel_cuda is None:
            return f"torch {self.torch} is {self._built}, though NVIDIA driver {self.driver} is here"
        if self.is_hidden:
            return f"CUDA_VISIBLE_DEVICES hides every GPU ({self.versions})"
        least = _LEAST_DRIVER.get(_numbers(self.wheel_cuda)[0], ())
        if self.driver != _UNTOLD and _numbers(self.driver) < least:
            wanted = ".".join(map(str, least))
            return f"NVIDIA driver {self.driver} is older than {wanted}, which torch {self.torch} {self._built} needs"
        return None

    @property
    def _built(self) -> str:
        return f"built for CUDA {self.wheel_cuda}" if self.wheel_cuda else "built without CUDA"


def choose_device(wanted: Device, *, precision: Precision, machine: Machine) -> tuple[RunDevice, str]:
    """The device to run on and the reason, in words for a person.

    Raises:
        DeviceUnavailable: CUDA was asked for and cannot be had; names the versions of driver and wheel.
    """
    if wanted == "cpu":
        return "cpu", "asked for"
    trouble = machine.trouble
    if wanted == "auto" and precision == "int8":
        return "cpu", "int8 runs on the CPU"
    if trouble is None:
        return "cuda", "asked for" if wanted == "cuda" else f"a GPU is here: {machine.versions}"
    if wanted == "auto":
        return "cpu", trouble
    raise DeviceUnavailable(
        f"device cuda was asked for, but {trouble}; install a torch wheel that the driver runs, or take device cpu"
    )


def open_device(name: RunDevice, machine: Machine) -> torch.device:
    """torch's device, with its index; waits for CUDA to be initialised. Only once torch may be imported.

    Raises:
        DeviceUnavailable: torch cannot use the GPU, whatever the versions promise.
    """
    import torch

    if name == "cpu":
        return torch.device("cpu")
    try:
        return torch.device("cuda", torch.cuda.current_device())
    except (RuntimeError, AssertionError) as exc:
        raise DeviceUnavailable(f"torch cannot use CUDA here: {exc} ({machine.versions}); or take device cpu") from exc


def out_of_memory(exc: BaseException, doing: str) -> OutOfMemory | None:
    """A GPU's lack of memory with its numbers, for `doing`, what needed it; None where `exc` is something else."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(exc, torch.OutOfMemoryError):
        return None
    numbers = str(exc).partition(" If reserved but unallocated")[0].partition(" See documentation")[0]
    return OutOfMemory(f"{doing} takes more than the GPU has: {numbers}; ask for less, or lower engine.max_sequences")


@contextmanager
def naming_out_of_memory(doing: str) -> Iterator[None]:
    """What torch raises within when the GPU's memory does not suffice, as OutOfMemory."""
    try:
        yield
    except RuntimeError as exc:
        lack = out_of_memory(exc, doing)
        if lack is None:
            raise
        raise lack from exc


def _driver(root: Path) -> str | None:
    try:
        text = (root / "proc/driver/nvidia/version").read_text(encoding="ascii", errors="replace")
    except OSError:
        return _driver_by_nvml() or _UNTOLD if (root / "dev/nvidiactl").exists() else None
    found = re.search(r"Kernel Module\s+(?:for \S+\s+)?(\d+(?:\.\d+)+)", text)
    return found.group(1) if found else _UNTOLD


def _driver_by_nvml() -> str | None:
    """A container may have the driver's libraries without its file in /proc."""
    import ctypes  # only here: the way to the first byte does without it

    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    version = ctypes.create_string_buffer(80)  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE
    if nvml.nvmlInit_v2():
        return None
    failed = nvml.nvmlSystemGetDriverVersion(version, len(version))
    nvml.nvmlShutdown()
    return None if failed else version.value.decode("ascii", "replace")


def _wheel() -> tuple[str | None, str | None]:
    """torch's version and its CUDA, from the file that says so; None where there is no torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None, None
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    version = re.search(r"""^__version__ = ['"]([^'"]+)""", text, re.MULTILINE)
    cuda = re.search(r"""^cuda\b[^=]*= ['"]([^'"]+)""", text, re.MULTILINE)
    return version.group(1) if version else "(unknown)", cuda.group(1) if cuda else None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
