"""One model's tensors come at a time: a wanted one's first, else in the order of the settings."""

from __future__ import annotations

import asyncio
import threading

from coldstream.loading.state import LoadState
from coldstream.loading.turns import Turns
from coldstream.timeline import Timeline


class Loads:
    """Models that load, each waiting for its turn again and again."""

    def __init__(self, count: int) -> None:
        self.turns = Turns()
        self.loads = [LoadState(Timeline()) for _ in range(count)]
        for load in self.loads:
            self.turns.enter(load)
        self._waiting = {number: self._wait(number) for number in range(count)}

    def _wait(self, number: int) -> asyncio.Task[None]:
        return asyncio.create_task(self.turns.come(self.loads[number]))

    async def whose(self) -> list[int]:
        """Whose turn it is now."""
        for _ in range(5):
            await asyncio.sleep(0)
        came = [number for number, task in self._waiting.items() if task.done()]
        self._waiting |= {number: self._wait(number) for number in came}
        return came

    def end(self) -> None:
        for task in self._waiting.values():
            task.cancel()


async def test_models_come_in_their_order_each_when_the_one_before_has_its_bytes() -> None:
    models = Loads(3)
    for number in range(3):
        assert await models.whose() == [number]
        assert await models.whose() == [number]
        models.turns.leave(models.loads[number])
    models.end()


async def test_a_model_that_a_request_waits_for_comes_first_once_another_thread_has_said_so() -> None:
    models = Loads(3)
    assert await models.whose() == [0]
    asker = threading.Thread(target=models.loads[2].want)
    asker.start()
    asker.join()
    await models.whose()
    assert await models.whose() == [2]
    models.turns.leave(models.loads[2])
    models.turns.leave(models.loads[2])
    assert await models.whose() == [0]
    models.end()


def test_wanting_a_model_whose_loop_is_gone_does_no_harm() -> None:
    async def enter() -> None:
        Turns().enter(load)

    load = LoadState(Timeline())
    asyncio.run(enter())
    load.want()
    assert load.is_wanted
