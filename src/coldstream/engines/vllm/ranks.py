"""One host's processes load a model that one of them fetches: tensors travel through files in shared memory.

    leader     writes a tensor's bytes to a file, and what it is to file N; at most `bound` bytes lie there at a time
    followers  read N, map the bytes, count that they have them in `taken`; the leader removes what all have taken

File N appears whole, by being renamed. The last one says how the load ended, so that followers end with the leader.
Bytes lie beside it, in shared memory, or where that is too small for them in the folder for temporary files.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from coldstream.errors import ModelError
from coldstream.weights.tensors import raw_bytes

if TYPE_CHECKING:
    from torch import Tensor

Named = tuple[str, "Tensor"]

BOUND = 512 * 1024 * 1024
_SPARE = 16 * 1024 * 1024
_NAP = 0.0005
_COUNTER = 8


class HostRanks:
    """`followers` processes beside the leader, which has number 0, and a folder of their own in shared memory.

    `deadline` seconds without news end a load.
    """

    def __init__(self, folder: Path, *, followers: int, deadline: float, bound: int = BOUND) -> None:
        self._folder, self._followers, self._deadline, self._bound = folder, followers, deadline, bound
        self._places = (folder, Path(tempfile.gettempdir()))

    def lead(self, tensors: Iterator[Named]) -> Iterator[Named]:
        """The same tensors, each shared before it is given on.

        Raises:
            ModelError: the followers do not keep up.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.joinpath("taken").write_bytes(bytes(_COUNTER * self._followers))
        lying: deque[tuple[int, int]] = deque()
        number = 0
        ending: dict[str, Any] = {"error": "the process that fetches has ended"}
        try:
            for name, tensor in tensors:
                self._make_room(lying, tensor.nbytes)
                self._publish(number, {"name": name, "dtype": str(tensor.dtype), "shape": list(tensor.shape)}, tensor)
                lying.append((number, tensor.nbytes))
                number += 1
                yield name, tensor
                del tensor
            ending = {"end": True}
        except Exception as exc:
            ending = {"error": str(exc)}
            raise
        finally:
            self._publish(number, ending, None)
        self._make_room(lying, self._bound + 1)

    def follow(self, rank: int) -> Iterator[Named]:
        """What the leader shares, for follower `rank`, 1 and up.

        Raises:
            ModelError: the leader failed, or is not heard of.
        """
        number = 0
        while True:
            path = self._await(number)
            head = json.loads(path.read_text(encoding="utf-8"))
            tensor = _tensor(head) if "name" in head else None
            self._take(rank, number + 1)
            if "error" in head:
                raise ModelError(f"the process that fetches this host's weights failed: {head['error']}")
            if "end" in head:
                return
            assert tensor is not None
            yield head["name"], tensor
            del tensor
            number += 1

    def _publish(self, number: int, head: dict[str, Any], tensor: Tensor | None) -> None:
        if tensor is not None and tensor.nbytes:
            path = self._room_for(tensor.nbytes) / f"{self._folder.parent.name}-{self._folder.name}-{number}.bin"
            head["at"] = str(path)
            path.write_bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        beside = self._folder / f".{number}"
        beside.write_text(json.dumps(head), encoding="utf-8")
        beside.rename(self._folder / str(number))

    def _room_for(self, size: int) -> Path:
        for place in self._places:
            if shutil.disk_usage(place).free > size + _SPARE:
                return place
        told = " nor ".join(map(str, self._places))
        raise ModelError(f"neither {told} has room for a tensor of {size} bytes, which the host's processes share")

    def _remove(self, number: int) -> None:
        path = self._folder / str(number)
        at = json.loads(path.read_text(encoding="utf-8")).get("at")
        path.unlink()
        if at is not None:
            Path(at).unlink()

    def _make_room(self, lying: deque[tuple[int, int]], size: int) -> None:
        """Wait until `size` more bytes may lie here; a tensor larger than the bound lies alone."""
        until = time.monotonic() + self._deadline
        while lying and sum(nbytes for _, nbytes in lying) + size > self._bound:
            taken = self._taken()
            while lying and lying[0][0] < taken:
                self._remove(lying.popleft()[0])
                until = time.monotonic() + self._deadline
            if time.monotonic() > until:
                raise ModelError(f"a process of this host took no weights for {self._deadline:.0f} s; look at its log")
            if lying and lying[0][0] >= taken:
                time.sleep(_NAP)

    def _taken(self) -> int:
        data = self._folder.joinpath("taken").read_bytes()
        counts = [int.from_bytes(data[at : at + _COUNTER], "little") for at in range(0, len(data), _COUNTER)]
        return min(counts)

    def _take(self, rank: int, count: int) -> None:
        with self._folder.joinpath("taken").open("r+b") as file:
            os.pwrite(file.fileno(), count.to_bytes(_COUNTER, "little"), _COUNTER * (rank - 1))

    def _await(self, number: int) -> Path:
        path, until = self._folder / str(number), time.monotonic() + self._deadline
        while not path.exists():
            if time.monotonic() > until:
                raise ModelError(f"no weights came from the process that fetches them for {self._deadline:.0f} s")
            time.sleep(_NAP)
        return path


def _tensor(head: dict[str, Any]) -> Tensor:
    dtype = getattr(torch, head["dtype"].removeprefix("torch."))
    if "at" not in head:
        return torch.empty(head["shape"], dtype=dtype)
    with open(head["at"], "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return raw_bytes(memoryview(mapped)).view(dtype).view(head["shape"])
