"""Coroutines for callers that have no event loop, or whose loop runs already, as a notebook's does."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def run_here(work: Coroutine[Any, Any, T]) -> T:
    """Its result, from a loop of its own; on a thread of its own where this thread's loop runs, which waits."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1, thread_name_prefix="coldstream-loop") as thread:
        return thread.submit(asyncio.run, work).result()
