"""A ring of buffers to a device whose copies come late: what a step reads behind `join` is what landed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coldstream.backends.torch.staging import SLOT, SLOTS, Staging

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


class LateCopies:
    """Copies nothing before it is waited for, and then in order, as a busy device may."""

    def __init__(self) -> None:
        self.left: deque[Callable[[], object]] = deque()
        self.done = 0
        self.buffers = 0
        self.joins = 0

    def buffer(self, size: int) -> Tensor:
        self.buffers += 1
        return torch.empty(size, dtype=torch.uint8)

    @contextmanager
    def _behind(self) -> Iterator[None]:
        self.run(self.done + len(self.left))
        yield

    def scope(self) -> AbstractContextManager[object]:
        return self._behind()

    def copy(self, target: Tensor, staged: Tensor) -> None:
        self.left.append(lambda: target.copy_(staged))

    def mark(self) -> Callable[[], object]:
        count = self.done + len(self.left)
        return lambda: self.run(count)

    def join(self) -> None:
        self.joins += 1
        self.run(self.done + len(self.left))

    def run(self, count: int) -> None:
        while self.done < count:
            self.left.popleft()()
            self.done += 1


@settings(deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9), DTYPES, DTYPES), min_size=1, max_size=6),
    size=st.sampled_from([4, 8, 64, 1024]),
    slots=st.integers(1, 4),
)
def test_tensors_arrive_whole_through_few_buffers(
    shapes: list[tuple[int, int, torch.dtype, torch.dtype]], size: int, slots: int
) -> None:
    copies = LateCopies()
    staging = Staging(lambda: copies, size=size, slots=slots)
    expected = []
    for rows, columns, to, of in shapes:
        source = torch.randn(columns, rows).to(of).t().clone(memory_format=torch.preserve_format)
        target = torch.full((rows, columns), float("nan"), dtype=to)
        expected.append((target, source.to(to, copy=True)))
        staging.copy(target, source)
        source.fill_(float("nan"))  # its memory is another tensor's now
    staging.join()
    assert all(torch.equal(target, wanted) for target, wanted in expected)
    assert copies.buffers <= slots


def test_the_last_copies_are_waited_for_and_no_step_is_afterwards() -> None:
    copies = LateCopies()
    staging = Staging(lambda: copies, size=64, slots=4)
    staging.join()
    target = torch.zeros(40)
    staging.copy(target, torch.ones(40))
    assert not target.all()
    staging.end()
    assert target.all()
    staging.join()
    assert copies.joins == 0
    staging.copy(target, torch.full((40,), 2.0))  # a file that came again
    staging.join()
    assert copies.joins == 1
    assert target.eq(2.0).all()


def test_the_ring_is_small() -> None:
    assert SLOT * SLOTS <= 1e9
