"""Work that costs too much is ended and named; all other work goes on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldstream.errors import EngineError, InvalidRequest, TokenizerError, TooCostly
from coldstream.workers.limits import Limits
from coldstream.workers.workers import Workers

LIMITS = Limits(seconds=0.5, memory=64 << 20, output=1 << 20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters()) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # where the tests' own work is
    made = Workers()
    yield made
    made.close()


def call(workers: Workers, *argument: Any, data: bytes = b"", limits: Limits = LIMITS, beside: int = 1) -> Any:
    work = "tests.workers.works:Works"
    return workers.call(work, argument, data, limits=limits, subject="the work", field="place", beside=beside)


def test_what_goes_in_comes_out(workers: Workers) -> None:
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
    @given(JSON, st.binary(max_size=10_000))
    def same(value: Any, data: bytes) -> None:
        assert call(workers, "echo", value) == value
        assert call(workers, "reverse", data=data) == data[::-1]

    same()
    assert call(workers, "echo", "half \udc00 a pair \ud83d") == "half \udc00 a pair \ud83d"


def test_work_keeps_what_it_has_made(workers: Workers) -> None:
    assert [call(workers, "count") for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("how", ["for_ever", "in_one_expression"])
def test_work_that_does_not_end_is_ended(workers: Workers, how: str) -> None:
    with pytest.raises(TooCostly, match=r"the work takes more than 0.5 s") as caught:
        call(workers, how)
    assert caught.value.field == "place"
    assert workers.deaths() == {"Works": 1}
    assert call(workers, "count") == 1


def test_work_that_waits_for_nothing_is_ended(workers: Workers) -> None:
    with pytest.raises(TooCostly, match=r"takes more than 0.05 s"):
        call(workers, "hang", limits=Limits(seconds=0.05, memory=64 << 20, output=100))
    assert workers.deaths() == {"Works": 1}


def test_work_that_takes_too_much_memory_is_refused_it(workers: Workers) -> None:
    before = call(workers, "pid")
    with pytest.raises(TooCostly, match="takes more than 64 MiB of memory"):
        call(workers, "allocate", 1 << 40)
    with pytest.raises(TooCostly, match="takes more than 64 MiB of memory"):
        call(workers, "allocate", 512 << 20)
    assert call(workers, "allocate", 16 << 20) == 16 << 20
    assert call(workers, "pid") == before


def test_an_answer_that_is_too_long_is_not_read(workers: Workers) -> None:
    with pytest.raises(TooCostly, match="makes more than 1,048,576 bytes"):
        call(workers, "reverse", data=b"x" * (2 << 20))
    assert call(workers, "count") == 1


def test_a_crash_is_the_works_and_not_ours(workers: Workers) -> None:
    with pytest.raises(TooCostly, match="ends the process that does it"):
        call(workers, "crash")
    assert workers.deaths() == {"Works": 1}
    assert call(workers, "echo", 1) == 1


def test_a_process_that_has_grown_is_replaced(workers: Workers) -> None:
    grown = call(workers, "keep", 100 << 20, limits=Limits(seconds=5.0, memory=200 << 20, output=100))
    assert call(workers, "pid") != grown
    assert workers.deaths() == {"Works": 0}


def test_a_process_that_grows_little_by_little_is_replaced(workers: Workers) -> None:
    limits = Limits(seconds=5.0, memory=200 << 20, output=100)
    grown = [call(workers, "keep_more", 24 << 20, limits=limits) for _ in range(5)]
    assert len(set(grown)) == 2
    assert workers.deaths() == {"Works": 0}


def test_a_process_without_work_ends_and_one_that_was_asked_for_before_stays(workers: Workers) -> None:
    resting = Workers(rest=0.2)
    try:
        other = "tests.workers.works:OtherWorks"
        resting.begin(other)
        stays = resting.call(other, ["pid"], limits=LIMITS, subject="the work")
        ends = call(resting, "pid")
        while is_there(ends):
            threading.Event().wait(0.02)
        assert resting.call(other, ["pid"], limits=LIMITS, subject="the work") == stays
        assert call(resting, "count") == 1
        assert resting.deaths() == {"Works": 0, "OtherWorks": 0}
    finally:
        resting.close()


def test_a_process_does_not_end_while_it_works(workers: Workers) -> None:
    resting = Workers(rest=0.02)
    try:
        with pytest.raises(TooCostly, match=r"takes more than 0.5 s"):
            call(resting, "for_ever")
    finally:
        resting.close()


def is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_process_that_was_killed_while_it_was_idle_is_nobodys_fault(workers: Workers) -> None:
    child = call(workers, "pid")
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert call(workers, "pid") != child
    assert workers.deaths() == {"Works": 0}


def test_what_work_refuses_is_refused_by_the_same_name(workers: Workers) -> None:
    with pytest.raises(InvalidRequest, match="image is wrong") as caught:
        call(workers, "refuse", "image")
    assert caught.value.field == "image"
    with pytest.raises(TokenizerError, match="no tokenizer"):
        call(workers, "refuse_model")


def test_a_fault_of_the_works_repeats_nothing_of_what_was_sent(workers: Workers) -> None:
    with pytest.raises(EngineError, match="RuntimeError") as caught:
        call(workers, "fail", "a secret")
    assert "secret" not in str(caught.value)


def test_a_worker_knows_no_secret_of_ours(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLDSTREAM_API_KEY", "secret")
    assert "COLDSTREAM_API_KEY" not in call(workers, "environ")


def test_work_beside_other_work_of_its_kind_does_not_wait_for_it(workers: Workers) -> None:
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(call, workers, "hang", limits=Limits(30.0, 64 << 20, 100), beside=2)
        while call(workers, "count", beside=2) < 5:
            assert not long.done()
        workers.close()
        with pytest.raises(EngineError, match="shutting down"):
            long.result()


def test_who_waits_for_a_worker_hears_when_they_are_closed(workers: Workers) -> None:
    call(workers, "count")
    with ThreadPoolExecutor(3) as pool:
        begun = threading.Barrier(4)

        def wait() -> None:
            begun.wait()
            call(workers, "hang", limits=Limits(30.0, 64 << 20, 100))

        waiting = [pool.submit(wait) for _ in range(3)]
        begun.wait()
        workers.close()
        for future in waiting:
            with pytest.raises(EngineError, match="shutting down"):
                future.result()
