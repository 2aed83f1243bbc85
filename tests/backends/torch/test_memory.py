"""What is left for keys and values: of the host's memory, or of a GPU's beside weights and a step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coldstream.backends.torch.memory import kv_bytes
from coldstream.errors import OutOfMemory
from coldstream.model.config import ModelConfig
from coldstream.model.memory import beside_weights, graph_bytes, workspace_bytes
from tests.support.parts import LLAMA

GB = 10**9
SIZES = st.integers(0, 100 * GB)


@given(free=SIZES, used=SIZES, unallocated=SIZES, workspace=SIZES)
def test_a_gpu_is_never_promised_twice(free: int, used: int, unallocated: int, workspace: int) -> None:
    try:
        left = beside_weights(free, free + used, unallocated=unallocated, workspace=workspace)
    except OutOfMemory:
        assert free <= unallocated + workspace + (free + used) * 0.05 + 1
    else:
        assert 0 < left <= free - unallocated - workspace


def test_a_gpu_that_is_full_is_refused_with_the_numbers() -> None:
    with pytest.raises(OutOfMemory, match=r"3\.00 of the GPU's 23\.00 GB are free.* 2\.50 of them, a step 0\.40"):
        beside_weights(3 * GB, 23 * GB, unallocated=2_500_000_000, workspace=400_000_000)


def test_a_step_takes_more_with_every_token_and_row() -> None:
    config = ModelConfig.from_json(LLAMA)
    least = workspace_bytes(config, tokens=1, rows=1, item=2)
    assert least < workspace_bytes(config, tokens=2, rows=1, item=2)
    assert least < workspace_bytes(config, tokens=1, rows=2, item=2)
    assert least < workspace_bytes(config, tokens=1, rows=1, item=4)


def test_recorded_steps_take_more_with_every_size_and_no_more_than_the_largest() -> None:
    config = ModelConfig.from_json(LLAMA)
    sizes = [graph_bytes(config, rows=rows, item=2) for rows in (1, 2, 3, 4, 60, 64, 1000)]
    assert sizes == sorted(sizes)
    assert sizes[2] == sizes[3]
    assert sizes[4] == sizes[5] == sizes[6]


def test_on_a_cpu_it_is_a_part_of_what_the_container_may_use() -> None:
    config, cpu = ModelConfig.from_json(LLAMA), torch.device("cpu")
    assert kv_bytes(config, torch.float32, cpu, step_tokens=512, rows=16, unallocated=0) > 0
