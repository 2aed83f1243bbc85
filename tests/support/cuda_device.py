"""A CUDA device without one: fake tensors that say they lie there, and a guard that fails on any wait for it.

`FakeTensorMode` raises FakeTensorDeviceMismatchError where devices mix. `Waits` sees every operator beneath it and
fails on those that make the host wait for the device: a number or a shape that depends on values there, a copy from
there, and a copy to there that is not merely queued. One copy is let through, and counted: a step's `Readback`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from coldstream.backends.cuda.launchers import Argument
from coldstream.backends.cuda.variants import KernelVariant
from coldstream.backends.torch.graphs import Scored

CUDA = torch.device("cuda:0")
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "i32": torch.int32, "i8": torch.int8}
_aten = torch.ops.aten
_BY_VALUE = {
    "_local_scalar_dense",
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "repeat_interleave",
}
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}


class SilentLauncher:
    """Starts no kernel, and fails where one's arguments are not what its code takes. Counts launches by kernel."""

    def __init__(self) -> None:
        self.launches: Counter[str] = Counter()

    def has(self, variant: KernelVariant) -> bool:
        return True

    def launch(self, variant: KernelVariant, grid: tuple[int, int, int], arguments: Sequence[Argument]) -> None:
        assert min(grid) > 0
        for kind, argument in zip(variant.types, arguments, strict=True):
            if kind.startswith("*"):
                assert isinstance(argument, Tensor)
                assert (argument.device, argument.dtype) == (CUDA, _DTYPES[kind[1:]])
                assert argument.is_contiguous()
                assert argument.storage_offset() * argument.itemsize % 16 == 0
            else:
                assert isinstance(argument, float if kind == "fp32" else int)
                assert kind != "i32:16" or argument % 16 == 0
        self.launches[variant.kernel] += 1


class SilentRecorder:
    """A `Recorder` of fake tensors: nothing is computed by playing."""

    def __init__(self, device: torch.device) -> None:
        assert device == CUDA
        self.played = 0

    def record(self, work: Callable[[], Scored]) -> tuple[Callable[[], object], Scored]:
        result = work()

        def play() -> None:
            self.played += 1

        return play, result


class UnorderedCopies:
    """A `CopyQueue` of fake tensors, which have no bytes that could come too late."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def buffer(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def scope(self) -> AbstractContextManager[object]:
        return nullcontext()

    def copy(self, target: Tensor, staged: Tensor) -> None:
        assert target.device == self._device
        target.copy_(staged, non_blocking=True)

    def mark(self) -> Callable[[], object]:
        return lambda: None

    def join(self) -> None:
        pass


class Waited(AssertionError):
    """The host would have waited for the device here."""


class Waits(TorchDispatchMode):
    """Fails on a wait, but for the copies back that `Readback` makes, which it answers with zeros and counts.

    `queued` are the operators that a device would have been given, copies to it among them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.readbacks = 0
        self.queued: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = func.overloadpacket.__name__, kwargs or {}
        if func.namespace == "aten":
            with self:  # in inference mode operators come here before they are taken apart
                apart = func.decompose(*args, **given)
            if apart is not NotImplemented:
                return apart
        if name == "detach" and not isinstance(args[0], FakeTensor):
            with unset_fake_temporarily():  # what `Readback` fetched is real
                return func(*args)
        if any(_is_on_device(item) for item in (*args, given.get("device"))):
            if name in _BY_VALUE:
                raise Waited(f"{func} depends on values on the device")
            if name in _INDEXED:
                _check_indices(func, args)
            if name == "_to_copy" and given.get("device", args[0].device) != args[0].device:
                fetched = self._copied(func, args[0], given)
                if fetched is not None:
                    return fetched
        result = func(*args, **given)
        if isinstance(result, Tensor) and _is_on_device(result) and _computes(func):
            self.queued[name] += 1
        return result

    def _copied(self, func: Any, source: Tensor, given: Any) -> Tensor | None:
        if _is_on_device(given["device"]):
            if not given.get("non_blocking", False):
                raise Waited(f"{func}: a copy to the device that is not only queued")
            return None
        if source.dtype != torch.float64 or source.dim() != 1:
            raise Waited(f"{func}: a copy from the device")
        self.readbacks += 1
        self.queued["readback"] += 1
        with unset_fake_temporarily():
            return torch.zeros(source.shape, dtype=torch.float64)


class _Guarded(TorchFunctionMode):
    """What torch's CPU wheel cannot do for want of a guard for the device, by the operators that it comes down to."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__ and _is_on_device(args[0]):
            return _get(args[0], args[1])
        if func is Tensor.__setitem__ and _is_on_device(args[0]):
            return _set(*args)
        if func is Tensor.copy_ and (_is_on_device(args[0]) or _is_on_device(args[1])):
            queued = (kwargs or {}).get("non_blocking", False)
            assert args[1].to(args[0].device, args[0].dtype, non_blocking=queued).expand_as(args[0]) is not None
            return args[0]
        if func is Tensor.contiguous and _is_on_device(args[0]):
            return args[0].clone(memory_format=torch.contiguous_format)
        if func is torch.searchsorted and _is_on_device(args[0]):
            assert args[0].device == args[1].device
            return torch.empty_like(args[1], dtype=torch.int64)
        return func(*args, **(kwargs or {}))


@contextmanager
def cuda() -> Iterator[None]:
    """Within it tensors may be made on `CUDA`."""
    with FakeTensorMode(allow_non_fake_inputs=True), _Guarded():
        yield


def _computes(func: Any) -> bool:
    """Whether an operator is more than a view or a piece of memory."""
    is_view = any(item.alias_info is not None for item in func._schema.returns) and not func._schema.is_mutable
    name = func.overloadpacket.__name__
    return not is_view and "empty" not in name and name != "_unsafe_view"


def _is_on_device(item: Any) -> bool:
    device = item.device if isinstance(item, Tensor) else item
    return isinstance(device, torch.device) and device.type == "cuda"


def _check_indices(func: Any, args: Any) -> None:
    for index in args[1]:
        if index is not None and (index.dtype in (torch.bool, torch.uint8) or index.device != args[0].device):
            raise Waited(f"{func}: an index of {index.dtype} on {index.device}")


def _get(tensor: Tensor, index: Any) -> Tensor:
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in [part for part in parts if not isinstance(part, Tensor)]:
        place = next(i for i, part in enumerate(parts) if part is Ellipsis)
        real = sum(part is not None for part in parts) - 1
        parts[place : place + 1] = [slice(None)] * (tensor.dim() - real)
    indices: list[Tensor | None] = []
    dim = 0
    for part in parts:
        match part:
            case None:
                tensor = tensor.unsqueeze(dim)
                indices.append(None)
                dim += 1
            case bool():
                raise NotImplementedError(part)
            case int():
                tensor = tensor.select(dim, part)
            case slice():
                tensor = _aten.slice(tensor, dim, part.start, part.stop, part.step or 1)
                indices.append(None)
                dim += 1
            case Tensor() if part.dim() == 0:
                raise Waited("a tensor without dimensions as an index is read on the host")
            case Tensor():
                indices.append(part)
                dim += 1
            case _:
                raise Waited(f"an index from the host: {part!r}")
    return tensor if all(item is None for item in indices) else _aten.index(tensor, indices)


def _set(tensor: Tensor, index: Any, value: Any) -> None:
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(part, Tensor) for part in parts):
        values = value if isinstance(value, Tensor) else tensor.new_full((), value)
        _aten.index_put_(tensor, list(parts), values)
    elif isinstance(value, Tensor):
        _get(tensor, index).copy_(value)
    else:
        _get(tensor, index).fill_(value)
