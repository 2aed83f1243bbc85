"""What the strands of a start wait for one another with: futures that the first failure may have settled before."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from concurrent.futures import Future, InvalidStateError
from typing import Any, TypeVar

T = TypeVar("T")


def settle(future: Future[T], value: T) -> None:
    """Set the result, unless the start has failed meanwhile."""
    with contextlib.suppress(InvalidStateError):
        future.set_result(value)


def break_all(futures: Iterable[Future[Any]], error: BaseException) -> None:
    """Let everyone who waits for one that is not settled get the error."""
    for future in futures:
        with contextlib.suppress(InvalidStateError):
            future.set_exception(error)
