"""A part of the seeded fault schedules; all 500 by `python -m tests.faults.schedules`."""

from __future__ import annotations

import pytest

from tests.faults.schedules import run


@pytest.mark.parametrize("seed", range(1000, 1060))
async def test_a_schedule_of_faults_ends_in_the_right_bytes_or_a_named_error(seed: int) -> None:
    assert await run(seed)
