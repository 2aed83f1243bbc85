"""One thread for torch: these models are tiny, and threads that wait for each other cost more than they compute."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
