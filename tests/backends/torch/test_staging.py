"""What goes through the staging buffer arrives as it would by `copy_`, whatever its size and dtype."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from coldstream.backends.torch.staging import Staging

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


@given(rows=st.integers(0, 5), columns=st.integers(1, 9), size=st.sampled_from([4, 8, 64, 1024]), to=DTYPES, of=DTYPES)
def test_a_tensor_arrives_whole(rows: int, columns: int, size: int, to: torch.dtype, of: torch.dtype) -> None:
    source = torch.randn(columns, rows).to(of).t()
    target = torch.full((rows, columns), float("nan"), dtype=to)
    Staging(size, is_pinned=False).copy(target, source)
    assert torch.equal(target, source.to(to))
