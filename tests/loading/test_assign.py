"""The reader of the tensor queue, with tensors and a model that say what happened to them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coldstream.errors import ModelError
from coldstream.loading.assign import Assigner
from coldstream.loading.tensor_queue import FileVerified, TensorQueue
from coldstream.weights.arrays import as_array
from coldstream.weights.checkpoint.header import TensorInfo
from coldstream.weights.transfer.stream import Landed


def landed(name: str, size: int = 4) -> Landed:
    return Landed(TensorInfo(name, "U8", (size,), "a", 0, size), memoryview(bytes(size)))


class Assembly:
    """Says in which order it was filled."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def assign(self, name: str, tensor: torch.Tensor) -> None:
        self.said.append(name)

    def settle(self) -> None:
        self.said.append("settled")

    def finish(self) -> None:
        self.said.append("finished")

    def fail(self, error: BaseException) -> None:
        self.said.append("failed")


class Packing:
    """Takes nothing, and ends as a test wants."""

    def __init__(self, end: Callable[[], None]) -> None:
        self.end, self.stopped = end, threading.Event()
        self.stop = self.stopped.set

    def take(self, landed: Landed) -> bool:
        return False


class Reader:
    """An assigner over a queue of some events."""

    def __init__(self, *events: Any, text: frozenset[str] = frozenset(), packing: Any = None) -> None:
        self.tensors, self.assembly = TensorQueue(), Assembly()
        for event in events:
            if isinstance(event, Landed):
                asyncio.run(self.tensors.put(event))
            else:
                self.tensors.tell(event)
        self.assigner = Assigner(
            self.tensors,
            packing,
            text,
            as_stored=as_array,
            reached=lambda milestone: self.assembly.said.append(milestone.name),
        )

    def run(self) -> list[str]:
        self.assigner.model_built(self.assembly)  # type: ignore[arg-type]
        self.tensors.end()
        self.assigner.run()
        return self.assembly.said


def test_text_is_announced_behind_the_last_of_its_files() -> None:
    a, b, tower = (FileVerified(name, redelivered=False) for name in ("a", "b", "tower"))
    reader = Reader(landed("x"), b, landed("y"), a, landed("z"), tower, text=frozenset({"a", "b"}))
    assert reader.run() == ["x", "y", "TEXT_VERIFIED", "z", "finished"]


def test_a_file_that_came_again_is_in_its_place_before_the_engine_hears_of_it_and_before_its_text_may_leave() -> None:
    first, again = landed("x"), landed("x")
    reader = Reader(first, again, FileVerified("a", redelivered=True), text=frozenset({"a"}))
    assert reader.run() == ["x", "x", "settled", "REPLACED", "TEXT_VERIFIED", "finished"]


@st.composite
def deliveries(draw: st.DrawFn) -> list[tuple[str, bool]]:
    """Files in the order in which they are verified, and whether each came again; each holds one tensor of its name."""
    files = draw(st.permutations(["a", "b", "c", "tower"]))
    return [(file, draw(st.booleans())) for file in files]


@given(deliveries(), st.sets(st.sampled_from(["a", "b", "c"])))
def test_no_text_may_leave_before_all_of_its_files_are_verified_and_what_was_replaced_is_void(
    delivered: list[tuple[str, bool]], text: set[str]
) -> None:
    events: list[Any] = [landed(file) for file, _ in delivered]
    for file, again in delivered:
        events += [landed(file)] * again + [FileVerified(file, redelivered=again)]
    said = Reader(*events, text=frozenset(text)).run()
    assert said.count("REPLACED") == sum(again for _, again in delivered)
    assert said.count("TEXT_VERIFIED") == bool(text)
    assert all(said[at - 1] == "settled" for at, word in enumerate(said) if word == "REPLACED")
    if text:
        last = max(index for index, (file, _) in enumerate(delivered) if file in text)
        behind = said[said.index("TEXT_VERIFIED") :]
        assert behind.count("REPLACED") == sum(again for _, again in delivered[last + 1 :])


def test_small_tensors_wait_for_the_model_without_their_read_and_are_assigned_once_it_stands() -> None:
    reader = Reader(landed("small"))
    running = threading.Thread(target=reader.assigner.run)
    running.start()
    reader.assigner.model_built(reader.assembly)  # type: ignore[arg-type]
    reader.tensors.end()
    running.join(10)
    assert reader.assembly.said == ["small", "finished"]


def test_a_worker_that_fails_behind_the_last_tensor_is_heard_instead_of_what_it_left_unfilled() -> None:
    reader = Reader(packing=Packing(end=lambda: reader.tensors.fail(ModelError("the worker"))))
    with pytest.raises(ModelError, match="the worker"):
        reader.run()
    assert "finished" not in reader.assembly.said


@pytest.mark.parametrize("built", [False, True])
def test_a_failed_load_ends_the_reader_and_the_model_wherever_they_are(built: bool) -> None:
    packing = Packing(end=lambda: None)
    reader = Reader(landed("large", 100_000), packing=packing)
    if built:
        reader.assigner.model_built(reader.assembly)  # type: ignore[arg-type]
    raised: list[BaseException] = []

    def run() -> None:
        try:
            reader.assigner.run()
        except ModelError as exc:
            raised.append(exc)

    running = threading.Thread(target=run)
    running.start()
    error = ModelError("the load failed")
    reader.assigner.fail(error)
    running.join(10)
    assert raised == [error]
    assert packing.stopped.is_set()
    assert ("failed" in reader.assembly.said) == built
