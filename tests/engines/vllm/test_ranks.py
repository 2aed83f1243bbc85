"""Processes of one host that load what one of them fetches: the same tensors everywhere, within the bound."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coldstream.engines.vllm.ranks import HostRanks
from coldstream.errors import ModelError

Named = tuple[str, Tensor]


def tensors(count: int = 12, size: int = 100) -> list[Named]:
    draw = torch.Generator().manual_seed(count)
    dtypes = (torch.float32, torch.bfloat16, torch.int8)
    return [
        (f"t{number}", (torch.randn(size + number, 3, generator=draw) * 50).to(dtypes[number % 3]))
        for number in range(count)
    ]


class Followers:
    """Threads that follow, with what each was given, or how it failed."""

    def __init__(self, ranks: HostRanks, count: int) -> None:
        self.got: list[list[Named]] = [[] for _ in range(count)]
        self.errors: list[Exception] = []
        self._threads = [threading.Thread(target=self._run, args=(ranks, rank)) for rank in range(1, count + 1)]
        for thread in self._threads:
            thread.start()

    def _run(self, ranks: HostRanks, rank: int) -> None:
        try:
            self.got[rank - 1] += ranks.follow(rank)
        except ModelError as exc:
            self.errors.append(exc)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()


def same(one: list[Named], other: list[Named]) -> bool:
    return [name for name, _ in one] == [name for name, _ in other] and all(
        torch.equal(a, b) and a.dtype == b.dtype for (_, a), (_, b) in zip(one, other, strict=True)
    )


@settings(max_examples=15, deadline=None)
@given(count=st.integers(0, 15), followers=st.integers(1, 3), bound=st.sampled_from([1, 700, 1 << 20]))
def test_every_process_gets_what_the_leader_fetched(count: int, followers: int, bound: int) -> None:
    import tempfile

    wanted = tensors(count)
    with tempfile.TemporaryDirectory() as place:
        ranks = HostRanks(Path(place, "r"), followers=followers, deadline=20.0, bound=bound)
        others = Followers(ranks, followers)
        led = list(ranks.lead(iter(wanted)))
        others.join()
        assert same(led, wanted)
        assert all(same(got, wanted) for got in others.got)
        left = {path.name for path in Path(place, "r").iterdir()}
        assert left == {"taken", str(count)}, "the tensors' memory is given back"


def test_no_more_lies_there_than_the_bound_allows(tmp_path: Path) -> None:
    most, bound = 0, 3000

    def watched() -> Iterator[Named]:
        nonlocal most
        for item in tensors(20):
            most = max(most, sum(path.stat().st_size for path in tmp_path.glob("r/*.bin")))
            yield item

    ranks = HostRanks(tmp_path / "r", followers=2, deadline=20.0, bound=bound)
    others = Followers(ranks, 2)
    list(ranks.lead(watched()))
    others.join()
    assert 0 < most <= bound


def test_a_leader_that_fails_ends_its_followers_with_its_error(tmp_path: Path) -> None:
    def failing() -> Iterator[Named]:
        yield from tensors(2)
        raise ModelError("the bucket is gone")

    ranks = HostRanks(tmp_path / "r", followers=1, deadline=20.0)
    others = Followers(ranks, 1)
    with pytest.raises(ModelError, match="bucket is gone"):
        list(ranks.lead(failing()))
    others.join()
    assert "bucket is gone" in str(others.errors[0])


def test_a_leader_that_is_stopped_ends_its_followers(tmp_path: Path) -> None:
    ranks = HostRanks(tmp_path / "r", followers=1, deadline=20.0)
    others = Followers(ranks, 1)
    leading = ranks.lead(iter(tensors(3)))
    next(leading)
    leading.close()  # type: ignore[attr-defined]
    others.join()
    assert "has ended" in str(others.errors[0])


def test_a_follower_that_takes_nothing_ends_the_load(tmp_path: Path) -> None:
    ranks = HostRanks(tmp_path / "r", followers=1, deadline=0.2, bound=1)
    with pytest.raises(ModelError, match=r"took no weights for 0 s|took no weights"):
        list(ranks.lead(iter(tensors(3))))


def test_a_follower_without_a_leader_does_not_wait_for_ever(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no weights came"):
        list(HostRanks(tmp_path / "r", followers=1, deadline=0.2).follow(1))
