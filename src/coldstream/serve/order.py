"""Whose tensors come next, where several models are loading."""

from __future__ import annotations

import asyncio

from coldstream.loading.state import LoadState

_TURN = 0.02
"""Seconds between two looks at whose turn it is; a model that waits has its first ranges in flight already."""


class Order:
    """Whose bytes come first: those of a model that a request waits for, else of the first model in the settings.

    Small files and headers are not ordered; only the tensors are, one tensor at a time, so a change of mind costs no
    more than what is in flight.
    """

    def __init__(self, loads: tuple[LoadState, ...]) -> None:
        self._loads = loads

    def first(self) -> LoadState | None:
        """The model whose turn it is, None when all have their bytes."""
        open_ = [load for load in self._loads if load.wants_bytes]
        return next((load for load in open_ if load.is_wanted), open_[0] if open_ else None)

    async def turn(self, load: LoadState) -> None:
        """Return when it is this model's turn."""
        while self.first() not in (load, None):  # noqa: ASYNC110  what it waits for is decided on several threads
            await asyncio.sleep(_TURN)
