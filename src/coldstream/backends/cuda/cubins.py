"""Kernels that were compiled when the image was built: a manifest, and a launcher of our own on the driver's library.

libcuda comes with the driver, wherever there is a GPU, so that neither Triton nor a binding is needed. What is called
is in the CUDA driver API's reference (https://docs.nvidia.com/cuda/cuda-driver-api/). A kernel gets its arguments in
order, and behind them null for each scratch buffer that Triton declares and does not use.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldstream.backends.cuda.compile import MANIFEST
from coldstream.backends.cuda.variants import KernelVariant
from coldstream.errors import DeviceUnavailable, EngineError

if TYPE_CHECKING:
    from coldstream.backends.cuda.launchers import Argument

_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_FREE_SHARED = 48 << 10
"""Bytes of shared memory that a kernel has without being asked for more."""
_ALIGNED = 16


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """An entry of the manifest. `shared` in bytes; `scratch`: null pointers behind the arguments."""

    path: Path
    function: str
    types: tuple[str, ...]
    shared: int
    threads: int
    scratch: int


def read_manifest(folder: Path, capability: int) -> Mapping[str, CompiledKernel]:
    """What there is for GPUs of a compute capability, 89 for 8.9, by the variant's name; empty where that is nothing.

    Code for 8.0 also runs on 8.6 and 8.7, and so on within a major version (CUDA C++ Programming Guide, "Binary
    Compatibility"): the nearest that is not newer is taken.

    Raises:
        DeviceUnavailable: the manifest does not have the form that `compile.py` writes.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        entries: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        made = {int(name.partition("/")[0].removeprefix("sm_")) for name in entries}
        fits = [arch for arch in made if arch // 10 == capability // 10 and arch <= capability]
        prefix = f"sm_{max(fits, default=0)}/"
        return {
            name.removeprefix(prefix): CompiledKernel(
                folder / f"{name}.cubin",
                str(entry["function"]),
                tuple(entry["types"]),
                int(entry["shared"]),
                int(entry["threads"]),
                int(entry["scratch"]),
            )
            for name, entry in entries.items()
            if name.startswith(prefix)
        }
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise DeviceUnavailable(f"{path} is no manifest of kernels ({exc!r}); build the image again") from exc


def packed(types: Sequence[str], arguments: Sequence[Argument], scratch: int) -> list[Any]:
    """The arguments as C has them, in order, and the scratch pointers.

    Raises:
        EngineError: a tensor does not begin, or a number is not, where the code was compiled to expect it.
    """
    values: list[Any] = []
    for place, (kind, argument) in enumerate(zip(types, arguments, strict=True)):
        if kind.startswith("*"):
            address = argument.data_ptr()  # type: ignore[union-attr]
            if address % _ALIGNED:
                raise EngineError(f"argument {place} of a kernel begins at no multiple of {_ALIGNED} bytes")
            values.append(ctypes.c_uint64(address))
        elif kind == "fp32":
            values.append(ctypes.c_float(float(argument)))
        else:
            number = int(argument)
            if kind.endswith(":16") and number % _ALIGNED:
                raise EngineError(f"argument {place} of a kernel is {number}, which is no multiple of {_ALIGNED}")
            values.append(ctypes.c_int32(number))
    return values + [ctypes.c_uint64(0) for _ in range(scratch)]


class CubinLauncher:
    """A `KernelLauncher` over a folder of `compile.py`. A file is loaded when its kernel is first asked for.

    `library` is libcuda, `stream` gives torch's current stream. torch must have made its context before.
    """

    def __init__(
        self, kernels: Mapping[str, CompiledKernel], *, library: ctypes.CDLL, stream: Callable[[], int]
    ) -> None:
        self._kernels, self._library, self._stream = kernels, library, stream
        self._functions: dict[str, ctypes.c_void_p] = {}

    def has(self, variant: KernelVariant) -> bool:
        """See `KernelLauncher.has`."""
        found = self._kernels.get(variant.name)
        return found is not None and found.types == variant.types

    def launch(self, variant: KernelVariant, grid: tuple[int, int, int], arguments: Sequence[Argument]) -> None:
        """See `KernelLauncher.launch`.

        Raises:
            DeviceUnavailable: the driver refuses the code.
            EngineError: the driver refuses the launch.
        """
        kernel = self._kernels[variant.name]
        function = self._functions.get(variant.name) or self._loaded(variant.name, kernel)
        values = packed(kernel.types, arguments, kernel.scratch)
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        code = self._library.cuLaunchKernel(
            function,
            *(ctypes.c_uint(size) for size in (*grid, kernel.threads, 1, 1, kernel.shared)),
            ctypes.c_void_p(self._stream()),
            pointers,
            None,
        )
        if code:
            raise EngineError(f"kernel {variant.name} could not be launched: {self._words(code)}")

    def _loaded(self, name: str, kernel: CompiledKernel) -> ctypes.c_void_p:
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self._check(self._library.cuModuleLoadData(ctypes.byref(module), kernel.path.read_bytes()), kernel)
        entry = kernel.function.encode()
        self._check(self._library.cuModuleGetFunction(ctypes.byref(function), module, entry), kernel)
        if kernel.shared > _FREE_SHARED:
            attribute = ctypes.c_int(_MAX_DYNAMIC_SHARED)
            self._check(self._library.cuFuncSetAttribute(function, attribute, ctypes.c_int(kernel.shared)), kernel)
        self._functions[name] = function
        return function

    def _check(self, code: int, kernel: CompiledKernel) -> None:
        if code:
            raise DeviceUnavailable(
                f"the driver does not take {kernel.path}: {self._words(code)}; build the image for this GPU's driver"
            )

    def _words(self, code: int) -> str:
        text = ctypes.c_char_p()
        self._library.cuGetErrorString(ctypes.c_int(code), ctypes.byref(text))
        return f"{text.value.decode() if text.value else 'unknown error'} (CUDA error {code})"
